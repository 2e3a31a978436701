"""NICs that hwrx drives itself, from user space: packets by DMA straight into the user's pinned buffers.

    with hwrx.nic.open_nic("0000:00:04.0") as nic:
        for packet in nic.receive(timeout=10):
            print(len(packet), packet.data[:14])   # a NumPy view of the NIC's own buffer

The kernel loses the NIC for so long: its network device disappears, and comes back when the block ends.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import weakref
from collections.abc import Collection
from types import FrameType
from typing import Literal

from hwrx.errors import MachineError, UsageError
from hwrx.nic import pci
from hwrx.nic.device import Device, InterruptKind
from hwrx.nic.e1000e import E1000e

__all__ = ["Access", "E1000e", "open_device", "open_nic"]

Access = Literal["auto", "vfio", "uio"]

_open: weakref.WeakSet[E1000e] = weakref.WeakSet()


def open_device(
    name: str, *, access: Access = "auto", force: bool = False, own: Collection[str] = ()
) -> tuple[Device, bool]:
    """Take a NIC (PCI address, network device or MAC) from the kernel and open it.

    access: `vfio` needs an IOMMU, `uio` needs root and huge pages; `auto` takes VFIO where there is an IOMMU, or what
    the NIC is bound to already. force, own: see `pci.take`. Returns the device, and whether it was taken here (then
    `pci.give_back` is the caller's duty).
    """
    nic = pci.find_nic(name)
    if access == "auto":
        access = "uio" if nic.driver == "uio_pci_generic" or nic.group is None else "vfio"
    taken = nic.driver not in pci.USER_DRIVERS
    bound = pci.take_nic(nic, pci.DRIVER_OF[access], force=force, own=own)
    try:
        return _device(bound.address, access), taken
    except BaseException:
        if taken:
            pci.give_back(bound.address)
        raise


def _device(address: str, access: Access) -> Device:
    if access == "vfio":
        from hwrx.nic.vfio import VfioDevice

        return VfioDevice(address)
    from hwrx.nic.uio import UioDevice

    return UioDevice(address)


def open_nic(
    name: str,
    *,
    access: Access = "auto",
    force: bool = False,
    own: Collection[str] = (),
    rx: int = 512,
    tx: int = 512,
    buffer: int = 2048,
    promiscuous: bool = False,
    long_frames: bool = False,
    guard: bool = False,
    checksums: bool = False,
    interrupt: InterruptKind | Literal["auto"] | None = None,
    throttle: float = 0.0,
    link_wait: float = 5.0,
) -> E1000e:
    """Take an 82574L from the kernel and bring it up; `close()`, or the end of a `with`, gives it back.

    So do the end of the process, an exception and SIGTERM (unless the program handles that itself); after SIGKILL
    `hwrx nic unbind` does. Arguments are those of `open_device` and `E1000e`. MachineError for a NIC in use, or without
    what the access needs; UsageError for one that hwrx has no driver for.
    """
    nic = pci.find_nic(name)
    if nic.model == "ne2k_pci" or not nic.supported:
        raise UsageError(
            f"{nic.address} is a {nic.model}, which this driver does not know",
            remedy="an Intel 82574L, or QEMU's -device e1000e",
        )
    device, taken = open_device(name, access=access, force=force, own=own)
    try:
        opened = E1000e(
            device,
            rx=rx,
            tx=tx,
            buffer=buffer,
            promiscuous=promiscuous,
            long_frames=long_frames,
            guard=guard,
            checksums=checksums,
            interrupt=interrupt,
            throttle=throttle,
            link_wait=link_wait,
        )
    except BaseException:
        device.close()
        if taken:
            pci.give_back(nic.address)
        raise
    if taken:
        opened.at_close(lambda: pci.give_back(nic.address))
    _watch(opened)
    return opened


def _watch(nic: E1000e) -> None:
    if not _open:
        atexit.register(_close_all)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminated)
    _open.add(nic)


def _close_all() -> None:
    for nic in list(_open):
        try:
            nic.close()
        except MachineError as error:
            sys.stderr.write(f"hwrx: {error}\n")


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
