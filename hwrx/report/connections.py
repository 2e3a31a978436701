"""The table of many connections of one process: whether their account closes, and how fairly they were served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hwrx.report import captions
from hwrx.report.cells import Cell, Table, column_heads, grouped_digits
from hwrx.report.model import Row, Summary
from hwrx.report.numbers import WITHHELD, number_text

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

Account = dict[str, npt.NDArray[Any]]  # columns of the run's table, the rows of some trials
NAME = "connections"
WHAT = (
    "Many connections of a process, a message under way on each (of several senders: all of theirs): of all messages, "
    "warm-up and cool-down too, what was sent, what its server received (one-sided paths have none) and what was "
    "answered. Then how many answers the connection with the fewest, the middle one and the one with the most got; and "
    "of the connections' median round trips the shortest, the middle and the longest, in µs"
)
COLUMNS = ("connections", "sent", "received", "answered", "lost", "answers of one", "its median round trip [µs]")


def connection_tables(summary: Summary) -> list[Table]:
    """The table, if a trial of any run had several connections."""
    pairs = [(row, run) for row in summary.rows for run in summary.runs if row.run in ("", run.path.name)]
    accounts = {id(row): account for row, run in pairs if (account := _account(run, row)) is not None}
    rows = [row for row in summary.rows if id(row) in accounts]
    if not rows:
        return []
    columns, head = column_heads(rows)
    columns += [(name, "") for name in COLUMNS]
    cells = [(first, [*head(row), *_cells(accounts[id(row)])]) for first, row in grouped_digits(rows)]
    return [Table(NAME, "Connections", f"{WHAT}; {captions.basis(rows)}. {summary.label}.", columns, cells, 2)]


def _account(run: Run, row: Row) -> Account | None:
    """The rows of the run's table that are of this row's trials, by column."""
    table = run.table(NAME)
    if table is None:
        return None
    of_row = np.isin(table["trial"].to_numpy(), row.trials)
    if not of_row.any():
        return None
    return {name: table[name].to_numpy(zero_copy_only=False)[of_row] for name in table.column_names}


def _cells(account: Account) -> list[Cell]:
    received = account["received"].astype(np.float64)
    totals = [account["sent"].sum(), received.sum(), account["answered"].sum(), account["unanswered"].sum()]
    words = [f"{int(account['connection'].max()) + 1}"]
    words += [WITHHELD if np.isnan(total) else f"{int(total)}" for total in totals]
    times = account["p50_ns"].astype(np.float64) / 1e3
    words += [_spread(account["answered"].astype(np.float64), 0), _spread(times[~np.isnan(times)])]
    return [(word, "") for word in words]


def _spread(values: npt.NDArray[np.float64], digits: int | None = None) -> str:
    if not len(values):
        return WITHHELD
    three = [float(values.min()), float(np.median(values)), float(values.max())]
    return " / ".join(number_text(value) if digits is None else f"{value:.{digits}f}" for value in three)
