"""Interrupts, polls and packets of the kernel's own driver: what a burst, and what single packets, make of them."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence

import msgspec

from hwrx.claims.figures import give_figures
from hwrx.claims.ftrace import Call, Ftrace
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.host.undo import SYSCTL, Undo

UDP_SEGMENT = 103  # linux/udp.h: one call, many datagrams, which reach the device together
MOST_SEGMENTS = 64  # UDP_MAX_SEGMENTS of 6.1
UNHURRIED = 1_000_000  # µs
QUIET = 0.3  # seconds after which nothing is on its way any more
POLL = re.compile(r"for device (\S+) work (\d+) budget (\d+)")


@give_figures(
    "sent",
    "received",
    "interrupts",
    "polls",
    "packets_per_interrupt",
    "most_in_a_poll",
    "poll_weight",
    "most_in_a_softirq",
    "interrupts_while_polling",
    "pollings",
    "pollings_interrupted",
    "polls_in_ksoftirqd",
    "handled_in_interrupt",
    "budget",
)
def interrupts(
    session: Session, packets: int = 512, burst: int = 64, size: int = 64, gap_ms: float = 20.0, budget: int = 0
) -> Measurement:
    """Send bursts of datagrams, `gap_ms` apart, to a NIC of the kernel's, and count what its driver does.

    `burst` 1: single packets. `budget`: of a softirq (net.core.netdev_budget; 0: as it is), which then is not ended by
    time (netdev_budget_usecs). Nobody reads meanwhile: the reader's buffer has room for all.
    """
    wire, device = session.wire, session.wire.netdev("server")
    burst = max(1, min(burst, packets))
    with Undo("a budget of the softirq") as undo, wire.socket("server") as reader, wire.socket("client") as sender:
        if budget:
            undo.sysctl("net/core/netdev_budget", str(budget))
            # a run ends after so long, too: an emulated CPU would meet that limit (2 ms) first, and a real one this
            undo.sysctl("net/core/netdev_budget_usecs", str(UNHURRIED))
        reader.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        tracer = Ftrace(
            ["napi_complete_done", "ip_rcv_core|ip_rcv", "net_rx_action"],
            ["irq/irq_handler_entry", "napi/napi_poll", "irq/softirq_exit"],
        )
        with tracer:
            sent = 0
            while sent < packets:
                sent += _burst(sender, reader.getsockname(), min(burst, packets - sent), size)
                time.sleep(gap_ms / 1000)
            time.sleep(QUIET)
        found = reckon_interrupts(tracer.calls, device, sent)
        now = int((SYSCTL / "net/core/netdev_budget").read_text(encoding="utf-8"))
    return msgspec.structs.replace(found, figures={**found.figures, "budget": now})


def _burst(sender: socket.socket, target: tuple[str, int], count: int, size: int) -> int:
    """Hand datagrams over as few calls at a time as the kernel allows."""
    done = 0
    while done < count:
        now = min(MOST_SEGMENTS, count - done, 60_000 // size)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size if now > 1 else 0)
        sender.sendto(bytes(size * now), target)
        done += now
    return done


def reckon_interrupts(calls: Sequence[Call], device: str, sent: int) -> Measurement:
    """Count interrupts of the device's receive side, its polls, and what lies between them."""
    arrivals = [call.at for call in calls if _is_of(call, device)]
    polls = [(call, found) for call in calls if (found := _poll_of(call, device))]
    works = [int(found[2]) for _, found in polls]
    late = [call.task.startswith("ksoftirqd") for call, _ in polls]
    handled = [call.context for call in calls if call.name == "ip_rcv_core"]
    runs = _runs(calls, device)
    received = sum(works)
    within = _within(arrivals, _ends(calls, device))
    figures: dict[str, float | int | bool | str | None] = {
        "sent": sent,
        "received": received,
        "interrupts": len(arrivals),
        "polls": len(polls),
        "packets_per_interrupt": received / len(arrivals) if arrivals else None,
        "most_in_a_poll": max(works, default=0),
        "poll_weight": max((int(found[3]) for _, found in polls), default=None),
        "most_in_a_softirq": max(runs, default=0),
        "interrupts_while_polling": sum(within),
        "pollings": len(within),
        "pollings_interrupted": sum(count > 0 for count in within),
        "polls_in_ksoftirqd": late.count(True) / len(late) if late else None,
        "handled_in_interrupt": handled.count("hard IRQ") / len(handled) if handled else None,
    }
    shown = ("received", "interrupts", "polls", "most_in_a_poll", "interrupts_while_polling")
    rows = [(name.replace("_", " "), float(figures[name] or 0)) for name in shown]
    return Measurement(figures, Bars(rows, "count", [0, 3, 1, 1, 2]))


def _is_of(call: Call, device: str) -> bool:
    """Whether an event is the arrival of an interrupt of the device's receive side."""
    return call.name == "irq_handler_entry" and re.search(rf"name={device}(-rx-\d+)?$", call.detail) is not None


def _poll_of(call: Call, device: str) -> re.Match[str] | None:
    found = POLL.search(call.detail) if call.name == "napi_poll" else None
    return found if found and found[1] == device else None


def _ends(calls: Sequence[Call], device: str) -> list[float]:
    """When the device's polling ended: napi_complete_done, of which the event of the poll then tells whose it was."""
    ends: list[float] = []
    last: dict[int, float] = {}
    for call in calls:
        if call.name == "napi_complete_done":
            last[call.cpu] = call.at
        elif call.name == "napi_poll" and (at := last.pop(call.cpu, None)) is not None and _poll_of(call, device):
            ends.append(at)
    return ends


def _within(arrivals: Sequence[float], ends: Sequence[float]) -> list[int]:
    """Of each polling that an interrupt began, how many further interrupts came until it ended."""
    counts, place = [], 0
    left = sorted(ends)
    while place < len(arrivals):
        end = next((at for at in left if at >= arrivals[place]), None)
        place += 1
        if end is None:
            continue
        began = place
        while place < len(arrivals) and arrivals[place] < end:
            place += 1
        counts.append(place - began)
    return counts


def _runs(calls: Sequence[Call], device: str) -> list[int]:
    """Packets of the device that each run of the softirq handled."""
    runs: list[int] = []
    run: dict[int, int] = {}
    for call in calls:
        if found := _poll_of(call, device):
            run[call.cpu] = run.get(call.cpu, 0) + int(found[2])
        elif call.name == "softirq_exit" and "NET_RX" in call.detail and run.get(call.cpu):
            runs.append(run.pop(call.cpu))
    return runs
