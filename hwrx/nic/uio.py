"""A PCI device through uio_pci_generic: for machines without an IOMMU.

Nothing stands between the device and memory here: a wrong address in a descriptor overwrites whatever is there. Regions
are huge pages, which stay where they are, and the device is told their physical addresses from /proc/self/pagemap.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from cython_ext.nics.dma import DmaRegion
from cython_ext.nics.interrupt import Interrupt
from cython_ext.nics.mmio import Bar
from hwrx.errors import MachineError
from hwrx.nic.device import HeldDevice, InterruptKind
from hwrx.nic.registers import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE


class UioDevice(HeldDevice):
    """The device at `address` (0000:00:04.0), which is bound to uio_pci_generic. Needs root and huge pages.

    memory: whether BAR 0 is memory, to be mapped, and the device is to master the bus; else it has ports.
    """

    access = "uio"

    def __init__(self, address: str, *, memory: bool = True) -> None:
        super().__init__(address)
        self._path = Path("/sys/bus/pci/devices") / address
        self._registers: Bar | None = None
        try:
            self._config = self._descriptor(self._path / "config")
            if memory:
                refuse_translation(address)
                bar = self._descriptor(self._path / "resource0")
                mapped = mmap.mmap(bar, os.fstat(bar).st_size)
                self._opened.callback(mapped.close)
                self._registers = Bar(mapped)
                self._opened.callback(self._registers.close)
            self._ready = True
        except OSError as error:
            self.close()
            raise MachineError(
                f"cannot open {address}: {error.strerror} ({error.filename})", remedy="run as root"
            ) from error

    @property
    def registers(self) -> Bar:
        """BAR 0, through sysfs. MachineError where it was not to be mapped."""
        if self._registers is None:
            raise MachineError(f"BAR 0 of {self.address} is not mapped: it has ports")
        return self._registers

    def dma(self, size: int) -> DmaRegion:
        """Huge pages; contiguous for the device within each of them."""
        region = DmaRegion(size, huge=True)
        region.mapped(region.physical_pages(), region.page_size)
        self._regions.append(region)
        return region

    def read_config(self, offset: int, size: int) -> int:
        """Through sysfs."""
        return int.from_bytes(os.pread(self._config, size, offset), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Through sysfs."""
        os.pwrite(self._config, value.to_bytes(size, "little"), offset)

    @property
    def interrupt_kinds(self) -> tuple[InterruptKind, ...]:
        """INTx alone: uio_pci_generic has no MSI, which writes to memory."""
        return ("intx",)

    def interrupt(self, kind: InterruptKind) -> Interrupt:
        """The device file, readable once it has fired. The kernel sets INTX_DISABLE when it fires; we clear it."""
        if kind != "intx":
            raise MachineError(f"uio_pci_generic has no {kind.upper()}", remedy="use intx, poll, or VFIO")
        self._release_interrupt()
        names = sorted((self._path / "uio").glob("uio*"))
        if not names:
            raise MachineError(
                f"{self.address} is not bound to uio_pci_generic",
                remedy=f"hwrx nic bind --access uio {self.address}",
            )
        descriptor = os.open(f"/dev/{names[0].name}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        command = self.read_config(PCI_COMMAND, 2) & ~PCI_COMMAND_INTX_DISABLE
        # Both bytes of the register, the lower as it is by then (it has bus mastering in it): QEMU looks at
        # INTX_DISABLE only when the lower one is written (pci_default_write_config), and else loses count of the line
        unmask = (self._config, command.to_bytes(2, "little"), PCI_COMMAND)
        self._interrupt = Interrupt("intx", descriptor, unmask=unmask, keeps=1, on_close=lambda: os.close(descriptor))
        self._interrupt.rearm()
        return self._interrupt

    def _release_interrupt(self) -> None:
        if self._interrupt is not None:
            self.write_config(PCI_COMMAND, 2, self.read_config(PCI_COMMAND, 2) | PCI_COMMAND_INTX_DISABLE)
        super()._release_interrupt()

    def reset(self) -> None:
        """The reset file in sysfs; MachineError where the device has none."""
        try:
            (self._path / "reset").write_text("1")
        except OSError as error:
            raise MachineError(f"{self.address} offers no reset: {error.strerror}") from error


def refuse_translation(address: str) -> None:
    """MachineError where an IOMMU translates for the device: it would refuse physical addresses, or misread them."""
    kind = Path("/sys/bus/pci/devices") / address / "iommu_group/type"
    if kind.exists() and kind.read_text(encoding="utf-8").strip() != "identity":
        raise MachineError(
            f"an IOMMU translates the addresses of {address} ({kind.read_text(encoding='utf-8').strip()})",
            remedy="use VFIO (access='vfio'); or boot with iommu=pt",
        )
