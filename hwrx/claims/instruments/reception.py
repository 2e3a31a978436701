"""What a packet finds on its way, step by step: interrupts, masks, page tables, clones, routers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.errors import UsageError
from hwrx.reception.scene import Found, Request, follow_packets
from hwrx.reception.steps import Reception, Step, tell_reception
from hwrx.reception.trail import find_trail, page_table_loads

Value = float | int | bool | str | None
# figure -> the step and the fact that it is the share of; what a packet did not pass is no part of a share
SHARES = {
    "dma_physical": ("the NIC writes it to memory (DMA)", "dma"),
    "interruptible": ("the driver's handler runs", "interruptible"),
    "softirq_interruptible": ("the softirq runs", "interruptible"),
    "masked": ("the NIC's interrupt is masked", "masked"),
    "unmasked_afterwards": ("interrupts are let in again", "masked"),
    "resumed": ("the interrupted CPU goes on", "same"),
    "tap_shares": ("packet sockets get it", "shared"),
}


@give_figures(
    "packets", "interrupts", "masked_by_driver", "loads_before_queue", "copy_in_readers",
    "queue_in_others", *SHARES,
)  # fmt: skip
def reception(
    session: Session, packets: int = 12, size: int = 64, tap: bool = False, quiet: bool = False
) -> Measurement:
    """Follow packets over the 82574L in every step (`hwrx walk --full`); unless `quiet`, with a program on each CPU.

    Figures, shares of the packets for which the step was seen: `dma_physical` (the descriptor's DMA address is the
    buffer's physical address), `interruptible` (the handler ran with interrupts let in), `softirq_interruptible`,
    `masked` (in the handler the NIC's mask kept its receive interrupt back), `masked_by_driver` (and did not yet when
    the handler began), `unmasked_afterwards` (it was let in when the poll was over, and no other had come), `resumed`
    (the CPU went on with what the interrupt had stopped), `tap_shares` (a packet socket's skb has the same bytes);
    `copy_in_readers` and `queue_in_others` (CR3 held the reader's page table at the copy, and another's at the
    queueing). Also `packets`, `interrupts` (packets with one of their own), `loads_before_queue` (of CR3 on the
    receiving CPU, a packet).
    """
    if session.wire.name != "nic":
        raise UsageError("the walk in every step is over the 82574L", remedy='topology = "nic"')
    request = Request("nic", size, tap=tap, quiet=quiet)
    found = list(follow_packets(request, packets, lambda stage, text: None))
    return reckon_reception(request, found)


def reckon_reception(request: Request, found: Sequence[Found]) -> Measurement:
    """Put the figures together."""
    told = [tell_reception(request, each) for each in found]
    figures: dict[str, Value] = {"packets": len(told)}
    for figure, (title, fact) in SHARES.items():
        figures[figure] = _share(_facts(told, title, fact))
    dma = [step.facts for step in _steps(told, SHARES["dma_physical"][0])]
    figures["dma_physical"] = _share(facts["dma"] == facts["physical"] for facts in dma)
    unmasked = figures["unmasked_afterwards"]
    figures["unmasked_afterwards"] = None if not isinstance(unmasked, float) else 1 - unmasked
    figures["masked_by_driver"] = _share(
        step.facts["masked"] and step.facts["by"] == "the driver"
        for step in _steps(told, SHARES["masked"][0])
        if "masked" in step.facts
    )
    figures["interrupts"] = len(_steps(told, "the NIC raises an interrupt"))
    # a packet whose interrupt found the CPU with its own reader's table tells nothing of whether one was needed
    rows = [{row.what: row for row in each.tables} for each in told]
    copies = [row["copy to the user's buffer"] for row in rows]
    queues = [row["queue to the socket"] for row in rows]
    figures["copy_in_readers"] = _share(row.whose == "the reader's" for row in copies if row.table)
    figures["queue_in_others"] = _share(row.whose != "the reader's" for row in queues if row.table)
    figures["loads_before_queue"] = fmean(len(page_table_loads(find_trail(each), each)) for each in found)
    absent = {name: "no packet was seen in this step" for name, value in figures.items() if value is None}
    rows_shown = [(name.replace("_", " "), value) for name, value in figures.items() if isinstance(value, float)]
    return Measurement(figures, Bars(rows_shown, "share of the packets, or times a packet"), absent)


@give_figures("packets", "forwarded", "in_order", "rewritten", "hops", "lookups")
def routing(session: Session, packets: int = 8, size: int = 64) -> Measurement:
    """Send packets to a router that gives them another destination (DNAT) and forwards them; a rule waits at FORWARD.

    Figures, shares of the packets: `forwarded` (ip_forward had it), `in_order` (routed, ip_forward, FORWARD and
    dst_output followed each other), `rewritten` (the destination address was another one behind the router); `hops` by
    which the time to live was lowered, `lookups` of a socket, a packet, before the router had sent it on.
    """
    request = Request("router", size, rewrite=True)
    found = list(follow_packets(request, packets, lambda stage, text: None))
    trails = [find_trail(each) for each in found]
    order = ("router: routed", "forwarded", "router: forward", "router: output", "router: xmit")
    times = [[trail.seen[name].at for name in order if name in trail.seen] for trail in trails]
    told = [tell_reception(request, each) for each in found]
    changed = [step.facts for step in _steps(told, "the router's other device")]
    hops = [str(facts.get("IPv4 time to live", "0 to 0")).split(" to ") for facts in changed]
    out = [trail.get("router: xmit") for trail in trails]
    figures: dict[str, Value] = {
        "packets": len(found),
        "forwarded": _share(trail.get("forwarded") is not None for trail in trails),
        "in_order": _share(len(each) == len(order) and each == sorted(each) for each in times),
        "rewritten": _share("IPv4 destination address" in facts for facts in changed),
        "hops": fmean(int(old, 16) - int(new, 16) for old, new in hops) if hops else None,
        "lookups": fmean(
            sum(event.kind == "lookup" and event.at < sent.at for event in each.events) if sent is not None else 0
            for each, sent in zip(found, out, strict=True)
        ),
    }
    absent = {name: "no packet was seen to leave the router" for name, value in figures.items() if value is None}
    shown = [(name, value) for name, value in figures.items() if isinstance(value, float)]
    return Measurement(figures, Bars(shown, "share of the packets, or times a packet"), absent)


def _steps(told: Iterable[Reception], title: str) -> list[Step]:
    return [step for each in told for step in each.steps if step.title == title and step.seen]


def _facts(told: Iterable[Reception], title: str, fact: str) -> list[bool]:
    return [bool(step.facts[fact]) for step in _steps(told, title) if step.facts.get(fact) is not None]


def _share(of: Iterable[object]) -> float | None:
    values = [bool(each) for each in of]
    return fmean(values) if values else None
