"""An 82574L in software: registers with their side effects, memory behind an IOMMU, and the steps of its two units.

It does what the datasheet says, not what the driver expects. An address that nothing is mapped at is refused, as by an
IOMMU, and kept in `faults`.
"""

from __future__ import annotations

import mmap
import struct

from cython_ext.nics.dma import DmaRegion
from cython_ext.nics.interrupt import Interrupt
from cython_ext.nics.mmio import Bar
from hwrx.errors import MachineError
from hwrx.nic import registers as reg
from hwrx.nic.device import Device
from hwrx.nic.registers import PCI_COMMAND, PCI_COMMAND_MASTER

BAR_SIZE = 128 * 1024
MAC = "52:54:00:12:34:56"
IOVA_BASE = 0x1_0000_0000  # above 4 GiB: an address that lost its upper half is one that nothing is mapped at
BY_NAME = {name: offset for name, (offset, _) in reg.STATISTICS.items()}
PAGE = 4096

STATION = bytes.fromhex(MAC.replace(":", ""))
OTHER = bytes.fromhex("525400ffffff")


def frame(number, size=64, destination=STATION):
    """A frame that carries its number."""
    return destination + OTHER + b"\x88\xb5" + number.to_bytes(4, "little") + bytes(size - 18)


def number_of(data):
    """The number that a frame carries."""
    return int.from_bytes(bytes(data[14:18]), "little")


class ModelBar(Bar):
    """Registers whose reads and writes have effects. The ring's own stores (tails, IMS) go past this, into memory."""

    def attach(self, nic):
        self.nic = nic

    def read(self, offset):
        if self.nic.gone:
            return 0xFFFFFFFF
        self.nic.log.append(("read", offset))
        value = super().read(offset)
        if offset == reg.CTRL and value & reg.CTRL_RST:
            self.nic.resetting -= 1
            if self.nic.resetting <= 0:
                self.nic.poke(reg.CTRL, value & ~reg.CTRL_RST)
        if offset == reg.ICR or offset in self.nic.counters:
            self.nic.poke(offset, 0)
        return value

    def write(self, offset, value):
        self.nic.log.append(("write", offset, value))
        if offset == reg.CTRL:
            if value & reg.CTRL_RST:
                self.nic.reset_registers()
                self.nic.resetting = 3
            status = self.nic.peek(reg.STATUS)
            if value & reg.CTRL_GIO_MASTER_DISABLE:
                status &= ~reg.STATUS_GIO_MASTER_ENABLE
            else:
                status |= reg.STATUS_GIO_MASTER_ENABLE
            if value & reg.CTRL_SLU and self.nic.cable:
                status |= reg.STATUS_LU
            self.nic.poke(reg.STATUS, status)
        elif offset == reg.IMC:
            self.nic.poke(reg.IMS, self.nic.peek(reg.IMS) & ~value)
            return
        elif offset == reg.RDT and not self.nic.peek(reg.RCTL) & reg.RCTL_EN:
            value = 0  # 4.6.5: the tail counts once the receiver is enabled
        super().write(offset, value)


class Model(Device):
    """The device. `receive` and `transmit` are one step each of its units; the test decides when they happen."""

    access = "model"

    def __init__(self):
        self.address = "0000:00:04.0"
        self.log = []
        self.faults = []  # addresses that the IOMMU refused
        self.sent = []
        self.regions = []
        self.cable = True
        self.gone = False
        self.mapped = True
        self.resetting = 0
        self.command = 0
        self.closed = False
        self.counters = set(BY_NAME.values()) | {BY_NAME[name] + 4 for name in reg.WIDE_STATISTICS}
        self.memory = mmap.mmap(-1, BAR_SIZE)
        self._bar = ModelBar(self.memory)
        self._bar.attach(self)
        self._next_iova = IOVA_BASE
        self.eventfd = None
        self.reset_registers()

    # --- what a driver sees ---

    @property
    def registers(self):
        return self._bar

    def dma(self, size):
        return self.share(DmaRegion(size))

    def share(self, region):
        region.mapped([self._next_iova], region.size, lambda gone: self.regions.remove(gone))
        # a hole after each region, so that what runs over its end is noticed
        self._next_iova += region.size + PAGE
        self.regions.append(region)
        return region

    def read_config(self, offset, size):
        assert offset == PCI_COMMAND
        return self.command

    def write_config(self, offset, size, value):
        assert offset == PCI_COMMAND
        self.command = value

    @property
    def interrupt_kinds(self):
        return ("msix", "msi", "intx")

    def interrupt(self, kind):
        import os

        if kind not in self.interrupt_kinds:
            raise MachineError(f"no {kind}")
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        return Interrupt(kind, self.eventfd, on_close=lambda: os.close(self.eventfd))

    def reset(self):
        self.reset_registers()

    def close(self):
        self.command &= ~PCI_COMMAND_MASTER
        for region in list(self.regions):
            region.detach()
        self.closed = True

    # --- what it is ---

    def peek(self, offset):
        return struct.unpack_from("<I", self.memory, offset)[0]

    def poke(self, offset, value):
        struct.pack_into("<I", self.memory, offset, value & 0xFFFFFFFF)

    def count(self, name, by=1):
        self.poke(BY_NAME[name], self.peek(BY_NAME[name]) + by)

    def reset_registers(self):
        self.memory[:] = bytes(BAR_SIZE)
        mac = bytes.fromhex(MAC.replace(":", ""))
        self.poke(reg.RAL0, int.from_bytes(mac[:4], "little"))
        self.poke(reg.RAH0, int.from_bytes(mac[4:], "little") | reg.RAH_AV)
        self.poke(reg.STATUS, reg.STATUS_FD | 2 << 6 | reg.STATUS_GIO_MASTER_ENABLE)

    def reach(self, iova, size):
        """Where the NIC finds `size` bytes at an I/O address: (region, offset); None, and a fault, where nothing is."""
        for region in self.regions:
            at = iova - region.iova()
            if self.mapped and at >= 0 and at + size <= region.size:
                return region, at
        self.faults.append(iova)
        return None

    def owned(self):
        """The receive descriptors that are the NIC's: [RDH, RDT)."""
        count = self.peek(reg.RDLEN) // 16
        head, tail = self.peek(reg.RDH), self.peek(reg.RDT)
        return [(head + i) % count for i in range((tail - head) % count)] if count else []

    def ring(self, low, index):
        base = self.peek(low) | self.peek(low + 4) << 32
        return self.reach(base + 16 * index, 16)

    # --- its receive unit ---

    def receive(self, frame, errors=0):
        """A frame (without CRC) arrives. Returns the descriptors that it used, [] where it was not taken."""
        control = self.peek(reg.RCTL)
        if not control & reg.RCTL_EN or not self.cable:
            return []
        if not self.command & PCI_COMMAND_MASTER:
            return []
        if not self.filter(frame, control):
            return []
        # 1518 with the CRC; without LPE longer ones are dropped
        if len(frame) + 4 > 1522 and not control & reg.RCTL_LPE:
            self.count("ROC")
            return []
        size = next(size for size, bits in reg.RCTL_BUFFER.items() if control & (3 << 16 | reg.RCTL_BSEX) == bits)
        pieces = [frame[at : at + size] for at in range(0, len(frame), size)]
        owned = self.owned()
        if len(owned) < len(pieces):
            self.count("RNBC")
            self.count("MPC")
            return []
        count = self.peek(reg.RDLEN) // 16
        for number, piece in enumerate(pieces):
            index = owned[number]
            found = self.ring(reg.RDBAL, index)
            region, at = found
            address = struct.unpack_from("<Q", region, at)[0]
            buffer = self.reach(address, size)
            if buffer is not None:
                memoryview(buffer[0])[buffer[1] : buffer[1] + len(piece)] = piece
            last = number == len(pieces) - 1
            # done is reported whether the buffer was reached or not, as a NIC behind an IOMMU does
            struct.pack_into("<HHBBH", region, at + 8, len(piece), 0, 0x01 | last << 1, errors if last else 0, 0)
            self.poke(reg.RDH, (index + 1) % count)
        self.count("GPRC")
        self.fire(reg.INT_RXQ0 | reg.INT_RXT0)
        return owned[: len(pieces)]

    def filter(self, frame, control):
        destination = frame[:6]
        if destination == b"\xff" * 6:
            return bool(control & reg.RCTL_BAM)
        if control & (reg.RCTL_MPE if destination[:1] and destination[0] & 1 else reg.RCTL_UPE):
            return True
        for entry in range(reg.RECEIVE_ADDRESSES):
            high = self.peek(reg.RAH0 + 8 * entry)
            station = self.peek(reg.RAL0 + 8 * entry).to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little")
            if high & reg.RAH_AV and station == destination:
                return True
        return False

    def fire(self, causes):
        import os

        self.poke(reg.ICR, self.peek(reg.ICR) | causes)
        if self.peek(reg.IMS) & causes and self.eventfd is not None:
            self.poke(reg.IMS, self.peek(reg.IMS) & ~self.peek(reg.EIAC))
            os.eventfd_write(self.eventfd, 1)

    # --- its transmit unit ---

    def transmit(self, most=1 << 30):
        """Send up to `most` posted frames; returns them."""
        if not self.peek(reg.TCTL) & reg.TCTL_EN or not self.command & PCI_COMMAND_MASTER:
            return []
        count = self.peek(reg.TDLEN) // 16
        frames, pieces = [], []
        while self.peek(reg.TDH) != self.peek(reg.TDT) and len(frames) < most:
            head = self.peek(reg.TDH)
            region, at = self.ring(reg.TDBAL, head)
            address, command = struct.unpack_from("<QQ", region, at)
            size = command & 0xFFFF
            found = self.reach(address, size)
            if found is not None:
                pieces.append(bytes(memoryview(found[0])[found[1] : found[1] + size]))
            # 7.2.10.1.4: the frame is whole with the descriptor that has EOP; DD is reported where RS asks for it
            if command >> 24 & 0x01:
                if pieces:
                    frames.append(b"".join(pieces))
                pieces = []
                self.count("GPTC")
            if command >> 24 & 0x08:
                struct.pack_into("<Q", region, at + 8, command | 1 << 32)
            self.poke(reg.TDH, (head + 1) % count)
        self.sent += frames
        return frames
