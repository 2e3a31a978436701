"""Many packets at once: the measurement of `hwrx flood`."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from collections.abc import Iterator

from hwrx import flood
from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Lines
from hwrx.claims.session import Session, Wire
from hwrx.flood.model import Flood
from hwrx.paths.hooks import ETH_P_ALL, SO_ATTACH_FILTER

INSTRUCTIONS = 2000  # of a classic filter: what net.core.optmem_max has room for, whatever the kernel


@give_figures(
    "sent",
    "delivered",
    "lost",
    "lost_at_buffer",
    "unexplained",
    "first_place",
    "packets_per_poll",
    "most_in_a_poll",
    "most_in_a_run",
    "by_budget",
    "by_time",
    "ksoftirqd",
    "softirq_share",
    "budget",
)
def flooded(
    session: Session,
    path: str = "udp",
    burst: int = 100_000,
    rps: bool = True,
    work_us: float = 0.0,
    receive_buffer: int = 0,
    burden: int = 0,
) -> Measurement:
    """Send a burst as fast as the path takes it, over two namespaces, to a reader that does `work_us` with each
    message.

    `receive_buffer`: SO_RCVBUF, 0 the kernel's default. `burden`: so many filters of 2,000 instructions see each packet
    in the softirq, so that receiving takes longer than sending. Figures: `sent`, `delivered`, `lost`, `lost_at_buffer`
    (at the socket's receive buffer, behind the lookup), `unexplained`, `first_place` (where loss began),
    `packets_per_poll`, `most_in_a_run` of net_rx_action, `by_budget` and `by_time` (runs that ended because they had
    had netdev_budget packets, or their time), `ksoftirqd` (share of the packets that it received), `softirq_share` (of
    the time of the CPU that had most of it), `budget`.
    """
    spec = flood.Spec(
        path=path, burst=burst, rps=rps, work=work_us / 1e6, receive_buffer=receive_buffer or None, topology=None
    )
    # closed at once: the counting programs would be run by every packet of the claims that follow
    wire = session.wire
    with _burdened(wire, burden), contextlib.closing(flood.Bed(wire.places, wire.spaces, wire.name)) as bed:
        return reckon_flood(flood.measure_flood(spec, bed))


@contextlib.contextmanager
def _burdened(wire: Wire, count: int) -> Iterator[None]:
    """Let packet sockets with a long classic filter look at each frame and take none (returns 0)."""
    adding, refuse = struct.pack("HBBI", 0x04, 0, 0, 1), struct.pack("HBBI", 0x06, 0, 0, 0)
    program = ctypes.create_string_buffer(adding * (INSTRUCTIONS - 1) + refuse)
    filter_ = struct.pack("HL", INSTRUCTIONS, ctypes.addressof(program))
    with contextlib.ExitStack() as stack, wire.inside("server"):
        for _ in range(count):
            tap = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)
            tap.bind((wire.netdev("server"), ETH_P_ALL))
        yield


def reckon_flood(found: Flood) -> Measurement:
    """Put the figures together."""
    polls: dict[int, int] = {}
    for histogram in found.polls.values():
        for size, times in histogram.items():
            polls[size] = polls.get(size, 0) + times
    packets = sum(context.packets for context in found.contexts)
    by_thread = sum(context.packets for context in found.contexts if context.name == "ksoftirqd")
    bearing = sum(times for size, times in polls.items() if size)
    figures: dict[str, float | int | bool | str | None] = {
        "sent": found.sent,
        "delivered": found.delivered,
        "lost": found.sent - found.delivered,
        "lost_at_buffer": sum(row.count for row in found.loss.rows if row.place == "receive-buffer"),
        "unexplained": found.loss.unexplained,
        "first_place": found.first_loss.place if found.first_loss else "nowhere",
        "packets_per_poll": sum(size * times for size, times in polls.items()) / bearing if bearing else None,
        "most_in_a_poll": max(polls, default=None),
        "most_in_a_run": max(found.runs, default=None),
        "by_budget": found.by_budget,
        "by_time": found.by_time,
        "ksoftirqd": by_thread / packets if packets else None,
        "softirq_share": max((_softirq(found, cpu.number) for cpu in found.cpus), default=None),
        "budget": found.machine.get("netdev_budget"),
    }
    line = found.timeline
    step = max(1, len(line.sent) // 200)
    series = {
        name: [
            (number * line.width_ns / 1e6, float(sum(values[number : number + step])))
            for number in range(0, len(values), step)
        ]
        for name, values in (("sent", line.sent), ("taken by the reader", line.taken), ("lost", line.lost))
    }
    notes = [f"lost at {row.place}: {row.count:,} ({row.sentence})" for row in found.loss.rows]
    return Measurement(figures, Lines(series, "ms", f"messages in {step * line.width_ns / 1e6:.3g} ms"), notes=notes)


def _softirq(found: Flood, cpu: int) -> float:
    """The share of a CPU's time that receiving packets had, wherever it ran."""
    return found.share("softirq NET_RX", cpu) + found.share("ksoftirqd", cpu)
