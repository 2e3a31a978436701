"""The table of processor time: whose time a message took, on both ends together."""

from __future__ import annotations

from hwrx.cputime import ACTORS
from hwrx.report import text
from hwrx.report.cells import Cell, Table, grouped, heads
from hwrx.report.model import Summary
from hwrx.stats import Estimate

HEADS = {"thread": "both ends' threads", "user": "of it user", "system": "of it system", "interrupt": "interrupts"}
WHAT = (
    "Processor time of both ends for one message (half a round trip, or a message of a stream), over exactly the "
    "measured messages: no warm-up, no cool-down, no waiting for the first one. Time of softirqs and interrupts is in "
    "that of whoever they interrupted"
)


def tables(summary: Summary) -> list[Table]:
    """The table, if any run tells of processor time: a column for each actor that some row has, and why others lack."""
    rows = [row for row in summary.rows if row.cpu]
    shown = [actor for actor in ACTORS if any(actor in row.cpu for row in rows)]
    if not rows:
        return []
    columns, head = heads(rows)
    columns += [(HEADS.get(actor, actor), "") for actor in shown]
    cells = [(first, [*head(row), *(_time(row.cpu.get(actor)) for actor in shown)]) for first, row in grouped(rows)]
    unit = "guest instructions" if all(row.counted for row in rows) else "µs"
    lacking: dict[str, list[str]] = {}
    for actor in ACTORS:
        reasons = {row.cpu_missing[actor] for row in rows if actor in row.cpu_missing and actor not in row.cpu}
        for reason in sorted(reasons):
            lacking.setdefault(reason, []).append(actor)
    why = "".join(f" Not known: {', '.join(actors)} ({reason})." for reason, actors in lacking.items())
    caption = f"{WHAT}. In {unit}; {text.basis(rows)}.{why} {summary.label}."
    return [Table("processor", "Processor time of a message, by actor", caption, columns, cells, 2)]


def _time(found: Estimate | None) -> Cell:
    return (text.value(found), text.plus_minus(found))
