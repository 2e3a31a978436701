"""The kinds of memory that are held against each other: who holds the pages, and how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from msgspec import Struct

from cython_ext.core.pinned import PinnedBuffer
from hwrx.errors import MachineError
from hwrx.host.undo import SYSCTL, Undo
from hwrx.nic import open_device
from hwrx.nic.vfio import VfioDevice

if TYPE_CHECKING:
    from cython_ext.verbs.verbs_device import ProtectionDomain
    from cython_ext.verbs.verbs_region import MemoryRegion

Take = Callable[[int], PinnedBuffer]

KINDS = {
    "ordinary": "anonymous memory that nobody holds",
    "locked": "mlock: never paged out",
    "registered": "ibv_reg_mr: pinned for a verbs device",
    "ring": "mapped for a NIC by VFIO: pinned for DMA",
    "huge": "reserved huge pages that nobody holds",
}


class Kind(Struct, frozen=True):
    """One kind, ready for use: `take(size)` gets so much memory and holds it, until its stack is closed."""

    name: str
    take: Take
    huge: bool = False


def open_subject(
    kind: str, stack: contextlib.ExitStack, undo: Undo, *, device: str | None, nic: str | None,
    own: Collection[str], huge_pages: int,
) -> Kind:  # fmt: skip
    """Get ready what a kind needs; MachineError where this machine lacks it."""
    if kind == "registered":
        return Kind(kind, _registering(stack, device))
    if kind == "ring":
        return Kind(kind, _mapping(stack, nic, own))
    if kind == "huge":
        reserve_huge(undo, huge_pages)
        return Kind(kind, lambda size: _kept(stack, PinnedBuffer(size, huge=True, lock=False)), huge=True)
    locks = kind == "locked"
    return Kind(kind, lambda size: _kept(stack, PinnedBuffer(size, lock=locks, fault_in=False, transparent=False)))


def _kept(stack: contextlib.ExitStack, buffer: PinnedBuffer) -> PinnedBuffer:
    return stack.enter_context(buffer)


def open_domain(stack: contextlib.ExitStack, device: str | None) -> ProtectionDomain:
    """Return a protection domain of a verbs device, by default the first; MachineError where there is none."""
    try:
        from cython_ext.verbs.verbs_device import Context, ProtectionDomain, device_names
    except ImportError as error:
        raise MachineError(f"there is no libibverbs: {error}", remedy="apt-get install libibverbs1") from None
    names = device_names()
    if not names:
        raise MachineError(
            "there is no verbs device", remedy="hwrx rxe up NETDEV makes a SoftRoCE device; hwrx memory --guest has one"
        )
    context = Context(device or names[0])
    stack.callback(context.close)
    made = ProtectionDomain(context)
    stack.callback(made.close)
    return made


def register_buffer(
    stack: contextlib.ExitStack, pd: ProtectionDomain, buffer: PinnedBuffer, offset: int = 0, size: int | None = None,
    kind: str = "pinned",
) -> MemoryRegion:  # fmt: skip
    """Register `size` bytes of a buffer [all] for the device to write to, until the stack is closed.

    `kind`: of region, as `MemoryRegion` has them.
    """
    from cython_ext.verbs.verbs_path import ACCESS_LOCAL, ACCESS_WRITE
    from cython_ext.verbs.verbs_region import MemoryRegion

    length = buffer.size - offset if size is None else size
    region = MemoryRegion(pd, buffer, offset, length, ACCESS_LOCAL | ACCESS_WRITE, kind=kind)
    stack.callback(region.close)
    return region


def _registering(stack: contextlib.ExitStack, device: str | None) -> Take:
    pd = open_domain(stack, device)

    def take(size: int) -> PinnedBuffer:
        buffer = _kept(stack, PinnedBuffer(size, lock=False, fault_in=False, transparent=False))
        register_buffer(stack, pd, buffer)
        return buffer

    return take


def take_nic(stack: contextlib.ExitStack, nic: str | None, own: Collection[str]) -> VfioDevice:
    """Take a NIC from the kernel and open it through VFIO, until the stack is closed; MachineError where that fails."""
    if nic is None:
        raise no_nic()
    device, give_back = open_device(nic, access="vfio", own=own)
    stack.callback(give_back)
    stack.callback(device.close)
    if not isinstance(device, VfioDevice):
        raise MachineError(f"{device.address} was not opened through VFIO")
    return device


def no_nic() -> MachineError:
    """Why nothing is mapped for a NIC: none is taken that was not named."""
    return MachineError(
        "no NIC was named, and to be taken from the kernel for so long one must be",
        remedy="--nic NAME (hwrx nic list); hwrx memory --guest has one",
    )


def _mapping(stack: contextlib.ExitStack, nic: str | None, own: Collection[str]) -> Take:
    from cython_ext.nics.dma import DmaRegion

    device = take_nic(stack, nic, own)
    # VFIO's own pins are to be seen, so the memory is not locked besides; the device closes it
    return lambda size: device.share(DmaRegion(size, lock=False, fault_in=False, transparent=False))


def reserve_huge(undo: Undo, pages: int) -> None:
    """Reserve so many more huge pages of the default size, until `undo` is left; MachineError where that fails."""
    file = SYSCTL / "vm/nr_hugepages"
    try:
        before = int(file.read_text(encoding="utf-8"))
        undo.sysctl("vm/nr_hugepages", str(before + pages))
        now = int(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MachineError(f"this kernel has no huge pages to reserve: {error.strerror}") from None
    if now < before + pages:
        raise MachineError(
            f"{pages} huge pages could not be reserved: the kernel found {now - before} in one piece",
            remedy="free some memory, or reserve them at boot: hugepages=N on the kernel's command line",
        )
