"""What the cells of a campaign say, side by side: a figure for each setting and cell, and what moved between kernels.

A figure moved if it differs from that of the neighbour before by more than `over`. Of messages that both have taken
apart (`anatomy = true`) the functions are named that have more or fewer instructions. Neighbours are cells that differ
in the kernel alone, in the order of the list.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from msgspec import Struct

from hwrx.campaign.book import Book, Standing, State
from hwrx.errors import HwrxError
from hwrx.report.anatomies import moved_functions
from hwrx.report.headline import Headline
from hwrx.report.moved import Moved
from hwrx.report.reported import ReportedRun

OVER = 0.01  # share by which two figures differ before it is said that one moved
NAMED = 5  # functions of a setting that moved


class Line(Struct, frozen=True, kw_only=True):
    """A cell in the table. `kernel`: the version that booted, as it says itself. `figures` by setting."""

    cell: str
    values: dict[str, str]
    state: State
    kernel: str
    reason: str
    attempts: int
    run: str  # beneath the campaign's folder
    figures: dict[str, Headline]


class Step(Struct, frozen=True, kw_only=True):
    """A figure that moved from a cell to the next one: `ratio` is the second over the first."""

    setting: str
    before: str  # the cells
    after: str
    unit: str
    old: float
    new: float
    ratio: float
    worse: bool
    functions: list[Moved]
    unknown: str = ""  # why no function is named


class Matrix(Struct, frozen=True, kw_only=True):
    """A campaign as a table: a line for each cell, and what moved along the kernels."""

    name: str
    question: str
    axes: list[str]
    over: float
    settings: list[str]
    lines: list[Line]
    moved: list[Step]


def read_matrix(book: Book, over: float = OVER) -> Matrix:
    """Make the table of what a campaign has so far."""
    lines = [_line(book, each) for each in book.content.cells]
    settings = list(dict.fromkeys(setting for line in lines for setting in line.figures))
    moved = [step for before, after in _neighbours(lines) for step in _steps(book, before, after, over)]
    return Matrix(
        name=book.content.name,
        question=book.content.question,
        axes=book.content.axes,
        over=over,
        settings=settings,
        lines=lines,
        moved=moved,
    )


def _line(book: Book, standing: Standing) -> Line:
    result = book.result(standing) if standing.state in ("done", "failed") else None
    run = str((book.attempt_folder(standing) / result.run).relative_to(book.path)) if result and result.run else ""
    return Line(
        cell=standing.cell.name,
        values=standing.cell.values,
        state=standing.state,
        kernel=result.kernel if result else "",
        reason=standing.reason,
        attempts=len(standing.attempts),
        run=run,
        figures={each.setting: each for each in result.figures} if result else {},
    )


def _neighbours(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Return the pairs of cells that follow each other along the kernels; those without a figure are passed over."""
    rows: dict[tuple[tuple[str, str], ...], list[Line]] = {}
    for line in lines:
        others = tuple((axis, value) for axis, value in line.values.items() if axis != "kernel")
        if line.figures and "kernel" in line.values:
            rows.setdefault(others, []).append(line)
    return [pair for row in rows.values() for pair in itertools.pairwise(row)]


def _steps(book: Book, before: Line, after: Line, over: float) -> list[Step]:
    moved: list[tuple[Headline, Headline, float]] = []
    for setting, new in after.figures.items():
        old = before.figures.get(setting)
        if old is None or not old.value or old.unit != new.unit:
            continue
        ratio = new.value / old.value
        if abs(ratio - 1) > over:
            moved.append((old, new, ratio))
    if not moved:
        return []
    functions, unknown = _functions(book, before, after)
    return [
        Step(
            setting=new.setting,
            before=before.cell,
            after=after.cell,
            unit=new.unit,
            old=old.value,
            new=new.value,
            ratio=ratio,
            worse=(ratio < 1) == new.more_is_better,
            functions=[each for each in functions if each.setting == _anatomy_label(new)][:NAMED],
            unknown=unknown if new.pattern == "pingpong" else "a stream's messages are not taken apart",
        )
        for old, new, ratio in moved
    ]


def _functions(book: Book, before: Line, after: Line) -> tuple[list[Moved], str]:
    try:
        runs = [ReportedRun.open(book.path / line.run) for line in (before, after)]
        found = moved_functions(runs[:1], runs[1:])
    except HwrxError as error:
        return [], str(error).splitlines()[0]
    return found, "" if found else "no message was taken apart in both (anatomy = true does)"


def _anatomy_label(figure: Headline) -> str:
    """The name that a setting has where its messages were taken apart: see `hwrx.runs.planning.label_of`."""
    more = [f"{key}={value}" for key, value in figure.swept.items()]
    return " ".join([figure.path, f"{figure.size} B", figure.pattern, figure.wait, *more])
