"""The driver of the Intel 82574L (QEMU's `e1000e`): bring-up, link, filters, statistics, reset, and what went wrong.

Steps stand in the order of the datasheet (82574 GbE Controller Family, 317694), each with its section. Packets do not
pass through here but through the rings (`cython_ext/nics/e1000e_ring.pyx`, `e1000e_tx.pyx`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack

from cython_ext.nics.e1000e_ring import Packet, RxRing
from cython_ext.nics.e1000e_tx import TxRing
from hwrx.errors import MachineError, PathError, UsageError
from hwrx.nic import registers as reg
from hwrx.nic.device import Device, InterruptKind
from hwrx.nic.driver import Driver, Options, Traffic

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from cython_ext.nics.e1000e_link import RingLink
    from cython_ext.nics.e1000e_message import MessageLink
    from cython_ext.nics.mmio import Bar

GONE = 0xFFFFFFFF  # what every register of a device reads as that does not answer
SILENCE = 0.1  # seconds without a packet after which the device is asked whether it still works
RESET_LIMIT = 1.0
ITR_STEP_NS = 256


class E1000e:
    """An 82574L that this process drives, from construction until `close()`.

    device: from VFIO, UIO or a model; closed by `close()`.
    rx, tx: descriptors, powers of two from 64 to 4096. buffer: bytes of a receive buffer, 256 to 16384.
    promiscuous: take frames for others too. long_frames: take more than 1522 bytes (they must fit one buffer to be
    delivered). guard: see RxRing. checksums: the NIC looks at those of IPv4, UDP and TCP, and says so in each packet's
    status and errors. interrupt: msix, msi or intx, or auto for the best there is; None: poll. throttle: microseconds
    between interrupts. link_wait: seconds to wait for the link; its absence is no error.
    """

    def __init__(
        self,
        device: Device,
        *,
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
    ) -> None:
        if buffer not in reg.RCTL_BUFFER:
            raise UsageError(
                f"the 82574 has no receive buffers of {buffer} bytes",
                remedy=f"one of {', '.join(map(str, sorted(reg.RCTL_BUFFER)))}",
            )
        self.device = device
        self.bar = device.registers
        self.promiscuous = promiscuous
        self.long_frames = long_frames
        self.checksums = checksums
        self._totals = dict.fromkeys(reg.STATISTICS, 0)
        self._on_close: list[Callable[[], object]] = []
        self.closed = False
        try:
            self._buffer = buffer
            self.rx = RxRing(self.bar, device.dma(rx * 16), device.dma(rx * buffer), rx, buffer, guard=guard)
            # one buffer size for sending: any frame of up to 2 KiB, or as long as those that are received
            longest = max(2048, buffer) if long_frames else 2048
            self.tx = TxRing(self.bar, device.dma(tx * 16), device.dma(tx * longest), tx, longest)
            self._interrupt_kind = device.interrupt_kinds[0] if interrupt == "auto" else interrupt
            self._throttle = throttle
            self._extra_addresses: list[str] = []
            self.start()
            self.wait_for_link(link_wait)
        except BaseException:
            self.close()
            raise

    # --- bring-up --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Reset the NIC and bring it up from nothing; frames that were in the rings are lost.

        Also the way back after somebody else reset it.
        """
        self.device.bus_master = True
        self._reset()
        self._general()
        self._clear_statistics()
        self._receive_unit()
        self._transmit_unit()
        self._interrupts()

    def _reset(self) -> None:
        """4.6.1 mask interrupts, 4.6.2 global reset."""
        self._mask()
        if self.bar.read(reg.STATUS) == GONE:
            raise MachineError(
                f"{self.device.address} does not answer: every register reads 0xffffffff",
                remedy="look whether the device is still there (lspci) and its memory decoding on",
            )
        # 10.2.2.1: stop mastering before a reset (3.1.3.10); the reset clears the request in any case
        self.bar.write(reg.CTRL, self.bar.read(reg.CTRL) | reg.CTRL_GIO_MASTER_DISABLE)
        self._until(lambda: not self.bar.read(reg.STATUS) & reg.STATUS_GIO_MASTER_ENABLE, 0.01)
        self.bar.write(reg.CTRL, self.bar.read(reg.CTRL) & ~reg.CTRL_GIO_MASTER_DISABLE | reg.CTRL_RST)
        time.sleep(10e-6)  # 10.2.2.1: no access for a microsecond
        if not self._until(lambda: not self.bar.read(reg.CTRL) & reg.CTRL_RST, RESET_LIMIT):
            raise MachineError(f"{self.device.address} did not come out of its reset in {RESET_LIMIT} s")
        self._mask()

    def _mask(self) -> None:
        self.bar.write(reg.IMC, reg.INT_ALL)
        self.bar.read(reg.ICR)

    def _general(self) -> None:
        """4.6.3: let the PHY decide speed and duplex, and set the link up."""
        forced = reg.CTRL_ILOS | reg.CTRL_FRCSPD | reg.CTRL_FRCDPLX | reg.CTRL_ASDE | reg.CTRL_PHY_RST
        control = self.bar.read(reg.CTRL) & ~(forced | reg.CTRL_VME)
        self.bar.write(reg.CTRL, control | reg.CTRL_SLU)

    def _clear_statistics(self) -> None:
        """4.6.4: the counters start from 0 when they have been read."""
        self.statistics()
        self._totals = dict.fromkeys(reg.STATISTICS, 0)

    def _receive_unit(self) -> None:
        """4.6.5: addresses and filters, timers, the ring; enable; then give it the buffers."""
        bar = self.bar
        # RAL0 and RAH0 hold the station's address since the reset (10.2.5.23)
        for entry, address in enumerate(self._extra_addresses, 1):
            self._write_address(entry, address)
        for entry in range(reg.MTA_ENTRIES):
            bar.write(reg.MTA + 4 * entry, 0)
        bar.write(reg.RDTR, 0)  # no interrupt is held back by a timer
        bar.write(reg.RADV, 0)
        bar.write(reg.RFCTL, 0)  # legacy descriptors
        bar.write(reg.RXCSUM, reg.RXCSUM_IPOFLD | reg.RXCSUM_TUOFLD if self.checksums else 0)
        bar.write(reg.MRQC, 0)  # one queue
        # a driver before us may have asked for write-back in groups: each descriptor is written back when it is done
        bar.write(reg.RXDCTL, reg.RXDCTL_GRAN | 1 << reg.RXDCTL_WTHRESH_SHIFT)
        self.rx.start()
        ring = self.rx.descriptors.iova()
        bar.write(reg.RDBAL, ring & 0xFFFFFFFF)
        bar.write(reg.RDBAH, ring >> 32)
        bar.write(reg.RDLEN, self.rx.count * 16)
        bar.write(reg.RDH, 0)
        bar.write(reg.RDT, 0)
        bar.write(reg.RCTL, self._receive_control())
        # after EN, or the tail is not taken
        self.rx.arm()

    def _receive_control(self) -> int:
        control = reg.RCTL_EN | reg.RCTL_BAM | reg.RCTL_SECRC | reg.RCTL_BUFFER[self._buffer]
        if self.promiscuous:
            control |= reg.RCTL_UPE | reg.RCTL_MPE
        if self.long_frames:
            control |= reg.RCTL_LPE
        return control

    def _transmit_unit(self) -> None:
        """4.6.6: the ring, write-back of each descriptor, gaps between frames; enable."""
        bar = self.bar
        self.tx.start()
        ring = self.tx.descriptors.iova()
        bar.write(reg.TDBAL, ring & 0xFFFFFFFF)
        bar.write(reg.TDBAH, ring >> 32)
        bar.write(reg.TDLEN, self.tx.count * 16)
        bar.write(reg.TDH, 0)
        bar.write(reg.TDT, 0)
        bar.write(reg.TIDV, 0)
        bar.write(reg.TADV, 0)
        bar.write(reg.TXDCTL, reg.TXDCTL_GRAN | reg.TXDCTL_COUNT_DESC | 1 << reg.TXDCTL_WTHRESH_SHIFT)
        bar.write(reg.TIPG, 8 | 2 << 10 | 10 << 20)
        bar.write(reg.TCTL, reg.TCTL_EN | reg.TCTL_PSP | 0x0F << reg.TCTL_CT_SHIFT | 0x3F << reg.TCTL_COLD_SHIFT)

    def _interrupts(self) -> None:
        """4.6.7, 7.4: one vector for the receive queue; it is armed whenever somebody starts to wait."""
        kind = self._interrupt_kind
        extended = self.bar.read(reg.CTRL_EXT) & ~(reg.CTRL_EXT_PBA_SUPPORT | reg.CTRL_EXT_EIAME)
        self.bar.write(reg.CTRL_EXT, extended)
        self.bar.write(reg.IVAR, 0)
        self.bar.write(reg.EIAC, 0)
        if kind is None:
            self.rx.use(None, 0)
            return
        if self.rx.interrupt is None:
            self.rx.use(self.device.interrupt(kind), reg.INT_RXQ0 if kind == "msix" else reg.INT_RXT0 | reg.INT_RXO)
        self.throttle(self._throttle)
        if kind == "msix":
            self.bar.write(reg.CTRL_EXT, extended | reg.CTRL_EXT_PBA_SUPPORT | reg.CTRL_EXT_EIAME)
            self.bar.write(reg.IVAR, reg.IVAR_RXQ0_VECTOR0 | reg.IVAR_OTHER_VECTOR0)
            self.bar.write(reg.EIAC, reg.INT_RXQ0)

    @staticmethod
    def _until(condition: Callable[[], bool], limit: float) -> bool:
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                return condition()
        return True

    # --- what it is and does ---------------------------------------------------------------------------------------

    @property
    def mac(self) -> str:
        """The station's address, as the NIC filters for it."""
        low, high = self.bar.read(reg.RAL0), self.bar.read(reg.RAH0)
        return (low | (high & 0xFFFF) << 32).to_bytes(6, "little").hex(":")

    @property
    def link(self) -> int:
        """Megabits a second; 0 where the link is down."""
        status = self.bar.read(reg.STATUS)
        if status == GONE or not status & reg.STATUS_LU:
            return 0
        return (10, 100, 1000, 1000)[(status & reg.STATUS_SPEED) >> 6]

    def wait_for_link(self, seconds: float) -> bool:
        """Whether the link is up, or comes up within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.link:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def renegotiate(self) -> None:
        """Take the link down and have the PHY negotiate it anew; `wait_for_link` waits until it is back."""
        control = self._phy(reg.MDIC_READ, reg.PHY_CONTROL, 0)
        control |= reg.PHY_CONTROL_AUTONEGOTIATION | reg.PHY_CONTROL_RESTART
        self._phy(reg.MDIC_WRITE, reg.PHY_CONTROL, control)

    def _phy(self, operation: int, register: int, value: int) -> int:
        self.bar.write(reg.MDIC, operation | reg.MDIC_PHY | register << 16 | value)
        if not self._until(lambda: bool(self.bar.read(reg.MDIC) & reg.MDIC_READY), RESET_LIMIT):
            raise PathError(f"{self.device.address}: the PHY does not answer (MDIC)")
        return self.bar.read(reg.MDIC) & 0xFFFF

    def set_promiscuous(self, on: bool) -> None:
        """Take frames for other stations, or no longer."""
        self.promiscuous = on
        self.bar.write(reg.RCTL, self._receive_control())

    def accept(self, mac: str) -> None:
        """Take frames for `mac` too, a unicast or multicast address: one of 15 further exact filters (10.2.5.22)."""
        if len(self._extra_addresses) == reg.RECEIVE_ADDRESSES - 1:
            raise UsageError("all 16 address filters are in use", remedy="use promiscuous mode")
        self._extra_addresses.append(mac)
        self._write_address(len(self._extra_addresses), mac)

    def _write_address(self, entry: int, mac: str) -> None:
        value = int.from_bytes(bytes.fromhex(mac.replace(":", "")), "little")
        self.bar.write(reg.RAL0 + 8 * entry, value & 0xFFFFFFFF)
        self.bar.write(reg.RAH0 + 8 * entry, value >> 32 | reg.RAH_AV)

    def throttle(self, microseconds: float) -> None:
        """At most one interrupt in so many microseconds; 0: each (10.2.4.2: steps of 256 ns, 16 bits)."""
        steps = round(microseconds * 1000 / ITR_STEP_NS)
        if not 0 <= steps <= 0xFFFF:
            raise UsageError(f"interrupts cannot be {microseconds} µs apart", remedy="0 to 16776")
        self._throttle = microseconds
        self.bar.write(reg.EITR0 if self._interrupt_kind == "msix" else reg.ITR, steps)

    def statistics(self) -> dict[str, int]:
        """The NIC's own counters since it was brought up, by Intel's names; `registers.STATISTICS` explains them."""
        for name, (offset, _) in reg.STATISTICS.items():
            count = self.bar.read(offset)
            if name in reg.WIDE_STATISTICS:
                count |= self.bar.read(offset + 4) << 32
            if count not in (GONE, GONE << 32 | GONE):
                self._totals[name] += count
        return dict(self._totals)

    def traffic(self) -> Traffic:
        """The frames that it received (GPRC) and those that it had to drop (MPC, RNBC)."""
        counts = self.statistics()
        return Traffic(received=counts["GPRC"], missed=counts["MPC"], no_buffer=counts["RNBC"])

    def frame_link(self) -> RingLink:
        """Hand the rings to the measured loops: closing the link closes this."""
        from cython_ext.nics.e1000e_link import RingLink

        return RingLink(self)

    def message_link(self) -> MessageLink:
        """Hand the rings to a transport of messages, which gathers what it sends: closing the link closes this."""
        from cython_ext.nics.e1000e_message import MessageLink

        return MessageLink(self)

    def restart_receiver(self, arm: Callable[[], object]) -> None:
        """Begin anew with an empty receive ring: its owner gives it other buffers. Frames in the ring are lost.

        Not while frames come: a real 82574 has descriptors in flight then (4.6.5 has the receiver enabled once).

        :param arm: called when the receiver is enabled, to move the tail
        """
        self.bar.write(reg.RCTL, 0)
        self.rx.start()
        self.bar.write(reg.RDH, 0)
        self.bar.write(reg.RDT, 0)
        self.bar.write(reg.RCTL, self._receive_control())
        arm()

    # --- packets ---------------------------------------------------------------------------------------------------

    def receive(self, *, batch: int = 64, timeout: float | None = None) -> Iterator[Packet]:
        """Packets as they come, each in the buffer to which the NIC wrote it.

        A packet is valid until the next one is asked for; `bytes(packet)` keeps it. Ends after `timeout` seconds of
        silence; None: never. PathError where the NIC stopped working meanwhile.
        """
        quiet_since = time.monotonic()
        while True:
            packets = self.rx.receive(batch)
            if packets:
                try:
                    yield from packets
                finally:
                    if not self.rx.closed:
                        self.rx.release(len(packets))
                quiet_since = time.monotonic()
                continue
            left = SILENCE if timeout is None else quiet_since + timeout - time.monotonic()
            if left <= 0:
                return
            if not self.rx.wait_for(min(left, SILENCE)):
                self.check()

    def send(self, frames: Iterable[Buffer], *, timeout: float = 1.0) -> int:
        """Send whole Ethernet frames (without CRC; copied into the ring); returns how many.

        PathError where the ring stays full for `timeout` seconds.
        """
        waiting = list(frames)
        sent = 0
        deadline = time.monotonic() + timeout
        while sent < len(waiting):
            posted = self.tx.send(waiting[sent : sent + 256])
            sent += posted
            if posted:
                deadline = time.monotonic() + timeout
            elif time.monotonic() > deadline:
                raise PathError(
                    f"{self.device.address} sent nothing for {timeout} s, and {len(waiting) - sent} frames wait",
                    remedy="; ".join(self.diagnose()),
                )
        return sent

    def flush(self, timeout: float = 1.0) -> bool:
        """Whether all that was posted is sent within so many seconds."""
        return self._until(lambda: self.tx.pending == 0, timeout)

    # --- what goes wrong -------------------------------------------------------------------------------------------

    def diagnose(self) -> list[str]:
        """What keeps packets from coming or going, in sentences; [] where nothing is known to."""
        if self.bar.read(reg.STATUS) == GONE:
            return ["the device does not answer: it was unplugged, or its memory decoding is off"]
        found = []
        if not self.device.bus_master:
            found.append("bus mastering is off: the NIC can reach no memory; set device.bus_master")
        ring = self.rx.descriptors.iova() & 0xFFFFFFFF
        if not self.bar.read(reg.RCTL) & reg.RCTL_EN or self.bar.read(reg.RDBAL) != ring:
            found.append("somebody reset the NIC: receiver off, ring forgotten; start() brings it up again")
        if not self.link:
            found.append("the link is down")
        counts = self.rx.counts
        if counts["unwritten"]:
            found.append(
                f"{counts['unwritten']} frames were reported that the NIC never wrote: an IOMMU refuses addresses of"
                " the ring (see dmesg for DMAR faults)"
            )
        missed = self.statistics()
        if missed["MPC"] or missed["RNBC"]:
            found.append(
                f"frames were lost because the ring was full (missed {missed['MPC']}, no descriptor {missed['RNBC']}):"
                " release sooner, or use more descriptors"
            )
        return found

    def check(self) -> None:
        """PathError where the NIC cannot work: it is gone, was reset, or may not master the bus."""
        for sentence in self.diagnose():
            if not sentence.startswith(("the link", "frames were lost")):
                raise PathError(f"{self.device.address}: {sentence}")

    def dump(self) -> Iterator[str]:
        """Lines: every register that can be read without changing anything, decoded; then both rings' descriptors."""
        for name, offset, fields in reg.DUMPED:
            value = self.bar.read(offset)
            yield f"{name:<9}{offset:#07x} {value:#010x}  {reg.decode_register(value, fields)}".rstrip()
        yield f"receive ring: {self.rx.count} descriptors, next {self.rx.fresh}, {self.rx.held} held"
        for index, (address, report) in enumerate(self.rx.table.tolist()):
            if report or index == self.rx.fresh:
                status = reg.decode_register(report >> 32 & 0xFF, reg.RX_STATUS) or "the NIC's"
                errors = reg.decode_register(report >> 40 & 0xFF, reg.RX_ERRORS) or "none"
                yield f"  {index:4} {address:#014x} length {report & 0xFFFF:5} status {status} errors {errors}"
        yield f"transmit ring: {self.tx.count} descriptors, {self.tx.pending} pending"
        for index, (address, command) in enumerate(self.tx.table.tolist()):
            if command:
                asked = reg.decode_register(command >> 24 & 0xFF, reg.TX_COMMAND)
                status = reg.decode_register(command >> 32 & 0xF, reg.TX_STATUS) or "the NIC's"
                yield f"  {index:4} {address:#014x} length {command & 0xFFFF:5} command {asked} status {status}"

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the NIC and let the device go; harmless when called twice. Views of packets stay readable."""
        if self.closed:
            return
        self.closed = True
        try:
            self._stop()
        finally:
            for ring in (getattr(self, "rx", None), getattr(self, "tx", None)):
                if ring is not None:
                    ring.close()
            if hasattr(self, "rx"):
                self.rx.drop_views()
            self.device.close()
            while self._on_close:
                self._on_close.pop()()

    def _stop(self) -> None:
        self.bar.write(reg.IMC, reg.INT_ALL)
        self.bar.write(reg.RCTL, 0)
        self.bar.write(reg.TCTL, 0)
        self._reset()

    def at_close(self, action: Callable[[], object]) -> None:
        """Have `close()` call `action` last."""
        self._on_close.append(action)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_driver(device: Device, **options: Unpack[Options]) -> Driver:
    """See `hwrx.nic.models`."""
    return E1000e(device, **options)


def stop_receiving(bar: Bar) -> None:
    """See `hwrx.nic.models`: nothing but a reset makes it forget its rings."""
    bar.write(reg.IMC, reg.INT_ALL)
    bar.write(reg.RCTL, 0)
    bar.write(reg.TCTL, 0)
    bar.write(reg.CTRL, bar.read(reg.CTRL) | reg.CTRL_RST)
    time.sleep(0.001)
