"""Of runs whose messages were taken apart: instructions by layer, copies by address, flame charts, what moved.

Reads the document that `anatomy = true` leaves in a run's directory.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwrx import stages
from hwrx.anatomy.flame import draw_charts, draw_difference
from hwrx.anatomy.model import ByAddress, Dissection
from hwrx.errors import UsageError
from hwrx.report import ledgers, machine_costs
from hwrx.report.cells import Cell, Kind, Table
from hwrx.report.journeys import anatomy_of, journeys_of
from hwrx.report.model import Row, Summary
from hwrx.report.moved import Moved, moved_parts
from hwrx.report.numbers import WITHHELD, size_words

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

MOVED = 12  # functions that a diff names, of each setting
APART = 0.02  # copies or passes a byte: by more two ledgers differ. A trial's warm-up and its check are a percent


def anatomy_tables(summary: Summary) -> list[Table]:
    """Instructions by layer, and copies by address beside those that probes counted."""
    found = []
    for run in summary.runs:
        name = f"-{run.path.name}" if len(summary.runs) > 1 else ""
        if dissected := anatomy_of(run):
            found += _layers(summary, dissected, name)
            if any(one.copies is not None for one in dissected):
                found.append(_by_address(summary, run, dissected, name))
            found += _stages(summary, run, dissected, name)
            found += machine_costs.machine_tables(dissected, name, summary.label)
    return found


def flame_charts(summary: Summary) -> list[tuple[str, str]]:
    """Return each setting's chart: a title, and a drawing that is a document of its own, as a data URI."""
    found = []
    for run in summary.runs:
        for one in anatomy_of(run):
            title = (
                f"{one.label}: who called whom in a message and its answer, {2 * one.instructions:,.0f} instructions"
            )
            found.append((title, _embedded(draw_charts([(one.label, one.pieces)]))))
        for added in machine_costs.added_by_machine(anatomy_of(run)):
            title = f"What the machine adds: {added.title}"
            found.append((title, _embedded(machine_costs.difference_of(added))))
    return found


def _embedded(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def moved_functions(before: Sequence[Run], after: Sequence[Run]) -> list[Moved]:
    """Return the functions that moved, of each setting that both sides have taken apart: the largest first.

    Of several runs a side the first is taken: in a guest that counts instructions the others are like it.
    """
    sides = []
    for runs in (before, after):
        dissected = next(filter(None, map(anatomy_of, runs)), [])
        sides.append({one.label: one for one in dissected})
    both = [label for label in sides[0] if label in sides[1]]
    return [each for label in both for each in moved_parts(sides[0][label], sides[1][label])[:MOVED]]


def difference_charts(before: Sequence[Run], after: Sequence[Run]) -> str:
    """Return an SVG of the first setting that both sides have taken apart: before, after, and what moved.

    :raises UsageError: if no setting was taken apart on both sides.
    """
    sides = [next(filter(None, map(anatomy_of, runs)), []) for runs in (before, after)]
    new = {one.label: one for one in sides[1]}
    both = [(one, new[one.label]) for one in sides[0] if one.label in new]
    if not both:
        raise UsageError(
            "no setting was taken apart on both sides, so that there is no chart", remedy="hwrx compare --anatomy"
        )
    one, other = both[0]
    return draw_difference([(f"before: {one.label}", one.pieces), (f"after: {other.label}", other.pieces)])


def _layers(summary: Summary, dissected: Sequence[Dissection], name: str) -> list[Table]:
    """A table for each size and what else is alike, with the paths side by side."""
    groups: dict[tuple[int, str], list[Dissection]] = {}
    for one in dissected:
        groups.setdefault((one.size, _setting_words(one)), []).append(one)
    exact, awake = sum(one.exact for one in dissected), sum(one.awake for one in dissected)
    caption = (
        "Instructions of half a round trip (of a READ the whole), by layer of the functions that executed them, of the "
        "state that most messages were in. An emulator's plugin has written down each; in "
        f"{exact:,} of {awake:,} messages in which the processor did not stop their sum is what the guest's clock "
        f"says. hwrx anatomy has the functions. {_prices(dissected)} {summary.label}."
    )
    tables = []
    for number, ((size, words), mine) in enumerate(groups.items(), 1):
        layers = list(dict.fromkeys(layer for one in mine for layer in one.layers))
        layers.sort(key=lambda layer, mine=mine: -max(one.layers.get(layer, 0.0) for one in mine))  # type: ignore[misc]
        rows: list[tuple[bool, list[Cell]]] = [
            (False, [(layer, ""), *((_count(one.layers.get(layer)), "") for one in mine)]) for layer in layers
        ]
        rows.append((True, [("all", ""), *((_count(one.instructions), "") for one in mine)]))
        columns: list[tuple[str, Kind]] = [("layer", "t"), *((one.path, "") for one in mine)]
        title = f"Instructions by layer, {size_words(size)} {words}"
        tables.append(Table(f"anatomy{name}-{number}", title, caption, columns, rows, 1, folded=len(groups) > 1))
    return tables


def _prices(dissected: Sequence[Dissection]) -> str:
    """Say what the emulator counts of a copy by REP MOVS, and where the cross-check is."""
    checked = len({one.boot.copies_priced for one in dissected}) > 1
    return "The emulator counts a copy by REP MOVS as an instruction a byte, a price and not a measurement; " + (
        "copies_priced=word is the cross-check: the same by a processor without ERMS and FSRM, a word at a time."
        if checked
        else 'copies_priced = ["byte", "word"] adds the cross-check by a processor without ERMS and FSRM.'
    )


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _setting_words(one: Dissection) -> str:
    """What the label says of the setting besides path and size."""
    return one.label.removeprefix(f"{one.path} {one.size} B pingpong ")


def _setting_cells(one: Dissection) -> list[Cell]:
    """The path, and what else the label says of the setting."""
    return [(one.path, "full round trip" if one.whole else ""), (_setting_words(one), "")]


def _by_address(summary: Summary, run: Run, dissected: Sequence[Dissection], name: str) -> Table:
    probed = _probed(summary, run)
    columns: list[tuple[str, Kind]] = [
        ("size", ""), ("path", "t"), ("wait", "t"), ("copies", ""), ("passes", ""), ("by a device", ""),
        ("told from where", ""), ("copies by probes", ""), ("passes by probes", ""), ("", "t"),
    ]  # fmt: skip
    rows: list[tuple[bool, list[Cell]]] = []
    for one in dissected:
        copies = one.copies
        if copies is None:
            continue
        counted = probed.get(one.label)
        rows.append(
            (
                True,
                [
                    (size_words(one.size), ""),
                    *_setting_cells(one),
                    (_pair(copies.sender, copies.receiver), ""),
                    (_pair(copies.sender_passes, copies.receiver_passes), ""),
                    (f"{100 * copies.landed:.3g} %", ""),
                    (f"{copies.in_place} of {copies.messages}", "messages"),
                    (_pair(*counted.copied) if counted else WITHHELD, ""),
                    (_pair(*counted.passed) if counted else WITHHELD, ""),
                    (_difference(copies, counted), ""),
                ],
            )
        )
    caption = (
        "How often the CPU copied each byte of payload and how often it only read it, sender + receiver: each byte "
        "followed by its physical address through loads, stores and registers, from where the sender wrote it to where "
        "the receiver verified it. Beside it what kernel probes counted and lengths say, where the run was traced; if "
        f"the two differ, the addresses are right. {_prices(dissected)} {summary.label}."
    )
    return Table(f"addresses{name}", "Copies by physical address", caption, columns, rows, 2)


def _stages(summary: Summary, run: Run, dissected: Sequence[Dissection], name: str) -> list[Table]:
    """Each setting's stages to the instruction; beside them what probes made of them, where the run was traced."""
    labels = {row["trial"]: row["label"] for row in run.rows}
    traced = {
        (labels[journey.row.trials[0]], journey.direction): journey
        for journey in journeys_of(summary)
        if journey.run is run and journey.row.trials
    }
    caption = (
        "One message of the state that most were in: instructions from the stage before to each stage, where nobody "
        "looks. Probes are the medians of the traced trials, whose messages take longer by what the probes do; what "
        f"they add is the difference. {summary.label}."
    )
    columns: list[tuple[str, Kind]] = [
        ("stage", "t"), ("side", "t"), ("instructions", ""), ("since posted", ""), ("with probes", ""),
        ("probes add", ""),
    ]  # fmt: skip
    tables = []
    for number, one in enumerate(dissected, 1):
        journey = traced.get((one.label, "there"))
        rows: list[tuple[bool, list[Cell]]] = []
        side = ""
        for stamp in one.stamps:
            if stamp.direction != "there":
                continue
            step = journey.step(stamp.stage) if journey else None
            stage = stages.BY_NAME.get(stamp.stage)
            where = stage.side if stage else ""
            added = f"{step.p50 - stamp.since:+,.0f}" if step else ""
            cells: list[Cell] = [(stamp.stage, ""), (where, ""), (f"{stamp.since:,}", ""), (f"{stamp.at:,}", "")]
            rows.append((where != side, [*cells, (f"{step.p50:,.0f}" if step else "", ""), (added, "")]))
            side = where
        if len(rows) > 2:  # more than posted and delivered
            title = f"Stages to the instruction, {one.label}"
            tables.append(Table(f"stamps{name}-{number}", title, caption, columns, rows, 1, folded=True))
    return tables


def _probed(summary: Summary, run: Run) -> dict[str, ledgers.Handled]:
    """What probes counted of the run's ping-pongs, by the settings' labels."""
    handled = ledgers.bytes_handled(summary)
    labels = {row["trial"]: row["label"] for row in run.rows}
    rows: list[Row] = [row for row in summary.of_run(run.path.name) if row.key in handled and row.trials]
    return {labels[row.trials[0]]: handled[row.key] for row in rows}


def _pair(sender: float | None, receiver: float | None) -> str:
    return " + ".join(WITHHELD if side is None else f"{side:.3g}" for side in (sender, receiver))


def _difference(copies: ByAddress, counted: ledgers.Handled | None) -> str:
    if counted is None:
        return ""
    pairs = [
        ("sender's copies", copies.sender, counted.copied[0]),
        ("receiver's copies", copies.receiver, counted.copied[1]),
        ("sender's passes", copies.sender_passes, counted.passed[0]),
        ("receiver's passes", copies.receiver_passes, counted.passed[1]),
    ]
    apart = [name for name, seen, probed in pairs if probed is not None and abs(seen - probed) > APART]
    return f"they differ: {', '.join(apart)}" if apart else "they agree"
