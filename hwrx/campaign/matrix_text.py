"""The table of a campaign, for a terminal: cells as rows, paths as columns, one table for each size and pattern."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwrx.campaign.matrix import Line, Matrix, Step
from hwrx.report.headline import Headline
from hwrx.report.numbers import WITHHELD, size_words

_MOVED = "*"


def show_matrix(found: Matrix, console: Console) -> None:
    """Print the tables, what moved, and why a cell has no figure."""
    for (title, unit), columns in _tables(found):
        console.print(Text(f"{title}: {unit}", style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        table.add_column("cell")
        for name, _ in columns:
            table.add_column(name, justify="right")
        for line in found.lines:
            table.add_row(line.cell, *(_cell(found, line, setting, unit) for _, setting in columns))
        console.print(table)
        console.print()
    if found.settings:
        console.print(_caption(found), style="dim")
    _show_moved(found, console)
    for line in found.lines:
        if line.reason:
            console.print(Text(f"{line.cell}: {line.state}: {line.reason}"), soft_wrap=True)
    counts = {state: sum(line.state == state for line in found.lines) for line in found.lines for state in [line.state]}
    console.print(
        f"{len(found.lines)} cell{'s' * (len(found.lines) != 1)}: "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
    )


def _tables(found: Matrix) -> list[tuple[tuple[str, str], list[tuple[str, str]]]]:
    """Return a title and a unit for each size and pattern, with its columns: a name, and the setting that it is of."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for line in found.lines:
        for setting, figure in line.figures.items():
            title = f"{figure.pattern}, {size_words(figure.size)}, waiting by {figure.wait}"
            groups.setdefault((title, figure.unit), {})[setting] = " ".join([figure.path, *figure.varied])
    return [(title, [(name, setting) for setting, name in of.items()]) for title, of in groups.items()]


def _cell(found: Matrix, line: Line, setting: str, unit: str) -> str:
    figure = line.figures.get(setting)
    if figure is None or figure.unit != unit:  # of a cell with another clock: that stands in a table of its own
        return WITHHELD
    moved = any(step.setting == setting and step.after == line.cell for step in found.moved)
    return f"{exact_text(figure)}{_MOVED if moved else ''}"


def exact_text(figure: Headline) -> str:
    """Write a figure: one that repeats to the digit with all of its digits, another with four."""
    if figure.exact:
        return f"{figure.value:,.1f}".removesuffix(".0")
    return f"{float(f'{figure.value:.4g}'):,g}"


def _caption(found: Matrix) -> str:
    exact = {figure.exact for line in found.lines for figure in line.figures.values()}
    words = []
    if True in exact:
        words.append(
            "Guest instructions of half a round trip, of the lowest state that messages have in common: the same in "
            "the next run, or a few instructions beside it."
        )
    if False in exact:
        words.append(
            "Figures of four digits are those of one run; instructions are then what a message costs, interruptions "
            "and all."
        )
    timed = {line.machine for line in found.lines for figure in line.figures.values() if figure.unit != "instructions"}
    if len(timed) > 1:
        names = "; ".join(sorted(each or "unknown" for each in timed))
        words.append(
            f"Times are of {len(timed)} processors ({names}): those of different ones are not held against each other."
        )
    if found.moved:
        words.append(
            f"{_MOVED}: by more than {100 * found.over:g} % from the cell before on the list of kernels; costs, 2 %."
        )
    return " ".join(words)


def _show_moved(found: Matrix, console: Console) -> None:
    if not found.moved:
        return
    console.print(Text("\nWhat moved", style="bold"))
    for step in found.moved:
        console.print(Text(_step_words(step)), soft_wrap=True)
        for each in step.functions:
            of = f" [{each.of}]" if each.of not in ("", "vmlinux") else ""
            change = each.after - each.before
            console.print(Text(f"    {change:+10,.1f}  {each.function}{of}, {each.layer}"), soft_wrap=True)
        if step.unknown:
            console.print(Text(f"    which functions is not known: {step.unknown}"), soft_wrap=True)


def _step_words(step: Step) -> str:
    way = "worse" if step.worse else "better"
    return (
        f"{step.setting}: {step.before} -> {step.after}: {_short(step.old)} -> {_short(step.new)} {step.unit}, "
        f"{100 * (step.ratio - 1):+.2f} %, {way}"
    )


def _short(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0") if value >= 100 else f"{value:.4g}"
