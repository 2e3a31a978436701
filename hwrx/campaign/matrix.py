"""What the cells of a campaign say, side by side: a figure for each setting and cell, and what moved between kernels.

A setting's figures are of one kind in all cells: if those of a cell do not repeat to the digit, all are costs. A figure
moved if it differs from that of the neighbour before by more than `over`, and, if it is a cost, by more than two runs
on one kernel do. Neighbours are cells that differ in the kernel alone, in the order of the list; times of two
processors are not held against each other. With `anatomy = true` the messages of the settings that moved, and of no
others, are taken apart on both sides, and the functions are named that have more or fewer instructions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from hwrx.anatomy import model
from hwrx.anatomy.model import Dissection
from hwrx.campaign.book import Book, Standing, State, read_result
from hwrx.errors import StoreError
from hwrx.host.decoding import UNREADABLE
from hwrx.report.headline import Headline
from hwrx.report.moved import Moved, moved_parts

OVER = 0.01  # share by which two figures differ before it is said that one moved
OVER_COST = 0.02  # by which costs of two runs on one kernel differ at most, as seen
IN_VAIN = 2  # attempts to take a cell's messages apart
NAMED = 5  # functions of a setting that moved


class Line(Struct, frozen=True, kw_only=True):
    """A cell in the table. `kernel`: the version that booted, as it says itself. `machine`: as in Result.

    `figures` by setting.
    """

    number: int
    cell: str
    values: dict[str, str]
    state: State
    kernel: str
    machine: str
    reason: str
    attempts: int
    run: str  # beneath the campaign's folder
    figures: dict[str, Headline]


class Step(Struct, frozen=True, kw_only=True):
    """A figure that moved from a cell to the next one: `ratio` is the second over the first."""

    setting: str
    label: str  # of the setting, where its messages are taken apart; "": they cannot be
    before: str  # the cells
    after: str
    places: tuple[int, int]  # their numbers
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
    lines = _of_one_kind([_line(book, each) for each in book.content.cells])
    settings = list(dict.fromkeys(setting for line in lines for setting in line.figures))
    moved = [step for before, after in _neighbours(lines) for step in steps_between(book, before, after, over)]
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
        number=standing.cell.number,
        cell=standing.cell.name,
        values=standing.cell.values,
        state=standing.state,
        kernel=result.kernel if result else "",
        machine=result.machine if result else "",
        reason=standing.reason,
        attempts=len(standing.attempts),
        run=run,
        figures={each.setting: each for each in result.figures} if result else {},
    )


def _of_one_kind(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with figures of one kind for each setting: a state beside a cost would seem to have moved."""
    costs = {
        setting
        for line in lines
        for setting, figure in line.figures.items()
        if figure.unit == "instructions" and not figure.exact
    }
    return [
        msgspec.structs.replace(
            line,
            figures={
                setting: figure.as_cost() if setting in costs else figure for setting, figure in line.figures.items()
            },
        )
        for line in lines
    ]


def _neighbours(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Return the pairs of cells that follow each other along the kernels; those without a figure are passed over."""
    rows: dict[tuple[tuple[str, str], ...], list[Line]] = {}
    for line in lines:
        others = tuple((axis, value) for axis, value in line.values.items() if axis != "kernel")
        if line.figures and "kernel" in line.values:
            rows.setdefault(others, []).append(line)
    return [pair for row in rows.values() for pair in itertools.pairwise(row)]


def steps_between(book: Book, before: Line, after: Line, over: float) -> list[Step]:
    """Return the figures that moved from one cell to another, with the functions that did, as far as they are known."""
    moved: list[tuple[Headline, Headline, float]] = []
    for setting, new in after.figures.items():
        old = before.figures.get(setting)
        if old is None or not old.value or old.unit != new.unit or old.exact != new.exact:
            continue
        if new.unit != "instructions" and before.machine != after.machine:
            continue  # on a cluster: what moved may be the processor
        ratio = new.value / old.value
        if abs(ratio - 1) > (over if new.exact or new.unit != "instructions" else max(over, OVER_COST)):
            moved.append((old, new, ratio))
    sides = [_dissected(book, line.number) for line in (before, after)] if moved else []
    return [
        Step(
            setting=new.setting,
            label=label_of(new),
            before=before.cell,
            after=after.cell,
            places=(before.number, after.number),
            unit=new.unit,
            old=old.value,
            new=new.value,
            ratio=ratio,
            worse=(ratio < 1) == new.more_is_better,
            functions=_functions(sides, label_of(new)),
            unknown=_unknown(book, sides, new),
        )
        for old, new, ratio in moved
    ]


def _functions(sides: Sequence[dict[str, Dissection]], label: str) -> list[Moved]:
    if not all(label in side for side in sides):
        return []
    return moved_parts(sides[0][label], sides[1][label])[:NAMED]


def _unknown(book: Book, sides: Sequence[dict[str, Dissection]], figure: Headline) -> str:
    """Say why no function of a figure that moved is named; "" if some are."""
    if figure.pattern != "pingpong":
        return f"messages of a {figure.pattern} trial are not taken apart"
    if all(label_of(figure) in side for side in sides):
        return ""
    return "they could not be taken apart: see its log" if book.content.anatomy else "anatomy = true names them"


def _dissected(book: Book, number: int) -> dict[str, Dissection]:
    """Return the messages of a cell that were taken apart, by the label of their setting."""
    found: dict[str, Dissection] = {}
    for file in sorted(book.folder(book.content.cells[number - 1].cell).glob(f"anatomy-*/{model.DOCUMENT}")):
        try:
            document = msgspec.json.decode(file.read_bytes())
            found |= {one.label: one for one in model.from_document(document)}
        except (OSError, StoreError, *UNREADABLE):
            continue
    return found


def to_take_apart(book: Book, steps: Iterable[Step]) -> dict[int, list[str]]:
    """Return the labels of the settings to take apart, by the number of the cell, so that each step has functions."""
    wanted: dict[int, list[str]] = {}
    for step in steps:
        if not step.label or step.functions:
            continue
        for number in step.places:
            if step.label not in _dissected(book, number) and step.label not in wanted.setdefault(number, []):
                wanted[number].append(step.label)
    return {number: labels for number, labels in wanted.items() if labels and not _in_vain(book, number)}


def _in_vain(book: Book, number: int) -> bool:
    """Whether a cell's messages could not be taken apart as often as is tried."""
    attempts = book.folder(book.content.cells[number - 1].cell).glob("anatomy-*")
    results = [read_result(attempt) for attempt in attempts]
    return sum(result is not None and result.state == "failed" for result in results) >= IN_VAIN


def label_of(figure: Headline) -> str:
    """Return the name that a setting has where its messages are taken apart (`planning.label_of`); "": they cannot."""
    return figure.label if figure.pattern == "pingpong" and figure.unit == "instructions" else ""
