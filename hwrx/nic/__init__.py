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
from collections.abc import Callable, Collection
from types import FrameType
from typing import Literal, Unpack

from hwrx.errors import MachineError, UsageError
from hwrx.nic import pci
from hwrx.nic.device import Device
from hwrx.nic.driver import Driver, Options
from hwrx.nic.models import MODELS

__all__ = ["Access", "Driver", "Options", "open_device", "open_nic"]

Access = Literal["auto", "vfio", "uio"]

_open: weakref.WeakSet[Driver] = weakref.WeakSet()


def open_device(
    name: str, *, access: Access = "auto", force: bool = False, own: Collection[str] = ()
) -> tuple[Device, Callable[[], None]]:
    """Take a NIC (PCI address, network device or MAC) from the kernel and open it.

    access: `vfio` needs an IOMMU, `uio` needs root and huge pages; `auto` takes VFIO where there is an IOMMU, or what
    the NIC is bound to already. force, own: see `pci.take_nic`. Returns the device, and what gives the NIC back, if it
    was taken here: the caller calls it when the device is closed.
    """
    nic = pci.find_nic(name)
    if access == "auto":
        access = "uio" if nic.driver == "uio_pci_generic" or nic.group is None else "vfio"
    held = pci.HeldNic(nic, pci.DRIVER_OF[access], force=force, own=own)
    try:
        return _device(nic.address, access), held.give_back
    except BaseException:
        held.give_back()
        raise


def _device(address: str, access: Access) -> Device:
    if access == "vfio":
        # an emulated guest starts with the one way to a device that it has
        from hwrx.nic.vfio import VfioDevice

        return VfioDevice(address)
    # an emulated guest starts with the one way to a device that it has
    from hwrx.nic.uio import UioDevice

    return UioDevice(address)


def open_nic(
    name: str, *, access: Access = "auto", force: bool = False, own: Collection[str] = (), **options: Unpack[Options]
) -> Driver:
    """Take a NIC from the kernel and bring it up; `close()`, or the end of a `with`, gives it back.

    So do the end of the process, an exception and SIGTERM (unless the program handles that itself); after SIGKILL the
    process's keeper does (`hwrx.host.undo`).

    :param name: PCI address, network device or MAC address.
    :param access: as for `open_device`, and so are `force` and `own`.
    :param options: how it is brought up: see `hwrx.nic.driver.Options`.
    :return: the driver of its model (`hwrx.nic.models`): an `E1000e` for an 82574L.
    :raises MachineError: if it is in use, or without what the access needs.
    :raises UsageError: if hwrx has no driver for it that works by DMA.
    """
    nic = pci.find_nic(name)
    if nic.known is None or nic.known.works_by != "DMA":
        driven = " or ".join(model.name for model in MODELS if model.works_by == "DMA")
        raise UsageError(
            f"{nic.address} is a {nic.model}, which this driver does not know",
            remedy=f"one of these: {driven} (QEMU's -device e1000e is an 82574L)",
        )
    device, give_back = open_device(name, access=access, force=force, own=own)
    try:
        opened: Driver = nic.known.driver.open_driver(device, **options)
    except BaseException:
        device.close()
        give_back()
        raise
    opened.at_close(give_back)
    _watch(opened)
    return opened


def _watch(nic: Driver) -> None:
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
