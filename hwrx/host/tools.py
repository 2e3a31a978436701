"""The system's own tools, called so that what fails is said in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence

from hwrx.errors import MachineError

PATIENCE = 60.0  # seconds; the kernel fills GID tables and raises carriers on work queues, late on a busy machine
SYSTEM = ("/usr/sbin", "/sbin")
PACKAGES = {
    "ip": "iproute2",
    "rdma": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "ethtool": "ethtool",
    "modprobe": "kmod",
    "qemu-system-x86_64": "qemu-system-x86",
    "apt-get": "apt",
    "dpkg": "dpkg",
    "depmod": "kmod",
    "setpriv": "util-linux",
    "mkswap": "util-linux",
    "swapon": "mount",
    "swapoff": "mount",
    "ib_send_lat": "perftest",
    "bpftool": "bpftool",
}


def find_tool(name: str) -> str:
    """Return the path of a tool; MachineError says which package has it."""
    # /sbin is not on everybody's PATH
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM))
    if found is None:
        raise MachineError(f"there is no `{name}`", remedy=f"apt-get install {PACKAGES.get(name, name)}")
    return found


def widen_path() -> None:
    """Let this process and its children find what stands in /usr/sbin and /sbin, not on everybody's PATH."""
    parts = [part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part]
    os.environ["PATH"] = os.pathsep.join([*parts, *(folder for folder in SYSTEM if folder not in parts)])


def run_tool(*argv: str, given: str = "") -> str:
    """Run a tool with `given` as its input, return what it printed; MachineError with its own words where it fails.

    It is in a process group of its own: Ctrl-C at a terminal is for hwrx, and must not end what takes something down.
    """
    done = subprocess.run(
        [find_tool(argv[0]), *argv[1:]],
        input=given,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        process_group=0,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().removeprefix("RTNETLINK answers: ").removeprefix("error: ")
        denied = "not permitted" in said or "Permission denied" in said
        raise MachineError(
            f"`{' '.join(argv)}`: {said or f'exit code {done.returncode}'}",
            remedy="run it as root" if denied and os.geteuid() != 0 else "",
        )
    return done.stdout


def need_root(what: str) -> None:
    """MachineError where this process may not do what root may."""
    if os.geteuid() != 0:
        raise MachineError(f"{what} needs root", remedy="run it with sudo, or in the lab's virtual machine: hwrx lab")


def shorten_text(command: Sequence[str]) -> str:
    """Return a command for a message, not longer than a line."""
    line = " ".join(command)
    return line if len(line) <= 100 else f"{line[:97]}..."


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Return as soon as `ready()` is true; it is asked 50 times a second. MachineError if it is not within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise MachineError(f"waited {PATIENCE:g} s in vain for {what}")
        time.sleep(0.02)
