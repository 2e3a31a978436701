"""The NE2000 (QEMU's `ne2k_pci`), driven by programmed I/O: taken from the kernel, its ports and interrupt opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from hwrx.errors import MachineError, UsageError
from hwrx.nic import pci

if TYPE_CHECKING:
    from cython_ext.nics.ne2k import Ne2kLink

IORESOURCE_IO = 0x100  # linux/ioport.h


def open_link(name: str, *, width: Literal[1, 2, 4] = 2, event: bool = False, force: bool = False) -> Ne2kLink:
    """Take an NE2000 (PCI address, network device or MAC) and return its link; closing that gives it back.

    width: bytes of a port access. event: wait by interrupt. It masters no bus, so neither an IOMMU nor huge pages are
    needed.
    """
    nic = pci.find_nic(name)
    if nic.known is None or nic.known.module != __name__:
        raise UsageError(f"{nic.address} is a {nic.model}, no NE2000", remedy="QEMU's -device ne2k_pci")
    held = pci.HeldNic(nic, pci.DRIVER_OF["uio"], force=force)
    try:
        return _open(nic.address, width, event, held)
    except BaseException:
        held.give_back()
        raise


def _open(address: str, width: int, event: bool, held: pci.HeldNic) -> Ne2kLink:
    try:
        from cython_ext.nics.ne2k import Ne2kLink
    except ImportError:
        raise MachineError("programmed I/O is built for x86 only") from None
    # as `hwrx.nic` has it
    from hwrx.nic.uio import UioDevice

    class Card(UioDevice):
        """Gives the NIC back when it is closed, if it was taken here."""

        def close(self) -> None:
            super().close()
            held.give_back()

    card = Card(address, memory=False)
    try:
        return Ne2kLink(card, open_ports(address), width=width, interrupt=card.interrupt("intx") if event else None)
    except BaseException:
        card.close()
        raise


def open_ports(address: str) -> int:
    """The first I/O port of BAR 0; MachineError where that is no port region."""
    first = (pci.DEVICES / address / "resource").read_text(encoding="utf-8").splitlines()[0].split()
    start, flags = int(first[0], 16), int(first[2], 16)
    if not flags & IORESOURCE_IO or not start:
        raise MachineError(f"BAR 0 of {address} has no I/O ports")
    return start
