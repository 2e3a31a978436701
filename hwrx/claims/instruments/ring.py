"""What a NIC does by itself: both NICs of the wire driven by hwrx, the receiver's interrupts masked."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import hwrx.nic
from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars, Cells
from hwrx.claims.session import Session
from hwrx.errors import HwrxError, UsageError
from hwrx.host.undo import Undo
from hwrx.memory.subjects import reserve_huge
from hwrx.nic import Access, ne2k
from hwrx.nic import registers as reg
from hwrx.nic.driver import Options
from hwrx.nic.e1000e import E1000e
from hwrx.wires import guest_nics

if TYPE_CHECKING:
    from cython_ext.frames.datagram import DatagramTransport
    from cython_ext.frames.link import FrameLink


PORT, SENDER = 40_001, 40_000
SETTLE = 0.3  # seconds in which the NIC writes, and the CPU looks at nothing
HUGE_PAGES = 16  # that the buffers of a NIC in front of the IOMMU are taken from


@give_figures("sent", "written", "intact", "interrupts", "unmasked", "entries")
def ring(session: Session, frames: int = 200, entries: int = 256, size: int = 64) -> Measurement:
    """Let the NIC write frames into a ring that nobody looks at, then look.

    Figures: `sent`, `written` (descriptors that the NIC has marked done), `intact` (payloads byte for byte),
    `interrupts` that the CPU was sent meanwhile, and `unmasked`, those when they were allowed at last; `entries` of
    the ring.
    """
    from cython_ext.core import payload

    session.spoiled = True  # the NICs come back without the neighbours that the topology knew
    if not 1 <= frames <= 1000:
        raise UsageError(f"the sender's ring has room for 1 to 1000 frames, not {frames}", remedy="--set frames=200")
    with _nic("client", tx=1024, rx=64) as sender, _nic("server", rx=entries, tx=64, interrupt="auto") as receiver:
        before = _interrupts()
        sent = _send(sender, _frames(sender, receiver.mac, size, frames))
        time.sleep(SETTLE)
        interrupts = _interrupts() - before
        seen = receiver.rx.peek(entries)  # the first look of a CPU at any of it
        receiver.bar.write(reg.IMS, reg.INT_RXQ0 | reg.INT_RXT0)
        time.sleep(SETTLE)
        unmasked = _interrupts() - before - interrupts
        good = sum(payload.check(bytes(view[42 : 42 + size]), 1) == payload.VERDICTS[0] for view in seen)
        written = len(seen)
        del seen
        receiver.rx.release(written)
    figures: dict[str, float | int | bool | str | None] = {
        "sent": sent, "written": written, "intact": good, "interrupts": interrupts, "unmasked": unmasked,
        "entries": entries,
    }  # fmt: skip
    cells = [1] * written + [0] * (entries - written)
    rows = {f"{entries} descriptors, {sent} frames sent, {interrupts} interrupts, before a CPU looked": cells}
    return Measurement(figures, Cells(rows, ["not written", "written by the NIC"]))


@give_figures("physical_vfio", "physical_uio", "descriptors")
def descriptors(session: Session) -> Measurement:
    """Read the addresses in the NIC's receive descriptors and hold them against those of the buffers in memory.

    Figures: `physical_vfio` and `physical_uio`, shares of the descriptors whose address is their buffer's physical one,
    with the NIC behind an IOMMU (VFIO) and in front of it (UIO); `descriptors` that were read.
    """
    session.spoiled = True  # the NICs come back without the neighbours that the topology knew
    figures: dict[str, float | int | bool | str | None] = {"descriptors": 0}
    absent: dict[str, str] = {}
    ways: tuple[Literal["vfio", "uio"], ...] = ("vfio", "uio")
    for access in ways:
        try:
            with contextlib.ExitStack() as stack:
                if access == "uio":
                    reserve_huge(stack.enter_context(Undo("huge pages for a NIC's buffers")), HUGE_PAGES)
                nic = stack.enter_context(_nic("server", rx=64, tx=64, access=access))
                buffers = nic.rx.buffers
                # the first word of a receive descriptor is its buffer's address (82574 datasheet, 7.1.4)
                told = [int(word) for word in nic.rx.table[:, 0]]
                true = physical_addresses(buffers.physical_pages(), buffers.page_size, len(told), nic.rx.stride)
                figures[f"physical_{access}"] = sum(a == b for a, b in zip(told, true, strict=True)) / len(told)
                figures["descriptors"] = len(told)
        except HwrxError as error:
            figures[f"physical_{access}"] = None
            absent[f"physical_{access}"] = str(error.args[0]).splitlines()[0]
    rows = [
        ("through an IOMMU (VFIO)", float(figures["physical_vfio"] or 0)),
        ("without one (UIO)", float(figures["physical_uio"] or 0)),
    ]
    return Measurement(
        figures, Bars(rows, "share of descriptors that hold the physical address of their buffer"), absent
    )


def physical_addresses(pages: Sequence[int], page_size: int, count: int, stride: int) -> list[int]:
    """Return where each of `count` buffers is in memory, which lie `stride` bytes apart from the first page on."""
    return [int(pages[at // page_size]) + at % page_size for at in range(0, count * stride, stride)]


@give_figures("pio_ns", "dma_ns", "ratio", "pio_batches", "dma_batches")
def carried(session: Session, size: int = 1400, rounds: int = 30, width: int = 2) -> Measurement:
    """Receive packets from an NE2000 by programmed I/O and from an 82574L's ring, parsed, summed, delivered alike.

    `width`: bytes of a port access (1, 2, 4). Figures: `pio_ns` and `dma_ns` a packet (medians), `ratio`,
    `pio_batches` and `dma_batches` that came whole. The frames are with the NIC before the clock is read.
    """
    from cython_ext.core import clock

    session.spoiled = True  # the NICs come back without the neighbours that the topology knew
    if width not in (1, 2, 4):
        raise UsageError(f"a port access has 1, 2 or 4 bytes, not {width}", remedy="--set width=2")
    reading = clock.cost()["p50"]
    by_ring, by_port = _by_ring(size, rounds, reading), _by_port(size, rounds, reading, width)
    dma, pio = _typical(by_ring, "the ring"), _typical(by_port, "the port")
    figures: dict[str, float | int | bool | str | None] = {
        "pio_ns": pio, "dma_ns": dma, "ratio": pio / dma, "pio_batches": len(by_port), "dma_batches": len(by_ring),
    }  # fmt: skip
    rows = [(f"programmed I/O, {8 * width} bits at a time", pio), ("DMA into a ring", dma)]
    return Measurement(figures, Bars(rows, f"ns of the CPU to receive a packet of {size:,} B (emulated)", [3, 0]))


def _by_ring(size: int, rounds: int, reading: float, batch: int = 16) -> list[float]:
    from cython_ext.loops import cost
    from cython_ext.nics.e1000e_link import RingLink

    taken = []
    with _nic("client", tx=256, rx=64) as sender, _nic("server", rx=256, tx=64) as nic:
        end = _transport(RingLink(nic), size, sender.mac)
        frames = _frames(sender, nic.mac, size, batch)
        for _ in range(rounds):
            sender.tx.send(frames)
            sender.flush()
            count, ns = cost.receive(end, batch, batch)
            if count == batch:
                taken.append((ns - reading) / count)
    return taken


def _by_port(size: int, rounds: int, reading: float, width: int, batch: int = 16) -> list[float]:
    from cython_ext.core.payload import make
    from cython_ext.frames.packet import udp_frame, udp_template
    from cython_ext.loops import cost

    nics, address = guest_nics.PIO_NICS, guest_nics.NIC_ADDRESSES
    taken = []
    with ne2k.open_link(nics["client"]) as sender:
        end = _transport(ne2k.open_link(nics["server"], width=width), size, sender.mac)  # type: ignore[arg-type]
        try:
            template = udp_template(sender.mac, end.link.mac, address["client"], address["server"], SENDER, PORT)
            frames = [udp_frame(template, make(size, number, 1)) for number in range(batch)]
            for _ in range(rounds):
                for frame in frames:
                    while not sender.send(frame):
                        pass
                count, ns = cost.receive(end, batch, batch)
                if count == batch:
                    taken.append((ns - reading) / count)
        finally:
            end.close()
    return taken


def _typical(taken: list[float], way: str) -> float:
    if not taken:
        raise UsageError(f"no batch came whole through {way}", remedy="--set size=64")
    return statistics.median(taken)


def _transport(link: FrameLink, size: int, mac: str) -> DatagramTransport:
    from cython_ext.frames.datagram import DatagramTransport

    address = guest_nics.NIC_ADDRESSES
    end = DatagramTransport(
        link, address=address["server"], port=PORT, size=size, window=256, batch=64, stream=False, trial=1,
        patience=1.0, limit=5.0, verify="all", look_up=True,
    )  # fmt: skip
    end.connect({"address": address["client"], "port": SENDER, "mac": mac, "receive_frames": 256})
    return end


def _nic(end: Literal["client", "server"], access: Access = "auto", **options: Unpack[Options]) -> E1000e:
    nic = hwrx.nic.open_nic(
        guest_nics.NIC_HARDWARE[end], access=access, own=(guest_nics.NIC_ADDRESSES[end],), **options
    )
    assert isinstance(nic, E1000e)  # the topology's
    return nic


def _send(sender: E1000e, frames: list[bytes]) -> int:
    """Put frames into the sender's ring as it gets room: how many it took before the wire stood still."""
    sent, deadline = 0, time.monotonic() + SETTLE
    while sent < len(frames) and time.monotonic() < deadline:
        sent += sender.tx.send(frames[sent:])
        sender.flush(0.05)
    return sent


def _frames(sender: E1000e, mac: str, size: int, count: int) -> list[bytes]:
    from cython_ext.core.payload import make
    from cython_ext.frames.packet import udp_frame, udp_template

    address = guest_nics.NIC_ADDRESSES
    template = udp_template(sender.mac, mac, address["client"], address["server"], SENDER, PORT)
    return [udp_frame(template, make(size, number, 1)) for number in range(count)]


def _interrupts() -> int:
    """Interrupts of NICs that user space drives, as the kernel counts them."""
    lines = [line for line in Path("/proc/interrupts").read_text(encoding="utf-8").splitlines() if "vfio" in line]
    return sum(int(word) for line in lines for word in line.split()[1:] if word.isdigit())
