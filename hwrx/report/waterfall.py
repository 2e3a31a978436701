"""Of traced runs: where the time goes, stage by stage, as tables and as the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hwrx import paths, stages
from hwrx.report import captions, style
from hwrx.report.cells import Cell, Kind, Table, column_heads
from hwrx.report.journeys import UNKNOWN, Journey, Step, sources_in_words, stage_journeys
from hwrx.report.model import Row, Summary, swept_words
from hwrx.report.numbers import WITHHELD, number_text, size_of_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# the hatches tell apart what is alike in grey
HATCHES = {"kernel": "", "softirq": "////", "kernel worker": "\\\\\\\\", "hard IRQ": "xxxx"}
INSIDE = 0.05  # of the longest bar: narrower segments carry no name
LETTER = 0.045  # inches, of a name's letters on average
MANY = 4  # tables of one kind: of more, a page shows each when it is asked to
TELLS = 0.02  # of its median: a stage that varies by less over a sweep is not told of there
VARYING = 6  # stages of a sweep's table: those that vary most
WAYS = {"there": "from client to server", "back": "from server to client"}


def has_waterfall(summary: Summary) -> bool:
    """Whether any run was traced, or its messages taken apart."""
    return bool(stage_journeys(summary))


# --- the tables ----------------------------------------------------------------------------------------------------


def waterfall_tables(summary: Summary) -> list[Table]:
    """What a sweep changes on the way; and the waterfall of each setting, paths side by side, each way by itself."""
    traced = stage_journeys(summary)
    groups: dict[tuple[Any, ...], list[Journey]] = {}
    for journey in traced:
        row = journey.row
        swept = tuple(sorted((key, value) for key, value in row.swept.items()))
        groups.setdefault((row.run, row.pattern, row.size, row.load, swept, journey.direction), []).append(journey)
    found = _over_sweeps(summary, traced)
    waterfalls = [_stages(summary, several, place) for place, several in enumerate(groups.values(), 1)]
    for table in waterfalls:
        table.folded = len(waterfalls) > MANY
    return found + waterfalls


def _stages(summary: Summary, several: Sequence[Journey], place: int) -> Table:
    """Every stage of the journeys that one setting's paths make in one direction."""
    unit, factor = several[0].unit
    columns: list[tuple[str, Kind]] = [("up to", "t"), ("actor", "t")]
    for journey in several:
        columns += [(f"{_name(summary, journey.row)} p50 [{unit}]", ""), ("p99", ""), ("mean", ""), ("share", "")]
    rows: list[tuple[bool, list[Cell]]] = []
    side = ""
    for stage in (*stages.STAGES, UNKNOWN):
        steps = [journey.step(stage.name) for journey in several]
        if not any(steps):
            continue
        cells: list[Cell] = [(stage.name, ""), (_actors(summary, steps, several), "")]
        for step, journey in zip(steps, several, strict=True):
            cells += _cells(step, journey, factor)
        rows.append((stage.side != side, cells))
        side = stage.side
    total: list[Cell] = [("one way", ""), ("", "")]
    for journey in several:
        total += [("", ""), ("", ""), (_amount(journey.whole, journey), ""), ("100 %", "")]
    rows.append((True, total))
    setting = _setting_words(several[0])
    caption = (
        f"Time from each stage to the next, by the stage that ends it; {setting}. {sources_in_words(several)} "
        f"Messages: {', '.join(f'{_name(summary, j.row)}: {j.messages:,}' for j in several)}. Means are over all "
        "messages and add up to the mean one-way time; medians are over the messages that passed the stage, and need "
        f"not add up. {_traced(several)}{summary.label}."
    )
    return Table(f"stages-{place}", f"Where the time goes: {setting}", caption, columns, rows, keys=1)


def _actors(summary: Summary, steps: Sequence[Step | None], several: Sequence[Journey]) -> str:
    """Who worked at a stage: said once if all paths agree."""
    pairs = zip(steps, several, strict=True)
    found = {_name(summary, journey.row): step.actors for step, journey in pairs if step is not None}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{path}: {actors}" for path, actors in found.items())


def _cells(step: Step | None, journey: Journey, factor: float) -> list[Cell]:
    if step is None:
        return [("", "")] * 4
    tail = WITHHELD if np.isnan(step.p99) else _amount(step.p99, journey)
    passed = "" if step.count == journey.messages else f"{100 * step.count / journey.messages:.0f} % pass"
    share = f"{100 * step.mean / journey.whole:.1f} %" if journey.whole else WITHHELD
    return [(_amount(step.p50, journey), passed), (tail, ""), (_amount(step.mean, journey), ""), (share, "")]


def _amount(ns: float, journey: Journey) -> str:
    """An interval in the run's unit: instructions are counted, so they stand in full."""
    unit, factor = journey.unit
    return f"{ns:,.0f}" if unit == "instructions" else number_text(ns * factor)


def _over_sweeps(summary: Summary, traced: Sequence[Journey]) -> list[Table]:
    """A table for each path, size and way that was traced under several conditions: the stages that they change."""
    groups: dict[tuple[Any, ...], list[Journey]] = {}
    for journey in traced:
        row = journey.row
        groups.setdefault((row.run, row.pattern, row.path, row.size, row.wait, journey.direction), []).append(journey)
    return [
        _over_sweep(summary, several, place)
        for place, several in enumerate((several for several in groups.values() if len(several) > 1), 1)
    ]


def _over_sweep(summary: Summary, several: Sequence[Journey], place: int) -> Table:
    unit, _ = several[0].unit
    names = [stage.name for stage in paths.stage_chain(several[0].row.path)]
    spread = {name: _spread([journey.step(name) for journey in several]) for name in names}
    most = sorted((name for name in names if spread[name] > 0), key=lambda name: -spread[name])[:VARYING]
    shown = [name for name in names if name in most]
    columns, head = column_heads([journey.row for journey in several])
    columns += [(f"{_before(several, name)} → {name} [{unit}]", "") for name in shown]
    columns.append((f"one way, mean [{unit}]", ""))
    rows: list[tuple[bool, list[Cell]]] = []
    for journey in several:
        cells = head(journey.row)
        for name in shown:
            step = journey.step(name)
            cells.append((WITHHELD if step is None else _amount(step.p50, journey), ""))
        rows.append((False, [*cells, (_amount(journey.whole, journey), "")]))
    row = several[0].row
    what = f"{row.name} {size_of_rows(row)} {row.pattern}, {WAYS[several[0].direction]}"
    rest = "no other stage varies by more" if len(shown) < VARYING else "the stages that vary most"
    caption = (
        f"{what}: the median interval between two stages under each condition, of the stages whose median it moves by "
        f"{100 * TELLS:.0f} % or more ({rest}), and the mean one-way time. {sources_in_words(several)} "
        f"{_traced(several)}{summary.label}."
    )
    return Table(f"sweep-stages-{place}", f"What the conditions change on the way: {what}", caption, columns, rows, 2)


def _traced(several: Sequence[Journey]) -> str:
    """What is to be known of probes' stamps, where there are any."""
    return f"{captions.TRACED} " if any(journey.source == "probes" for journey in several) else ""


def _spread(steps: Sequence[Step | None]) -> float:
    """By how much a stage's medians differ, in ns; 0 where that is nothing beside them."""
    medians = [step.p50 for step in steps if step is not None]
    reach = max(medians, default=0.0) - min(medians, default=0.0)
    return reach if medians and reach > TELLS * max(float(np.median(medians)), 1.0) else 0.0


def _before(several: Sequence[Journey], name: str) -> str:
    """The stage before, as most of the journeys have it."""
    before = []
    for journey in several:
        steps = [step.stage.name for step in journey.steps]
        if name in steps and (place := steps.index(name)):
            before.append(steps[place - 1])
    return max(dict.fromkeys(before), key=before.count, default="")


def _setting_words(journey: Journey) -> str:
    """All that the journeys of one table have in common."""
    row = journey.row
    load = f"at {100 * row.load:.3g} % load" if row.load is not None else ""
    swept = [swept_words(key, value) for key, value in row.swept.items()]
    words = [row.run, size_of_rows(row), row.pattern, load, *swept, WAYS[journey.direction]]
    return ", ".join(filter(None, words))


def _name(summary: Summary, row: Row) -> str:
    """A row's name among those of its setting."""
    waits = {other.wait for other in summary.of(row.pattern) if other.path == row.path}
    return row.path + (f" {row.wait}" if len(waits) > 1 else "")


# --- the figure ----------------------------------------------------------------------------------------------------


def draw_waterfall(summary: Summary, figure: Figure, width: float) -> str:
    """One bar a row, a panel for each size: mean intervals in packet order, coloured by who works.

    Returns what the stages stand on, in words.
    """
    several = shown_stages(summary)
    sizes = list(dict.fromkeys(journey.row.size for journey in several))
    by_size = [[journey for journey in several if journey.row.size == size] for size in sizes]
    figure.set_size_inches(width, 0.7 + sum(0.42 + 0.5 * len(of) for of in by_size))
    axes = figure.subplots(
        len(sizes), 1, squeeze=False, gridspec_kw={"height_ratios": [len(of) + 0.6 for of in by_size]}
    )
    seen: dict[str, Any] = {}
    for ax, of in zip(axes.ravel(), by_size, strict=True):
        _bars(ax, of, width, seen)
        ax.set_xlabel(
            f"mean one-way time, {size_of_rows(*(journey.row for journey in of))} {of[0].row.pattern} [{of[0].unit[0]}]"
        )
    style.draw_legend(figure, list(axes.ravel()), seen)
    return sources_in_words(several).rstrip(".")


def shown_stages(summary: Summary) -> list[Journey]:
    """The journeys that the picture has room for: of the first pattern that was traced, on the way there."""
    traced = [journey for journey in stage_journeys(summary) if journey.direction == "there"]
    patterns = [journey.row.pattern for journey in traced]
    pattern = "pingpong" if "pingpong" in patterns else patterns[0]
    traced = [journey for journey in traced if journey.row.pattern == pattern]
    keys = {row.key for row in style.few_ticks([journey.row for journey in traced])}
    return [journey for journey in traced if journey.row.key in keys]


def _bars(ax: Axes, several: Sequence[Journey], width: float, seen: dict[str, Any]) -> None:
    longest = max(journey.whole for journey in several)
    for place, journey in enumerate(several):
        _, factor = journey.unit
        at = 0.0
        for step in journey.steps:
            actor = step.actor
            bar = ax.barh(
                -place,
                step.mean * factor,
                left=at * factor,
                height=0.5,
                color=style.ACTORS.get(actor, style.OTHER[0]),
                hatch=HATCHES.get(actor, ""),
                edgecolor=style.PAPER,
                linewidth=0.4,
            )
            seen.setdefault(actor, bar)
            at += step.mean
        for middle, name in _named(journey, longest, longest / (width - 1.0)):
            ax.text(middle * factor, -place + 0.28, name, fontsize=5, ha="center", va="bottom")
    labels = [" ".join([journey.row.curve, journey.row.wait]) for journey in several]
    if len({journey.row.wait for journey in several}) == 1:
        labels = [journey.row.curve for journey in several]
    ax.set_yticks([-place for place in range(len(several))], labels)
    ax.set_ylim(-len(several) + 0.5, 0.75)
    ax.grid(axis="y", visible=False)


def _named(journey: Journey, longest: float, an_inch: float) -> list[tuple[float, str]]:
    """The segments of a bar that have room for the name of the stage that ends them; the longest are served first."""
    found: list[tuple[float, str]] = []
    at, steps = 0.0, []
    for step in journey.steps:
        steps.append((step.mean, at + step.mean / 2, f"→ {step.stage.name}"))
        at += step.mean
    for mean, middle, name in sorted(steps, reverse=True):
        reach = (len(name) + 1) / 2 * LETTER * an_inch
        place = min(max(middle, reach), longest - reach)  # not beyond the axes
        clear = all(abs(place - other) > reach + (len(words) + 1) / 2 * LETTER * an_inch for other, words in found)
        if mean > INSIDE * longest and clear and abs(place - middle) <= mean / 2:
            found.append((place, name))
    return found
