"""What every table of the report is made of, for HTML, LaTeX and the terminal alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from hwrx.report import numbers
from hwrx.report.model import Row
from hwrx.report.numbers import size_of_rows, value_text
from hwrx.stats import Estimate

Kind = Literal["", "t"]  # a number, aligned right; text
Cell = tuple[str, str]  # what it says, and in small beside it how sure that is


class Table(Struct):
    """A table: `rows` are cells, each row with whether a group of rows begins with it.

    The first `keys` columns say what a row is of, and stay in sight on a narrow screen. `folded`: one of many, which a
    page shows when it is asked to.
    """

    name: str
    title: str
    caption: str
    columns: list[tuple[str, Kind]]
    rows: list[tuple[bool, list[Cell]]]
    keys: int = 0
    folded: bool = False


def column_heads(
    rows: Sequence[Row], *, offered: bool = True
) -> tuple[list[tuple[str, Kind]], Callable[[Row], list[Cell]]]:
    """The columns that tell these rows apart, and what gives a row's cells under them.

    Size and path come first and stand in every row: so they can stay in sight where the others scroll away. `offered`:
    with a column of the load or rate of an open loop, where a table has none of its own.
    """
    swept = list(dict.fromkeys(key for row in rows for key in row.swept if key != "rate"))
    patterns = len({row.pattern for row in rows}) > 1
    loads = offered and any(row.load is not None for row in rows)
    rates = offered and not loads and len({row.rate for row in rows if row.pattern == "paced"}) > 1
    columns: list[tuple[str, Kind]] = [("size", ""), ("path", "t")]
    columns += [("pattern", "t")] if patterns else []
    columns += [("wait", "t"), *((key.replace("_", " "), "t") for key in swept)]
    columns += [("load", "")] if loads else [("rate [1/s]", "")] if rates else []

    def cells(row: Row) -> list[Cell]:
        found: list[Cell] = [
            (size_of_rows(row), ""),
            (row.name, "full round trip" if row.measures == "FULL round trip" else ""),
        ]
        found += [(row.pattern, "")] if patterns else []
        found += [(row.wait, ""), *((swept_cell(row.swept.get(key)), "") for key in swept)]
        if loads or rates:
            found.append((numbers.share_words(row.load) if loads else numbers.offered_words(row.rate), ""))
        return found

    return columns, cells


def swept_cell(value: object) -> str:
    """A swept field's value in a column of its own; nothing has a word, for an empty cell would mean none."""
    return "none" if value is None or value == "" else str(value)


def estimate_cell(found: Estimate | None) -> Cell:
    """A figure and its interval."""
    return value_text(found), numbers.plus_minus(found)


def ratio_cell(row: Row, baseline: str) -> Cell:
    """A row's ratio to the baseline and its interval."""
    value, _, interval = numbers.ratio_text(row, baseline).partition(" ")
    return value, interval


def grouped_digits(rows: Sequence[Row]) -> list[tuple[bool, Row]]:
    """Rows, each with whether it is the first of its size and of what was swept."""
    groups = [(row.size, {key: value for key, value in row.swept.items() if key != "rate"}) for row in rows]
    return [(not place or groups[place - 1] != groups[place], row) for place, row in enumerate(rows)]
