"""What floods say: one sentence each, and the tables that terminal and page share."""

from __future__ import annotations

from collections.abc import Sequence

from hwrx.flood.model import Flood, Spec
from hwrx.probes import account
from hwrx.probes.counting import IRQ_MOST, POLL_MOST, RUN_MOST
from hwrx.report.cells import Cell, Table

MS = 1e6
# /proc/stat's words for what our actors add up to
STAT_WORDS = {
    "user": ("user", "nice"),
    "system": ("system",),
    "softirq": ("softirq",),
    "interrupts": ("irq",),
    "idle": ("idle", "iowait"),
}
OURS = {
    "user": ("sender, user", "reader, user", "others, user"),
    "system": (
        "sender, system",
        "reader, system",
        "others, system",
        "ksoftirqd",
        "kernel workers",
        "kernel workers of one CPU",
    ),
    "softirq": ("softirq NET_RX", "other softirqs"),
    "interrupts": ("interrupts",),
    "idle": ("idle",),
}


def label_of(spec: Spec, *, path: bool = True) -> str:
    """What tells one flood from another."""
    words = [f"{spec.path} {spec.size} B"] if path else []
    if spec.seconds is None:
        words.append(f"burst of {spec.burst or 1:,}" + (f" at {spec.rate:,.0f}/s" if spec.rate else ""))
    else:
        words.append(f"{spec.seconds:g} s at {spec.rate:,.0f}/s" if spec.rate else f"{spec.seconds:g} s, no pause")
    words += [f"{spec.sockets} sockets"] if spec.sockets > 1 else []
    words += ["RPS"] if spec.rps else []
    return ", ".join(words)


def answer_of(flood: Flood) -> str:
    """One sentence for a flood."""
    share = flood.delivered / flood.sent if flood.sent else 0.0
    text = (
        f"{label_of(flood.spec)}: of {flood.sent:,} messages, sent at {flood.offered_rate:,.0f}/s,"
        f" {flood.delivered:,} ({share:.1%}) were delivered"
    )
    first = flood.first_loss
    if flood.ended:
        return f"{text}; it ended early: {flood.ended}."
    if first is None:
        return text + ", none was lost."
    text += f"; loss began with message {first.sequence:,}, {first.at_ns / MS:,.2f} ms after the first"
    return text + f", at: {first.place}."


def tables_of(floods: Sequence[Flood]) -> list[Table]:
    """Every table that these floods fill."""
    found = [_outcome(floods), _taking(floods), _contexts(floods), _cpus(floods)]
    if any(flood.loss.rows or flood.loss.beside for flood in floods):
        found.append(_losses(floods))
    if any(flood.spec.sockets > 1 for flood in floods):
        found.append(_sockets(floods))
    if any(flood.counters or flood.told for flood in floods):
        found.append(_told(floods))
    return found


def notes_of(floods: Sequence[Flood]) -> list[str]:
    """What could not be seen, and why; each once."""
    return list(dict.fromkeys(note for flood in floods for note in flood.notes))


def _outcome(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        first = flood.first_loss
        rows.append((
            True,
            [
                (label_of(flood.spec), ""),
                (f"{flood.sent:,}", ""),
                (f"{flood.offered_rate:,.0f}", ""),
                (f"{flood.delivered:,}", ""),
                (f"{flood.delivered_rate:,.0f}", ""),
                (f"{flood.loss.lost:,}", ""),
                (f"{flood.loss.unexplained:,}", ""),
                ("-" if first is None else f"{first.sequence:,}", ""),
                ("-" if first is None else f"{first.at_ns / MS:,.2f}", ""),
                ("-" if first is None else first.place, ""),
            ],
        ))  # fmt: skip
    columns = ["sent", "sent/s", "delivered", "delivered/s", "lost", "unexplained", "first lost", "after [ms]"]
    return Table(
        "outcome",
        "What came of it",
        "Messages; the first that was lost, by its number, and the place that dropped first.",
        [("flood", "t"), *((name, "") for name in columns), ("at", "t")],
        rows,
    )


def _taking(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        first = True
        for poller in account.POLLERS:
            polls = flood.polls_of(poller)
            if polls:
                rows.append((first, [(label_of(flood.spec) if first else "", ""), (f"a poll ({poller})", ""),
                                     *_spread(polls, POLL_MOST), (f"{flood.poll_budget:,}", "weight")]))  # fmt: skip
                first = False
        budget = flood.machine.get("netdev_budget")
        stopped = f"{flood.by_budget:,} had it, {flood.by_time:,} their time; time_squeeze +{flood.squeezed:,}"
        name = label_of(flood.spec) if first else ""
        rows.append((first, [(name, ""), ("a run of net_rx_action", ""), *_spread(flood.runs, RUN_MOST),
                             (f"{budget or '?'}", f"budget: {stopped}")]))  # fmt: skip
        if flood.per_interrupt is not None:
            rows.append((False, [("", ""), ("an interrupt of the device", ""), *_spread(flood.per_interrupt, IRQ_MOST),
                                 ("-", "")]))  # fmt: skip
    return Table(
        "taking",
        "How many packets one visit brings",
        "Packets; of all that were polled meanwhile, so a few are not the flood's. A + stands where more came "
        "together than is counted singly.",
        [("flood", "t"), ("what", "t"), ("how often", ""), ("mean", ""), ("median", ""), ("p99", ""), ("most", ""),
         ("limit", "t")],
        rows,
    )  # fmt: skip


def _spread(histogram: dict[int, int], most: int) -> list[Cell]:
    """Cells; of what is counted as `most` all that is known is that it was no less."""
    longest = max(histogram, default=0)
    more = "+" if longest >= most else ""
    return [
        (f"{sum(histogram.values()):,}", ""),
        (f"{account.mean_of(histogram):,.1f}{more}", ""),
        (f"{account.quantile_of(histogram, 0.5):,}", ""),
        (f"{account.quantile_of(histogram, 0.99):,}", ""),
        (f"{longest:,}{more}", ""),
    ]


def _contexts(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        packets = sum(each.packets for each in flood.contexts)
        first = True
        for each in flood.contexts:
            if each.runs:
                share = f"{each.packets / packets:.1%}" if packets else "-"
                cells: list[Cell] = [
                    (label_of(flood.spec) if first else "", ""),
                    (account.CONTEXT_WORDS[each.name], ""),
                ]
                cells += [(f"{each.runs:,}", ""), (f"{each.packets:,}", ""), (share, ""), (f"{each.ns / MS:,.1f}", "")]
                rows.append((first, cells))
                first = False
    return Table(
        "contexts",
        "Who runs net_rx_action",
        "By who had raised the softirq; ksoftirqd is a thread that the scheduler weighs against the reader.",
        [("flood", "t"), ("context", "t"), ("runs", ""), ("packets", ""), ("of all", ""), ("time [ms]", "")],
        rows,
    )


def _cpus(floods: Sequence[Flood]) -> Table:
    shown = [name for name in account.ACTORS if any(flood.share(name) >= 0.0005 for flood in floods)]
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        for place, cpu in enumerate(flood.cpus):
            cells: list[Cell] = [(label_of(flood.spec) if not place else "", ""), (str(cpu.number), "")]
            cells += [(f"{cpu.ns[name] / cpu.total_ns:.1%}", "") for name in shown]
            cells += [(f"{sum(cpu.ns.values()) / cpu.total_ns:.1%}", ""), (f"{cpu.packets:,}", "")]
            cells += [("-" if cpu.interrupts is None else f"{cpu.interrupts:,}", ""), (f"{cpu.calls:,}", "")]
            rows.append((not place, cells))
    return Table(
        "cpus",
        "Whose time the CPUs' is",
        "Shares of each CPU's time from the first send to the last delivery; packets that it polled; its interrupts by "
        "the receiving device, and by other CPUs that wanted something done (RPS wakes a CPU so).",
        [("flood", "t"), ("CPU", ""), *((name, "") for name in shown), ("together", ""), ("packets", ""),
         ("interrupts", ""), ("calls", "")],
        rows,
    )  # fmt: skip


def kernels_account(flood: Flood) -> Table:
    """Our account of all that was recorded beside /proc/stat's."""
    rows: list[tuple[bool, list[Cell]]] = []
    for place, cpu in enumerate(flood.cpus):
        ours = {kind: sum(cpu.recorded.get(name, 0) for name in names) for kind, names in OURS.items()}
        theirs = {kind: sum(cpu.stat.get(name, 0) for name in names) for kind, names in STAT_WORDS.items()}
        for who, values in (("hwrx", ours), ("/proc/stat", theirs)):
            whole = sum(values.values())
            cells: list[Cell] = [(str(cpu.number), ""), (who, "")]
            cells += [(f"{value / whole:.1%}" if whole else "-", "") for value in values.values()]
            rows.append((who == "hwrx" and not place, [*cells, (f"{whole / MS:,.0f}", "")]))
    return Table(
        "account",
        "Beside the kernel's own account",
        "All that was recorded, the quiet around the flood too. /proc/stat counts in ticks of 10 ms, a kernel that "
        "looks once a tick gives the whole tick to whoever it finds, and an emulated machine loses ticks.",
        [("CPU", ""), ("who says", "t"), *((kind, "") for kind in OURS), ("ms", "")],
        rows,
    )


def _losses(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        first = True
        for row in [*flood.loss.rows, *flood.loss.beside]:
            beside = "" if row in flood.loss.rows else " (not lost)"
            witness = "-" if row.witness is None else f"{row.witness:,}"
            rows.append((first, [(label_of(flood.spec) if first else "", ""), (row.place + beside, ""),
                                 (f"{row.count:,}", ""), ("; ".join(row.how) or row.sentence, ""),
                                 (witness, row.counter)]))  # fmt: skip
            first = False
    return Table(
        "losses",
        "Where messages were lost",
        "By the kernel's own reason and function, or by who knows of it where no packet was dropped; the kernel's "
        "counter beside it counts everybody's.",
        [("flood", "t"), ("place", "t"), ("messages", ""), ("how it is told", "t"), ("the kernel's counter", "")],
        rows,
    )


def _told(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        first = True
        said = {"the receiving path": flood.told, **flood.counters}
        for who, counts in said.items():
            for name, value in counts.items():
                if value:
                    cells = (label_of(flood.spec) if first else "", who, name, f"{value:,}")
                    rows.append((first, [(cell, "") for cell in cells]))
                    first = False
    return Table(
        "told",
        "What path and devices counted themselves",
        "By the names that they have there; of a device also what is not the flood's. rcvd_rnr_err: NAKs of a receiver "
        "that had no request posted; send_rnr_err is its own count of them. overtaken: messages that the reader of a "
        "WRITE passed over, because later ones stood in their place.",
        [("flood", "t"), ("who", "t"), ("what", "t"), ("so often", "")],
        rows,
    )


def _sockets(floods: Sequence[Flood]) -> Table:
    rows: list[tuple[bool, list[Cell]]] = []
    for flood in floods:
        if flood.spec.sockets == 1:
            continue
        for socket in flood.sockets:
            name = f"{label_of(flood.spec)}: Jain's index {flood.jain:.4f}" if not socket.number else ""
            share = socket.delivered / flood.delivered if flood.delivered else 0.0
            rows.append((not socket.number, [(name, ""), (str(socket.number), ""), (f"{socket.offered:,}", ""),
                                             (f"{socket.delivered:,}", ""), (f"{share:.1%}", "")]))  # fmt: skip
    return Table(
        "sockets",
        "How fair it was",
        "What each socket was offered and got. Jain's index is 1 where all get the same, 1/n where one gets all.",
        [("flood", "t"), ("socket", ""), ("offered", ""), ("delivered", ""), ("of all", "")],
        rows,
    )
