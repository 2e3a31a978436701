"""One packet's events among all that were recorded: which interrupt, which poll, which lookup and wake-up were its own.

Each is found from the one that is surely the packet's (its bytes, its skb, its socket, its reader) by what the two have
in common, never by its place in the list. One that was not seen is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hwrx.errors import TrialError
from hwrx.reception.records import RXQ0, UNTOLD, Event
from hwrx.reception.scene import TOKEN, Found

PRE_ROUTING, FORWARD = 0, 2  # linux/netfilter.h: enum nf_inet_hooks
NET_RX = 3  # include/linux/interrupt.h: NET_RX_SOFTIRQ
PACKET_KINDS = (
    "typed", "gro", "netif_rx", "backlog", "stack", "packet_rcv", "ip_rcv", "routed", "local", "forwarded", "output",
    "udp_rcv", "hook", "device queue", "xmit",
)  # fmt: skip


@dataclass
class Trail:
    """The packet's events by what they are; `skb` is the last one that carried it, `cpu` the one that received it."""

    seen: dict[str, Event]
    skb: int
    cpu: int
    sock: int

    def get(self, name: str) -> Event | None:
        """Return one event, None if it was not seen."""
        return self.seen.get(name)


def find_trail(found: Found) -> Trail:
    """Pick the packet's events.

    :raises TrialError: if the network stack was not seen taking the packet
    """
    events = found.events
    mine = [event for event in events if event.kind in PACKET_KINDS and TOKEN in event.data]
    stack = _last(mine, lambda event: event.kind == "stack")
    if stack is None:
        raise TrialError("netif_receive_skb was not seen with the packet", remedy="try it again on a quieter machine")
    trail = Trail({"stack": stack}, stack.values[0], stack.cpu, 0)
    _note(trail, "sent call", _first(events, lambda event: event.kind == "sent call" and event.tid == found.sender))
    _note(trail, "device queue", _first(mine, lambda event: event.kind == "device queue"))
    _note(trail, "xmit", _first(mine, lambda event: event.kind == "xmit" and event.at < stack.at))
    _find_crossing(trail, mine, stack)
    _find_poll(trail, events, stack)
    _find_interrupt(trail, events)
    _find_packet(trail, events, mine, stack)
    _find_socket(trail, events)
    _find_reader(trail, events, found.reader)
    _find_return(trail, events)
    return trail


def _find_crossing(trail: Trail, mine: list[Event], stack: Event) -> None:
    """What a router did with it: from its own netif_receive_skb to its sending, before the last device had it."""
    forwarded = _last(mine, lambda event: event.kind == "forwarded" and event.at < stack.at)
    if forwarded is None:
        return
    earlier = [event for event in mine if event.at <= forwarded.at]
    later = [event for event in mine if forwarded.at <= event.at < stack.at]
    _note(trail, "router: stack", _last(earlier, lambda event: event.kind == "stack"))
    _note(trail, "router: routed", _last(earlier, lambda event: event.kind == "routed"))
    _note(trail, "router: before routing", _last(earlier, lambda e: _of_hook(e, PRE_ROUTING)))
    _note(trail, "forwarded", forwarded)
    _note(trail, "router: forward", _first(later, lambda e: _of_hook(e, FORWARD)))
    _note(trail, "router: output", _first(later, lambda event: event.kind == "output"))
    _note(trail, "router: xmit", _first(later, lambda event: event.kind == "xmit"))


def _find_poll(trail: Trail, events: list[Event], stack: Event) -> None:
    """The softirq and the poll in which the stack was given the packet."""
    here = [event for event in events if event.cpu == stack.cpu]
    before = [event for event in here if event.at <= stack.at]
    after = [event for event in here if event.at >= stack.at]
    if stack.context == "softirq":
        _note(trail, "softirq entry", _last(before, lambda e: e.kind == "softirq entry" and e.values[0] == NET_RX))
        _note(trail, "network rx", _last(before, lambda event: event.kind == "network rx"))
        _note(trail, "softirq exit", _first(after, lambda e: e.kind == "softirq exit" and e.values[0] == NET_RX))
    poll = _last(before, lambda event: event.kind == "poll begins" and event.context == "softirq")
    _note(trail, "poll begins", poll)
    polled = [event for event in after if event.kind == "napi polled" and _same(event, poll)]
    _note(trail, "napi polled", polled[0] if polled else None)
    _note(trail, "let in", _first(polled, lambda e: e.values[9] != UNTOLD and bool(e.values[9] & RXQ0)))
    if poll is not None:
        _note(trail, "poll ends", _first(here, lambda e: e.kind == "poll ends" and _same(e, poll) and e.at > poll.at))
        ring = _last(before, lambda event: event.kind == "ring read" and event.at > poll.at)
        if ring is not None and TOKEN in ring.data:
            _note(trail, "ring read", ring)


def _find_interrupt(trail: Trail, events: list[Event]) -> None:
    """The interrupt that asked for the poll: that in whose handler the same NAPI instance was scheduled."""
    poll = trail.get("poll begins")
    pio = _last(events, lambda event: event.kind == "pio read" and event.at < trail.seen["stack"].at)
    _note(trail, "pio read", pio)
    schedule = None
    if poll is not None:
        schedule = _last(events, lambda e: e.kind == "napi schedule" and _same(e, poll) and e.at < poll.at)
    _note(trail, "napi schedule", schedule)
    cause = pio or schedule
    if cause is None or cause.context != "hard IRQ":
        return
    here = [event for event in events if event.cpu == cause.cpu]
    before = [event for event in here if event.at <= cause.at]
    irq = _last(before, lambda event: event.kind == "irq entry")
    if irq is None:
        return
    _note(trail, "irq entry", irq)
    number = irq.values[0]
    _note(trail, "irq event", _last(before, lambda e: e.kind == "irq event" and e.values[0] == number))
    _note(trail, "handler", _last(before, lambda e: e.kind == "handler" and e.at > irq.at))
    after = [event for event in here if event.at >= cause.at]
    _note(trail, "softirq raise", _first(after, lambda e: e.kind == "softirq raise" and e.values[0] == NET_RX))
    _note(trail, "irq exit", _first(after, lambda e: e.kind == "irq exit" and e.values[0] == number))


def _find_packet(trail: Trail, events: list[Event], mine: list[Event], stack: Event) -> None:
    """What had the skb in its hands."""
    sent = trail.get("xmit")
    made = [e for e in events if e.kind == "allocated" and e.values[0] == trail.skb and e.at < stack.at]
    # over a wire of software it is the sender's own skb that arrives
    if made and (sent is None or made[-1].at > sent.at):
        _note(trail, "allocated", made[-1])
    for kind in ("typed", "gro", "netif_rx", "backlog"):
        _note(trail, kind, _last(mine, lambda e, kind=kind: e.kind == kind and e.values[0] == trail.skb))  # type: ignore[misc]
    taps = [e for e in mine if e.kind == "packet_rcv" and e.at >= stack.at]
    _note(trail, "packet_rcv", taps[0] if taps else None)
    _note(trail, "cloned", _first(events, lambda e: e.kind == "cloned" and e.at > stack.at and e.cpu == trail.cpu
                                  and e.values[1] == stack.values[1]))  # fmt: skip
    later = [event for event in mine if event.at >= stack.at and event.cpu == stack.cpu]
    for kind in ("ip_rcv", "routed", "local", "udp_rcv"):
        _note(trail, kind, _first(later, lambda event, kind=kind: event.kind == kind))  # type: ignore[misc]


def _find_socket(trail: Trail, events: list[Event]) -> None:
    udp = trail.get("udp_rcv")
    if udp is None:
        return
    later = [event for event in events if event.at >= udp.at and event.cpu == udp.cpu and event.context == udp.context]
    lookup = _first(later, lambda event: event.kind == "lookup")
    _note(trail, "lookup", lookup)
    if lookup is not None:
        _note(trail, "found sock", _first(later, lambda e: e.kind == "found sock" and e.at > lookup.at))
    trail.skb = udp.values[0]  # where a packet socket listens, IP goes on with a clone
    for kind in ("udp queue", "filtered", "enqueued"):
        _note(trail, kind, _first(later, lambda e, kind=kind: e.kind == kind and e.values[8] == trail.skb))  # type: ignore[misc]
    queued = trail.get("enqueued")
    if queued is not None:
        trail.sock = queued.values[0]
        _note(trail, "ready", _first(later, lambda e: e.kind == "ready" and e.values[0] == trail.sock))


def _find_reader(trail: Trail, events: list[Event], reader: int) -> None:
    ready = trail.get("ready")
    if ready is None:
        return
    later = [event for event in events if event.at >= ready.at]
    _note(trail, "waking", _first(later, lambda e: e.kind == "waking" and e.values[0] == reader))
    switch = _first(later, lambda event: event.kind == "switched" and event.values[1] == reader)
    taken = _first(later, lambda e: e.kind == "taken" and e.tid == reader and e.values[0] == trail.skb)
    _note(trail, "switched", switch)
    _note(trail, "taken", taken)
    _note(trail, "copied", _first(later, lambda e: e.kind == "copied" and e.tid == reader))
    _note(trail, "received", _first(later, lambda e: e.kind == "received" and e.tid == reader))
    if switch is None:
        return
    there = [event for event in later if event.cpu == switch.cpu and event.at >= switch.at]
    _note(trail, "mm switched", _first(there, lambda e: e.kind == "mm switched" and e.values[2] == reader))
    _note(trail, "cr3 loaded", _first(there, lambda e: e.kind == "cr3 loaded" and e.tid == switch.tid))


def _find_return(trail: Trail, events: list[Event]) -> None:
    """What the interrupted CPU did when the interrupt was over: the first switch, and when the task had it again.

    `next interrupt` is one that came before that switch: then the interrupted task has had the CPU in between.
    """
    irq, over = trail.get("irq entry"), trail.get("irq exit")
    if irq is None or over is None:
        return
    soft = trail.get("softirq exit")
    # a softirq on top of the same task is the interrupt's end
    if soft is not None and soft.cpu == irq.cpu and soft.tid == irq.tid:
        over = soft
    later = [event for event in events if event.cpu == irq.cpu and event.at > over.at]
    first = _first(later, lambda event: event.kind == "switched")
    _note(trail, "goes on", first)
    if first is not None:
        _note(trail, "next interrupt", _first(later, lambda e: e.kind in ("vector", "irq entry") and e.at < first.at))
    if first is not None and first.values[0] == irq.tid and first.values[1] != irq.tid:
        _note(trail, "back again", _first(later, lambda e: e.kind == "switched" and e.values[1] == irq.tid))


def page_table_loads(trail: Trail, found: Found) -> list[Event]:
    """Return the loads of CR3 on the receiving CPU between the packet's arrival and its being queued."""
    begin = trail.get("irq entry") or trail.get("softirq entry") or trail.seen["stack"]
    end = trail.get("ready") or trail.get("enqueued") or trail.seen["stack"]
    return [
        event
        for event in found.events
        if event.kind == "mm switched" and event.cpu == trail.cpu and begin.at <= event.at <= end.at
        and event.values[0] != event.values[1]
    ]  # fmt: skip


def _of_hook(event: Event, number: int) -> bool:
    return event.kind == "hook" and event.values[9] & 255 == number


def _note(trail: Trail, name: str, event: Event | None) -> None:
    if event is not None:
        trail.seen[name] = event


def _same(event: Event, other: Event | None) -> bool:
    """Whether two events are of one NAPI instance."""
    return other is not None and event.values[0] == other.values[0]


def _first(events: Iterable[Event], wanted: Callable[[Event], bool]) -> Event | None:
    return next((event for event in events if wanted(event)), None)


def _last(events: list[Event], wanted: Callable[[Event], bool]) -> Event | None:
    return next((event for event in reversed(events) if wanted(event)), None)
