"""A PCI device through VFIO: container, group, device, mappings, interrupts.

The IOMMU lets the device reach what was mapped for it and nothing else, so a driver's mistake cannot hurt the machine.
The device must be bound to vfio-pci before (`hwrx.nic.pci`).
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from cython_ext.nics import vfio
from cython_ext.nics.dma import DmaRegion
from cython_ext.nics.interrupt import Interrupt
from cython_ext.nics.mmio import Bar
from hwrx.errors import MachineError
from hwrx.nic.device import HeldDevice, InterruptKind
from hwrx.nic.iova import IovaAllocator

_INDEX = {"intx": vfio.INTX, "msi": vfio.MSI, "msix": vfio.MSIX}


class VfioDevice(HeldDevice):
    """The device at `address` (0000:00:04.0), which is bound to vfio-pci. Opening it resets it.

    MachineError, with what to do, where VFIO is missing, the group has other devices in use, or somebody else has it.
    """

    access = "vfio"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        try:
            self._open()
            self._ready = True
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._container = self._descriptor("/dev/vfio/vfio")
        group = self._descriptor(f"/dev/vfio/{iommu_group(self.address)}")
        try:
            vfio.check_container(self._container)
            if not vfio.group_is_viable(group):
                raise MachineError(
                    f"the IOMMU group of {self.address} has devices that other drivers use:"
                    f" {', '.join(group_companions(self.address)) or 'none that sysfs shows'}",
                    remedy="all devices of a group go to one process: bind those to vfio-pci too, or use another slot",
                )
            vfio.join(group, self._container)
            self._device = vfio.device(group, self.address)
            self._opened.callback(os.close, self._device)
            _, self._config, _ = vfio.region(self._device, vfio.CONFIG)
            page_sizes, ranges, self.mappings_left = vfio.iommu(self._container)
            size, offset, mappable = vfio.region(self._device, 0)
        except OSError as error:
            raise _refused(self.address, error) from error
        self.iova = IovaAllocator(ranges, page_sizes)
        self._bar_memory: mmap.mmap | None = None
        if mappable:
            self._bar_memory = mmap.mmap(self._device, size, offset=offset)
            self._opened.callback(self._bar_memory.close)
            self._registers = Bar(self._bar_memory)
            self._opened.callback(self._registers.close)

    def _descriptor(self, path: str | Path) -> int:
        try:
            return super()._descriptor(path)
        except OSError as error:
            raise _refused(self.address, error) from error

    @property
    def registers(self) -> Bar:
        """BAR 0. MachineError where it is no memory (an I/O port region is read and written with `port`)."""
        if self._bar_memory is None:
            raise MachineError(f"BAR 0 of {self.address} cannot be mapped: it is no memory")
        return self._registers

    def dma(self, size: int) -> DmaRegion:
        """Pinned memory, one contiguous range of I/O virtual addresses."""
        return self.share(DmaRegion(size))

    def share(self, region: DmaRegion) -> DmaRegion:
        """Map memory for the device, which closes it; the kernel pins its pages, and faults in those not there yet."""
        at = self.iova.take(region.size)
        try:
            vfio.map_dma(self._container, region, at)
        except OSError as error:
            self.iova.give(at)
            raise MachineError(
                f"cannot map {region.size} bytes for {self.address}: {error.strerror}",
                remedy="raise the limit of locked memory (ulimit -l), which counts DMA mappings too"
                if error.errno == errno.ENOMEM
                else "",
            ) from error
        region.mapped([at], region.size, self._unmap)
        self._regions.append(region)
        return region

    def _unmap(self, region: DmaRegion) -> None:
        at = region.iova()
        vfio.unmap_dma(self._container, at, self.iova.give(at))

    def read_config(self, offset: int, size: int) -> int:
        """Through VFIO's configuration region, in which some bits are virtual."""
        return int.from_bytes(os.pread(self._device, size, self._config + offset), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Through VFIO's configuration region, which refuses what could hurt others."""
        os.pwrite(self._device, value.to_bytes(size, "little"), self._config + offset)

    @property
    def interrupt_kinds(self) -> tuple[InterruptKind, ...]:
        """Those of which the device has at least one."""
        kinds: tuple[InterruptKind, ...] = ("msix", "msi", "intx")
        return tuple(kind for kind in kinds if vfio.interrupts(self._device, _INDEX[kind]))

    def interrupt(self, kind: InterruptKind) -> Interrupt:
        """An eventfd that the kernel writes; INTx is masked when it fires, and another eventfd unmasks it."""
        if kind not in self.interrupt_kinds:
            raise MachineError(
                f"{self.address} has no {kind.upper()} interrupt",
                remedy=f"it has {', '.join(self.interrupt_kinds) or 'none: poll'}",
            )
        self._release_interrupt()
        fired = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        owned = [fired]
        unmask = None
        try:
            vfio.enable(self._device, _INDEX[kind], fired)
            if kind == "intx":
                owned.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
                vfio.unmask_by(self._device, vfio.INTX, owned[1])
                unmask = (owned[1], (1).to_bytes(8, "little"), -1)
        except OSError as error:
            for descriptor in owned:
                os.close(descriptor)
            raise _refused(self.address, error) from error

        def close() -> None:
            vfio.disable(self._device, _INDEX[kind])
            for descriptor in owned:
                os.close(descriptor)

        self._interrupt = Interrupt(kind, fired, unmask=unmask, on_close=close)
        return self._interrupt

    def reset(self) -> None:
        """VFIO_DEVICE_RESET: function level reset where the device has it. MachineError where it has none."""
        if not vfio.can_reset(self._device):
            raise MachineError(f"{self.address} offers no reset")
        try:
            vfio.reset(self._device)
        except OSError as error:
            raise _refused(self.address, error) from error


def iommu_group(address: str) -> str:
    """The number of the device's IOMMU group; MachineError where there is none."""
    link = Path("/sys/bus/pci/devices") / address / "iommu_group"
    if not link.exists():
        raise MachineError(
            f"{address} is behind no IOMMU",
            remedy="boot with intel_iommu=on (AMD: amd_iommu=on) where the machine has one; or use access='uio'",
        )
    return link.resolve().name


def group_companions(address: str) -> list[str]:
    """Other devices of the IOMMU group that a driver other than vfio-pci holds, as `address (driver)`."""
    held = []
    for other in sorted((Path("/sys/bus/pci/devices") / address / "iommu_group/devices").iterdir()):
        driver = other / "driver"
        if other.name != address and driver.exists() and driver.resolve().name not in ("vfio-pci", "pcieport"):
            held.append(f"{other.name} ({driver.resolve().name})")
    return held


def _refused(address: str, error: OSError) -> MachineError:
    what = error.strerror or str(error)
    if error.filename == "/dev/vfio/vfio" and error.errno in (errno.ENOENT, errno.ENODEV):
        return MachineError("there is no VFIO (/dev/vfio/vfio)", remedy="modprobe vfio-pci")
    if error.errno in (errno.EACCES, errno.EPERM):
        return MachineError(
            f"VFIO refused {address}: {what}",
            remedy="run as root, or give yourself the group's file: chown $USER /dev/vfio/<group>",
        )
    if error.errno == errno.EBUSY:
        return MachineError(f"{address} is in use by another process ({what})", remedy="end that process first")
    if error.filename is not None and error.errno == errno.ENOENT:
        return MachineError(
            f"{address} is not bound to vfio-pci ({error.filename} is missing)", remedy=f"hwrx nic bind {address}"
        )
    return MachineError(f"VFIO refused {address}: {what}")
