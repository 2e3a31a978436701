"""Does hardware virtualisation really boot a kernel here? Asked by booting one, once, and remembered.

/dev/kvm can exist, open, and create a virtual machine that then never executes a kernel (nested virtualisation that is
switched off half-way, a sandbox's imitation). So nothing less than a boot is an answer.
"""

from __future__ import annotations

import functools
import mmap
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from hwrx.host import tools
from hwrx.host.waiting import wait_to_read
from hwrx.lab import emulator_user, initramfs, kernel
from hwrx.lab.kernel import Kernel, Progress, cache_folder

QEMU = "qemu-system-x86_64"
LIMIT = 12.0  # seconds; hardware boots the probe in one
Name = Literal["kvm", "tcg"]


class Accelerator(Struct, frozen=True):
    """What executes a guest's instructions, and why it was chosen."""

    name: Name
    reason: str

    @property
    def emulated(self) -> bool:
        """Whether the guest's CPU is software: its wall-clock times are then no machine's."""
        return self.name == "tcg"


class _Memory(Struct):
    """What was found on which machine."""

    machine: str
    found: Accelerator


def qemu_version() -> str:
    """Return the version of QEMU; MachineError where there is none."""
    said = tools.run_tool(QEMU, "--version")
    match = re.search(r"version ([^\s)]+)", said)
    return match[1] if match else "unknown"


def choose_accelerator(
    which: Kernel, progress: Progress = kernel.quiet_boot, wanted: Literal["auto", "kvm", "tcg"] = "auto"
) -> Accelerator:
    """Return the accelerator to use; with `auto` the answer comes from the cache where the machine is the same."""
    if wanted != "auto":
        return Accelerator(wanted, "asked for")
    found = remembered_choice()
    if found is None:
        progress("kernel", "finding out whether hardware virtualisation boots a kernel here")
        found = probe_kvm(which)
        memory = _memory()
        memory.parent.mkdir(parents=True, exist_ok=True)
        draft = memory.with_name(f".{memory.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.encode(_Memory(_machine(), found)))
        draft.rename(memory)
    return found


def remembered_choice() -> Accelerator | None:
    """Return the accelerator to use if that is known without booting anything."""
    device = Path("/dev/kvm")
    if not device.exists():
        return Accelerator("tcg", "there is no /dev/kvm")
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator(
            "tcg", "/dev/kvm may not be opened by this user: sudo usermod -aG kvm $USER, and log in again"
        )
    try:
        known = msgspec.json.decode(_memory().read_bytes(), type=_Memory)
    except (OSError, msgspec.DecodeError):
        return None
    return known.found if known.machine == _machine() else None


def _memory() -> Path:
    return cache_folder() / "accelerator.json"


def _machine() -> str:
    """What the answer depends on: the host's kernel, the processor (a machine may have moved), QEMU."""
    return f"{platform.release()} {platform.version()} {_processor()} qemu {qemu_version()}"


@functools.cache
def sandbox_words() -> list[str]:
    """Return the options that let QEMU start no other program (seccomp(2)); none for a QEMU that was built without.

    A guest is root on emulated devices, and a fault in one of them would be QEMU's. Whether it can is seen by what it
    is linked with: an option that it lacks would end it.
    """
    with (
        Path(tools.find_tool(QEMU)).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as program,
    ):
        return ["-sandbox", "on,spawn=deny"] if program.find(b"libseccomp.so") >= 0 else []


def probe_kvm(which: Kernel, limit: float = LIMIT) -> Accelerator:
    """Boot a kernel with hardware virtualisation, for at most `limit` seconds."""
    archive = initramfs.in_memory(initramfs.build_probe())
    user = emulator_user.find_emulator_user()
    image = os.open(kernel.is_bootable(which), os.O_RDONLY)  # another user may not reach it by its name
    command = [
        *(user.start_words(kvm=True) if user else [tools.find_tool("setpriv")]), "--pdeathsig", "KILL",
        tools.find_tool(QEMU), "-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "256M",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-kernel", f"/proc/self/fd/{image}", "-initrd", f"/proc/self/fd/{archive}",
        "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(archive, image),
    ) as guest:
        os.close(archive)
        os.close(image)
        try:
            said, in_time = _listen(guest, limit)
        finally:
            guest.kill()
    if initramfs.BOOTED in said:
        return Accelerator("kvm", "a kernel booted with it")
    if in_time:
        last = said.strip().splitlines()[-1:] or ["no word"]
        return Accelerator("tcg", f"/dev/kvm is there, but QEMU could not use it: {last[0]}")
    return Accelerator("tcg", f"/dev/kvm is there, but a kernel did not boot with it within {limit:.0f} s")


def _listen(guest: subprocess.Popen[bytes], limit: float) -> tuple[str, bool]:
    """Return what the guest said until it was up or ended, and whether that was within the limit."""
    assert guest.stdout is not None  # asked for by the caller
    deadline = time.monotonic() + limit
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if wait_to_read([guest.stdout], left):
            data = os.read(guest.stdout.fileno(), 4096)
            said += data
            if not data or initramfs.BOOTED.encode() in said:
                return said.decode(errors="replace"), True
    return said.decode(errors="replace"), False


def _processor() -> str:
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1] if match else platform.processor()
