"""The table of processor time: whose time a message took, on both ends together."""

from __future__ import annotations

from hwrx.paths.cputime import ACTORS
from hwrx.report import captions, numbers
from hwrx.report.cells import Cell, Table, column_heads, grouped_digits
from hwrx.report.model import Summary
from hwrx.report.numbers import WITHHELD, number_text, value_text
from hwrx.stats import Estimate

HEADS = {"thread": "both ends' threads", "user": "of it user", "system": "of it system", "interrupt": "interrupts"}
WHAT = (
    "Processor time of both ends for one message (half a round trip, or a message of a stream), over exactly the "
    "measured messages: no warm-up, no cool-down, no waiting for the first one. Time of softirqs and interrupts is in "
    "that of whoever they interrupted"
)

# in the order of a table, and what stands over it
COUNTED = {
    "user": "user",
    "system": "system",
    "softirq": "softirqs",
    "interrupt": "interrupts",
    "worker": "kernel workers, ksoftirqd",
    "other": "others",
    "housekeeping": "housekeeping",
    "idle": "idle",
    "busy": "busy, counted",
}
SPLIT = (
    "The same trial again, over exactly its measured messages, with programs attached that give each nanosecond of a "
    "CPU to one actor: user and system are of both ends' threads, without the softirqs and interrupts that came "
    "between. The programs take time, too: it is in all of these figures, and busy beside busy shows how much. Of a "
    "machine that others use, what ran on the ends' CPUs is told, but neither others nor idle time"
)


def actor_tables(summary: Summary) -> list[Table]:
    """The table, if any run tells of processor time: a column for each actor that some row has, and why others lack."""
    rows = [row for row in summary.rows if row.cpu]
    shown = [actor for actor in ACTORS if any(actor in row.cpu for row in rows)]
    if not rows:
        return []
    columns, head = column_heads(rows)
    columns += [(HEADS.get(actor, actor), "") for actor in shown]
    cells = [
        (first, [*head(row), *(_time(row.cpu.get(actor)) for actor in shown)]) for first, row in grouped_digits(rows)
    ]
    unit = "guest instructions" if all(row.counted for row in rows) else "µs"
    lacking: dict[str, list[str]] = {}
    for actor in ACTORS:
        reasons = {row.cpu_missing[actor] for row in rows if actor in row.cpu_missing and actor not in row.cpu}
        for reason in sorted(reasons):
            lacking.setdefault(reason, []).append(actor)
    why = "".join(f" Not known: {', '.join(actors)} ({reason})." for reason, actors in lacking.items())
    caption = f"{WHAT}. In {unit}; {captions.basis(rows)}.{why} {summary.label}."
    first = Table("processor", "Processor time of a message, by actor", caption, columns, cells, 2)
    return [first, *_counted(summary, unit)]


def _counted(summary: Summary, unit: str) -> list[Table]:
    """The split that programs on the kernel's tracepoints counted, if the run was traced and they could be attached."""
    rows = [row for row in summary.rows if row.cpu_counted]
    shown = [actor for actor in COUNTED if any(actor in row.cpu_counted for row in rows)]
    if not rows:
        return []
    columns, head = column_heads(rows)
    columns += [(COUNTED[actor], "") for actor in shown]
    columns += [("busy, not counted", "")] if any("busy" in row.cpu for row in rows) else []
    cells = []
    for first, row in grouped_digits(rows):
        line: list[Cell] = [_plain(row.cpu_counted.get(actor)) for actor in shown]
        line += [_time(row.cpu.get("busy"))] if columns[-1][0] == "busy, not counted" else []
        cells.append((first, [*head(row), *line]))
    caption = f"{SPLIT}. In {unit}; one trial each. {summary.label}."
    return [Table("processor-counted", "Processor time of a message, counted by actor", caption, columns, cells, 2)]


def _plain(found: float | None) -> Cell:
    return (WITHHELD if found is None else number_text(found), "")


def _time(found: Estimate | None) -> Cell:
    return (value_text(found), numbers.plus_minus(found))
