"""What a driver needs of a PCI device, whoever gives it: VFIO, UIO, or a model in a test."""

from __future__ import annotations

import abc
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from hwrx.errors import MachineError
from hwrx.nic.registers import PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY

if TYPE_CHECKING:
    from cython_ext.nics.dma import DmaRegion
    from cython_ext.nics.interrupt import Interrupt
    from cython_ext.nics.mmio import Bar

InterruptKind = Literal["msix", "msi", "intx"]


class Device(abc.ABC):
    """One PCI device in the hands of this process, until `close()`, which is harmless when called twice.

    A device that masters the bus reads and writes the memory of its regions at any time: stop it before a region is
    detached. `close()` takes mastering away first, whatever the driver did.
    """

    address: str  # 0000:00:04.0
    access: str  # vfio, uio, …: for the manifest

    @property
    @abc.abstractmethod
    def registers(self) -> Bar:
        """BAR 0, mapped."""

    @abc.abstractmethod
    def dma(self, size: int) -> DmaRegion:
        """Pinned memory of at least `size` bytes that the device reaches; closed with the device."""

    def share(self, region: DmaRegion) -> DmaRegion:
        """Map memory for the device, which closes it. MachineError if no IOMMU lets its pages stand side by side."""
        raise MachineError(
            f"{self.address} sees physical addresses ({self.access}): pages stand for it where they are in memory",
            remedy="VFIO behind an IOMMU (intel_iommu=on), which lays pages out as one likes",
        )

    @abc.abstractmethod
    def read_config(self, offset: int, size: int) -> int:
        """A little-endian number of `size` bytes from configuration space."""

    @abc.abstractmethod
    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write one."""

    @property
    @abc.abstractmethod
    def interrupt_kinds(self) -> tuple[InterruptKind, ...]:
        """What `interrupt` can give, best first."""

    @abc.abstractmethod
    def interrupt(self, kind: InterruptKind) -> Interrupt:
        """Vector 0 of a kind as a file descriptor; the one taken before is given back."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Reset the device the way PCI offers. Whatever a driver set up is gone."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop mastering, detach every region, let the device go."""

    @property
    def bus_master(self) -> bool:
        """Whether the device may read and write memory."""
        return bool(self.read_config(PCI_COMMAND, 2) & PCI_COMMAND_MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        command = self.read_config(PCI_COMMAND, 2) & ~PCI_COMMAND_MASTER
        self.write_config(PCI_COMMAND, 2, command | (PCI_COMMAND_MASTER | PCI_COMMAND_MEMORY if on else 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HeldDevice(Device):
    """A device that is held by descriptors, regions and an interrupt, all of which `close()` gives back in order.

    A subclass opens with `_descriptor` and sets `_ready` when configuration space can be reached.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._opened = ExitStack()
        self._regions: list[DmaRegion] = []
        self._interrupt: Interrupt | None = None
        self._ready = False

    def _descriptor(self, path: str | Path) -> int:
        """Open a file for as long as the device is held."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._opened.callback(os.close, descriptor)
        return descriptor

    def _release_interrupt(self) -> None:
        """Give back the interrupt that was taken, if any."""
        if self._interrupt is not None:
            self._interrupt.close()
            self._interrupt = None

    def close(self) -> None:
        """Stop mastering, detach all regions, give everything back; memory under views stays for them."""
        try:
            if self._ready:
                self._ready = False
                self.bus_master = False
                self._release_interrupt()
                for region in self._regions:
                    region.detach()
                    if not region.exports:
                        region.close()
                self._regions.clear()
        finally:
            self._opened.close()
