"""QEMU's words for a guest: the machine, its clock, its kernel, and the folders of this machine that it may mount."""

from __future__ import annotations

import os
from typing import Literal

from hwrx.control.guest_boot import Priced
from hwrx.control.messages import Clock
from hwrx.host import tools
from hwrx.lab import accelerator, initramfs, kernel


def machine_words(
    with_what: accelerator.Accelerator, *, cpus: int, memory: str, clock: Clock, copies_priced: Priced
) -> list[str]:
    """Return the command that starts a machine without devices, whose serial line is standard output."""
    cpu = "max" if copies_priced == "byte" else "max,-erms,-fsrm"
    return [
        tools.find_tool(accelerator.QEMU), "-name", "hwrx", "-machine", "q35", "-nodefaults", "-no-user-config",
        "-no-reboot", "-display", "none", "-serial", "stdio", "-m", memory, "-smp", str(cpus),
        *accelerator.sandbox_words(),
        *(["-accel", "kvm", "-cpu", "host"] if with_what.name == "kvm" else ["-accel", "tcg", "-cpu", cpu]),
        # one virtual nanosecond is one instruction; an idle guest jumps to its next timer
        *(["-icount", "shift=0,sleep=off"] if clock == "icount" else []),
    ]  # fmt: skip


def kernel_words(chosen: kernel.Kernel, *, by_name: bool) -> tuple[str, list[str], list[int]]:
    """Return the name of the kernel's image, words that share its modules, and open files of both.

    :param by_name: whether QEMU finds both by their names. As another user it finds them by their descriptors: the
        cache may be in a folder of root's
    """
    path = kernel.is_bootable(chosen)
    if by_name:
        return str(path), [], []
    image = os.open(path, os.O_RDONLY)
    modules = os.open(chosen.base / "lib/modules" / chosen.version, os.O_RDONLY)
    return (
        f"/proc/self/fd/{image}",
        share_words(initramfs.MODULES_TAG, f"/proc/self/fd/{modules}"),
        [image, modules],
    )


def share_words(tag: str, path: str, readonly: Literal["on", "off"] = "on") -> list[str]:
    """Return words that let the guest mount a folder of this machine by its tag."""
    name, where = tag.replace(".", "-"), path.replace(",", ",,")
    return [
        "-fsdev", f"local,id={name},path={where},security_model=none,multidevs=remap,readonly={readonly}",
        "-device", f"virtio-9p-pci,fsdev={name},mount_tag={tag}",
    ]  # fmt: skip
