"""A diff in a terminal: the sides, what surrounds them, the figures that changed, and what chance has to do with it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import IO

from rich.table import Table
from rich.text import Text

from hwrx.host.console import OutsideConsole, open_console
from hwrx.report.diff import CHANCE, Diff
from hwrx.report.model import Change
from hwrx.report.moved import Moved
from hwrx.report.numbers import WITHHELD, number_text

MANY = "†"  # holds for all figures together
GROUPED = "‡"


def show_diff(diff: Diff, file: IO[str] | None = None, width: int | None = None) -> None:
    """Print what changed; figures that chance may explain are counted only."""
    console = open_console(file, width=width, piped=80)
    for runs, label in zip((diff.a, diff.b), diff.labels, strict=True):
        console.print(Text(f"{', '.join(runs)}: {label}"))
    for lost in diff.lost:
        console.print(Text(f"lost: {lost}", style="yellow"))
    _environment(diff, console)
    console.print()
    if told := [change for change in diff.changes if change.told_apart]:
        console.print(_figures("figures", told))
    elif doubtful := _doubtful(diff):
        console.print(_figures("figures that differ by more than their repeats do", doubtful))
    if diff.moved:
        console.print(_moved(diff.moved))
    for sentence in diff_verdict(diff):
        console.print(Text(sentence))
    for side, row in diff.only:
        console.print(Text(f"only in {', '.join(diff.a if side == 'a' else diff.b)}: {row}"))
    for note in diff.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def to_text(diff: Diff) -> str:
    """Return what `show` prints."""
    buffer = io.StringIO()
    show_diff(diff, buffer, 80)
    return buffer.getvalue()


def diff_verdict(diff: Diff) -> list[str]:
    """How many figures changed, and how many of those chance is to be thanked for."""
    said = []
    judged, exact = diff.judged, [change for change in diff.changes if change.exact]
    if exact:
        moved = sum(change.told_apart for change in exact)
        said.append(f"{len(exact) - moved} of {len(exact)} exact figures are equal to the digit, {moved} are not")
    if doubtful := _doubtful(diff):
        said.append(
            f"{len(doubtful)} of {len(judged)} figures differ by more than the repeats of one run; by how much two "
            "runs differ anyway was not sampled, and none is taken for a change"
        )
    if judged and (diff.sampled or not doubtful):
        told = sum(change.told_apart for change in judged)
        firm = sum(change.told_apart and change.holm <= CHANCE for change in judged)
        unit = "runs" if diff.sampled else "the repeats of one run each"  # of rows that are not sampled a note says so
        said.append(
            f"{told} of {len(judged)} figures changed beyond chance at 5 % each, judged by {unit}; had none changed, "
            f"about {diff.expected_by_chance:.1f} would seem to. {firm} hold for all figures together (Holm, 5 %: "
            f"{MANY})"
        )
    if unknown := sum(math.isnan(change.chance) for change in judged):
        said.append(f"{unknown} figures cannot be judged: there is one value on either side")
    if any(change.told_apart and change.grouped for change in judged):
        said.append(f"{GROUPED}: the figures of one side fall into groups, whose means are compared")
    return said


def _environment(diff: Diff, console: OutsideConsole) -> None:
    if not diff.environment:
        console.print(Text("\nthe environment is the same"))
        return
    table = Table(title="environment", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("", "before", "after"):
        table.add_column(column, overflow="fold")
    for line in diff.environment:
        table.add_row(*map(Text, line))
    console.print()
    console.print(table)


def _doubtful(diff: Diff) -> list[Change]:
    """What the repeats of one run on either side would tell apart, if they were runs."""
    return [change for change in diff.unsampled if change.chance <= CHANCE and not change.told_apart]


def _figures(title: str, told: list[Change]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, side in (("setting", "left"), ("figure", "left"), ("before", "right"), ("after", "right")):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    table.add_column("change (95 %)", justify="right", no_wrap=True)
    for change in sorted(told, key=lambda change: -abs(change.percent if not math.isnan(change.percent) else 0.0)):
        number = _digits if change.exact else number_text
        table.add_row(
            Text(change.row),
            change.figure,
            number(change.before),
            number(change.after),
            Text(_change_words(change), style="red" if change.worse else "green"),
        )
    return table


def _moved(moved: Sequence[Moved]) -> Table:
    """The functions that moved, the largest difference first within each setting."""
    title = "functions that moved, instructions of half a round trip"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, side in (("setting", "left"), ("function", "left"), ("layer", "left")):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    last = ""
    for each in moved:
        change = each.after - each.before
        table.add_row(
            Text(each.setting if each.setting != last else ""),
            Text(each.function if each.of == "vmlinux" else f"{each.function} {each.of}"),
            each.layer,
            f"{each.before:,.0f}",
            f"{each.after:,.0f}",
            Text(f"{change:+,.0f}", style="red" if change > 0 else "green"),
        )
        last = each.setting
    return table


def _digits(value: float) -> str:
    """An exact time, µs, to the half instruction."""
    return WITHHELD if math.isnan(value) else f"{value:,.4f}"


def _change_words(change: Change) -> str:
    if math.isnan(change.percent):
        return WITHHELD
    if change.exact:
        return f"{1e3 * (change.after - change.before):+,.1f} ns, {change.percent:+.2f} %"
    low, high = 100 * (change.ratio.low - 1), 100 * (change.ratio.high - 1)
    marks = (MANY if change.holm <= CHANCE else "") + (GROUPED if change.grouped else "")
    return f"{change.percent:+.1f} % ({low:+.1f} to {high:+.1f}){marks}"
