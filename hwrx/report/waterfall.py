"""Of traced runs: where the time goes, stage by stage, and how often the payload is copied.

Reads `stages`, `copies` and `tracing` of the run directories. Intervals of all repeats and both directions of a path
and size are taken together. Means add up to the mean one-way time, by construction; medians need not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import stages
from hwrx.report import text
from hwrx.report.model import Summary
from hwrx.report.words import size_words
from hwrx.stats import BEYOND
from hwrx.trace import copies
from hwrx.trace.actors import actor_column, shares_in_words
from hwrx.trace.tables import stage_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwrx.report.tables import Cell, Kind, Table
    from hwrx.runs import Run

ACTORS = {
    "user thread": "#0072B2",
    "kernel": "#56B4E9",
    "softirq": "#E69F00",
    "kernel worker": "#D55E00",
    "hard IRQ": "#CC79A7",
    "device": "#777777",
    "not observed": "#999999",
}
HATCHES = {
    "kernel": "",
    "softirq": "////",
    "kernel worker": "\\\\\\\\",
    "hard IRQ": "xxxx",
}  # the colours are alike in grey
INSIDE = 0.05  # of the longest bar: narrower segments carry no name
LETTER = 0.045  # inches, of a name's letters on average


class Step(Struct, frozen=True):
    """One stage of one path and size: nanoseconds since the stage before."""

    stage: stages.Stage
    actor: str  # who worked there, as observed; the most frequent
    actors: str  # all of them in words, with shares if there are several
    count: int
    mean: float  # over all messages, also those that skipped the stage
    p50: float  # over those that passed it
    p99: float  # NaN with fewer than ten samples beyond it


class Journey(Struct, frozen=True):
    """All stages of one path and size. `messages`: timelines that were complete."""

    path: str
    size: int
    messages: int
    steps: list[Step]

    @property
    def whole(self) -> float:
        """The mean one-way time, nanoseconds."""
        return sum(step.mean for step in self.steps)


def has(summary: Summary) -> bool:
    """Whether any run was traced."""
    return any(journeys(run) for run in summary.runs)


def journeys(run: Run) -> list[Journey]:
    """Return every path and size that the run traced, in the order of size, then of the experiment's paths."""
    return _journeys(run)


@functools.lru_cache(maxsize=4)
def _journeys(run: Run) -> list[Journey]:
    table = run.table("stages")
    if table is None or not table.num_rows:
        return []
    path = np.asarray(table["path"].cast("string").to_pylist(), dtype=object)
    size = table["size"].to_numpy()
    number = stage_numbers(table)
    ns = table["ns"].to_numpy()
    actor = actor_column(table)
    order = {name: place for place, name in enumerate(run.experiment.paths)}
    found = []
    for which in sorted({*zip(path.tolist(), size.tolist(), strict=True)}, key=lambda w: (w[1], order.get(w[0], 99))):
        mine = (path == which[0]) & (size == which[1])
        found.append(_journey(which[0], int(which[1]), number[mine], ns[mine], actor[mine]))
    return found


def _journey(path: str, size: int, number: npt.NDArray[Any], ns: npt.NDArray[Any], actor: npt.NDArray[Any]) -> Journey:
    messages = int((number == stages.BY_NAME["posted"].number).sum())
    steps = []
    for stage in stages.chain(path):
        values = ns[number == stage.number]
        if len(values):
            tail = float(np.quantile(values, 0.99)) if len(values) * 0.01 >= BEYOND else float("nan")
            names, counts = np.unique(actor[number == stage.number], return_counts=True)
            most = str(names[np.argmax(counts)])
            words = shares_in_words(dict(zip(map(str, names), counts.tolist(), strict=True)))
            mean = float(values.sum()) / messages
            steps.append(Step(stage, most, words, len(values), mean, float(np.median(values)), tail))
    return Journey(path, size, messages, steps)


# --- the tables ----------------------------------------------------------------------------------------------------


def tables(summary: Summary) -> list[Table]:
    """The waterfall of each size, copies per byte, and what tracing cost."""
    found = []
    for run in summary.runs:
        by_size: dict[int, list[Journey]] = {}
        for journey in journeys(run):
            by_size.setdefault(journey.size, []).append(journey)
        unit, factor = _unit(run)
        found += [_stages(size, several, unit, factor) for size, several in by_size.items()]
        found += [table for table in (_copies(run), _tracing(run)) if table is not None]
    return found


def _unit(run: Run) -> tuple[str, float]:
    """Of a guest that counts instructions, a nanosecond is one."""
    return ("instructions", 1.0) if run.manifest.get("clock") == "icount" else ("µs", 1e-3)


def _stages(size: int, several: Sequence[Journey], unit: str, factor: float) -> Table:
    from hwrx.report.tables import Table

    columns: list[tuple[str, Kind]] = [("stage", "t"), ("actor", "t")]
    for journey in several:
        columns += [(f"{journey.path} p50 [{unit}]", ""), ("p99", ""), ("mean", ""), ("share", "")]
    rows: list[tuple[bool, list[Cell]]] = []
    side = ""
    for stage in stages.STAGES:
        steps = [next((s for s in journey.steps if s.stage.number == stage.number), None) for journey in several]
        if not any(steps):
            continue
        cells: list[Cell] = [(stage.name, ""), (_actors(steps, several), "")]
        for step, journey in zip(steps, several, strict=True):
            cells += _cells(step, journey, factor)
        rows.append((stage.side != side, cells))
        side = stage.side
    total: list[Cell] = [("one way", ""), ("", "")]
    for journey in several:
        total += [("", ""), ("", ""), (text.number(journey.whole * factor), ""), ("100 %", "")]
    rows.append((True, total))
    caption = (
        f"Time since the stage before, messages of {size_words(size)}, traced twins of the trials "
        f"({', '.join(f'{j.path}: {j.messages:,} timelines' for j in several)}). Means are over all messages and add "
        "up to the mean one-way time; medians are over the messages that passed the stage, and need not add up."
    )
    return Table(f"stages-{size}", f"Where the time goes, {size_words(size)}", caption, columns, rows)


def _actors(steps: Sequence[Step | None], several: Sequence[Journey]) -> str:
    """Who worked at a stage: said once if all paths agree."""
    found = {journey.path: step.actors for step, journey in zip(steps, several, strict=True) if step is not None}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{path}: {actors}" for path, actors in found.items())


def _cells(step: Step | None, journey: Journey, factor: float) -> list[Cell]:
    if step is None:
        return [("", "")] * 4
    tail = "–" if np.isnan(step.p99) else text.number(step.p99 * factor)
    passed = "" if step.count == journey.messages else f"{100 * step.count / journey.messages:.0f} % pass"
    share = f"{100 * step.mean / journey.whole:.1f} %" if journey.whole else "–"
    return [(text.number(step.p50 * factor), passed), (tail, ""), (text.number(step.mean * factor), ""), (share, "")]


def _copies(run: Run) -> Table | None:
    from hwrx.report.tables import Table

    table, tracing = run.table("copies"), run.table("tracing")
    if table is None or tracing is None or not table.num_rows:
        return None
    delivered: dict[tuple[str, int], dict[int, int]] = {}
    for row in tracing.select(["trial", "path", "size", "delivered_bytes"]).to_pylist():
        delivered.setdefault((row["path"], row["size"]), {})[row["trial"]] = row["delivered_bytes"]
    added: dict[tuple[str, int], dict[tuple[str, str, str, str], int]] = {}
    remarks: dict[tuple[Any, ...], str] = {}
    for row in table.to_pylist():
        kinds = added.setdefault((row["path"], row["size"]), {})
        key = (row["side"], row["kind"], row["stage"], row["actor"])
        kinds[key] = kinds.get(key, 0) + row["bytes"]
        # what a stage does stands in the catalogue; what is no stage, or only sometimes one, needs its word here
        if row["stage"] not in stages.BY_NAME or row["kind"] == "mapped":
            remarks[row["path"], row["size"], *key] = row["words"]
    rows: list[tuple[bool, list[Cell]]] = []
    for which in sorted(added, key=lambda w: (w[1], list(run.experiment.paths).index(w[0]))):
        whole = sum(delivered.get(which, {}).values())
        first = True
        for (side, kind, stage, actor), count in sorted(added[which].items(), reverse=True):
            per_byte = f"{count / whole:{'+.4f' if kind == 'balance' else '.3f'}}" if whole else "–"
            remark = remarks.get((*which, side, kind, stage, actor), "")
            head: list[Cell] = [(size_words(which[1]), ""), (which[0], "")] if first else [("", ""), ("", "")]
            cells: list[Cell] = [(side, ""), (kind, ""), (stage, ""), (actor, ""), (per_byte, ""), (remark, "")]
            rows.append((first, [*head, *cells]))
            first = False
    columns: list[tuple[str, Kind]] = [
        ("size", ""), ("path", "t"), ("side", "t"), ("what", "t"), ("stage", "t"), ("by", "t"), ("times per byte", ""),
        ("", "t"),
    ]  # fmt: skip
    caption = (
        "Bytes of payload that the CPU copied, only read (passed) or left in place (mapped), over the bytes delivered, "
        "both directions of the traced trials together. rxe's copies are the CPU standing in for the HCA's DMA engine: "
        "a real HCA makes none. A balance is what was counted less what the sizes demand." + _slopes(run)
    )
    return Table("copies", "Copies per byte", caption, columns, rows)


def _slopes(run: Run) -> str:
    """The second estimate: what a byte costs, from the medians of the untraced trials over size."""
    medians: dict[str, dict[int, float]] = {}
    for row, samples in run.each_trial():
        if row["pattern"] == "pingpong" and row["status"] == "ok":
            medians.setdefault(row["path"], {}).setdefault(row["size"], float(np.median(samples.ns)) / 2)
    unit = "instructions" if run.manifest.get("clock") == "icount" else "ns"
    words = []
    for path, by_size in medians.items():
        fitted = copies.slope(list(by_size), list(by_size.values()))
        if fitted is not None and len(by_size) > 2:
            words.append(f"{path} {fitted.ns_per_byte:.2g} {unit}/B")
    return f" Slope of half a round trip over size, an estimate of its own: {', '.join(words)}." if words else ""


def _tracing(run: Run) -> Table | None:
    from hwrx.report.tables import Table

    table = run.table("tracing")
    if table is None or not table.num_rows:
        return None
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        groups.setdefault((row["path"], row["size"]), []).append(row)
    unit, factor = _unit(run)
    rows: list[tuple[bool, list[Cell]]] = []
    for which in sorted(groups, key=lambda w: (w[1], list(run.experiment.paths).index(w[0]))):
        mine = groups[which]
        messages, complete = sum(r["messages"] for r in mine), sum(r["complete"] for r in mine)
        missing: dict[str, int] = {}
        for row in mine:
            for stage, count in json.loads(row["missing"]).items():
                missing[stage] = missing.get(stage, 0) + count
        worst = max(missing, key=lambda stage: missing[stage]) if missing else ""
        share = f"{100 * complete / messages:.2f} %" if messages else "–"
        cells: list[Cell] = [(size_words(which[1]), ""), (which[0], ""), (share, worst), (f"{messages:,}", "")]
        cells.append((f"{sum(r['lost'] for r in {r['trial']: r for r in mine}.values()):,}", ""))
        for name in ("mean", "p50", "p99"):  # runs of format 1 have no mean
            pairs = [(r.get(f"{name}_off_ns"), r.get(f"{name}_on_ns")) for r in mine if r["direction"] == "there"]
            cells.append(_change([(off, on) for off, on in pairs if off and on], factor))
        rows.append((True, cells))
    columns: list[tuple[str, Kind]] = [
        ("size", ""), ("path", "t"), ("complete", ""), ("timelines", ""), ("events lost", ""),
        (f"mean off → on [{unit}]", ""), (f"p50 off → on [{unit}]", ""), (f"p99 off → on [{unit}]", ""),
    ]  # fmt: skip
    caption = (
        "Each trial was run twice, without and with tracing; the figures of all other tables are those without. A "
        "timeline is complete when every stage that each message passes was stamped, in order; beside it the stage "
        "missing most."
    )
    return Table("tracing", "What tracing cost, and how complete it is", caption, columns, rows)


def _change(pairs: Sequence[tuple[float, float]], factor: float) -> Cell:
    if not pairs:
        return ("–", "")
    off, on = (float(np.exp(np.mean(np.log([pair[k] for pair in pairs])))) for k in (0, 1))
    return (f"{text.number(off * factor)} → {text.number(on * factor)}", f"{100 * (on / off - 1):+.0f} %")


# --- the figure ----------------------------------------------------------------------------------------------------


def draw(summary: Summary, figure: Figure, width: float) -> None:
    """One bar a path for the smallest size traced: mean intervals in packet order, coloured by who works."""
    run = next(run for run in summary.runs if journeys(run))
    size = min(journey.size for journey in journeys(run))
    several = [journey for journey in journeys(run) if journey.size == size]
    unit, factor = _unit(run)
    figure.set_size_inches(width, 1.1 + 0.62 * len(several))
    ax = figure.subplots()
    longest = max(journey.whole for journey in several)
    seen: dict[str, Any] = {}
    for place, journey in enumerate(several):
        at = 0.0
        for step in journey.steps:
            actor = step.actor
            look: dict[str, Any] = {
                "color": ACTORS[actor],
                "hatch": HATCHES.get(actor, ""),
                "edgecolor": "white",
                "lw": 0.4,
            }
            bar = ax.barh(-place, step.mean * factor, left=at * factor, height=0.5, **look)
            seen.setdefault(actor, bar)
            at += step.mean
        for middle, name in _named(journey, longest, longest / (width - 1.0)):
            ax.text(middle * factor, -place + 0.28, name, fontsize=5, ha="center", va="bottom")
    ax.set_yticks([-place for place in range(len(several))], [journey.path for journey in several])
    ax.set_ylim(-len(several) + 0.5, 0.75)
    ax.set_xlabel(f"mean one-way time, {size_words(size)} [{unit}]")
    ax.grid(axis="y", visible=False)
    figure.legend(list(seen.values()), list(seen), loc="outside upper center", ncols=min(4, len(seen)))


def _named(journey: Journey, longest: float, an_inch: float) -> list[tuple[float, str]]:
    """The stages of a bar that have room for their names, each with its middle; the longest are served first."""
    found: list[tuple[float, str]] = []
    at, steps = 0.0, []
    for step in journey.steps:
        steps.append((step.mean, at + step.mean / 2, step.stage.name))
        at += step.mean
    for mean, middle, name in sorted(steps, reverse=True):
        reach = (len(name) + 1) / 2 * LETTER * an_inch
        place = min(max(middle, reach), longest - reach)  # not beyond the axes
        clear = all(abs(place - other) > reach + (len(words) + 1) / 2 * LETTER * an_inch for other, words in found)
        if mean > INSIDE * longest and clear and abs(place - middle) <= mean / 2:
            found.append((place, name))
    return found
