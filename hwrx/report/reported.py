"""A run with what is made of it: what `hwrx.load` and `hwrx.compare` return."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, overload

import pyarrow as pa
from msgspec import structs

from hwrx.errors import UnavailableError, UsageError
from hwrx.report.path_figures import PathFigures, find_row
from hwrx.report.ratios import relate_rows
from hwrx.report.summary import summarise_runs
from hwrx.runs import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwrx.report.model import Row, Summary
    from hwrx.stats import Estimate

TABLE_WIDTH = 80  # columns


class ReportedRun(reading.Run):
    """A run directory opened for reading, with its figures of merit and pictures.

    `run["udp", 64]` is what it found of a path at a size; a notebook shows a run as its table.
    """

    @property
    def whole_manifest(self) -> Mapping[str, object]:
        """The manifest with the names of hosts, also of a run that is shown without them."""
        return self.manifest

    def clean_text(self, text: str) -> str:
        """Return a text about this run as it may be shown: here, as it is."""
        return text

    def summary(self) -> Summary:
        """Figures of merit of every path and setting, with intervals: what all reports are made from.

        :return: a Summary, made anew from the samples at each call (one trial in memory at a time)
        :raises StoreError: if a file has been damaged since the run was opened
        """
        return summarise_runs([self])

    def __getitem__(self, key: str | tuple[str, int]) -> PathFigures:
        """Return what was found of a path at a size: `run["udp", 64]`, or `run["udp"]` if there is one size.

        :raises UsageError: see `cell`
        """
        return self.cell(*((key,) if isinstance(key, str) else key))

    def __iter__(self) -> Iterator[PathFigures]:
        """Go through all that was measured, in the order of the report."""
        return (PathFigures(self._summary, row) for row in self._summary.rows)

    def cell(self, path: str, size: int | None = None, **which: object) -> PathFigures:
        """Return what was found of a path in one setting.

        :param path: "udp", …
        :param size: of a message, in bytes; None: the only one that there is
        :param which: what tells it from others of the path: `pattern="stream"`, `wait="poll"`, `loss=0.01`, …
        :raises UsageError: if there is no such row, or several; it lists what there is
        """
        return PathFigures(self._summary, find_row(self._summary.rows, path, size, which))

    def ratio(self, path: str, *, to: str, size: int | None = None, **which: object) -> Estimate | dict[int, Estimate]:
        """Return how many times another path's figure a path's is, paired by the repeats that both have.

        The figure is the table's: what a message costs where instructions are counted, of streams elsewhere the rate,
        else p50.

        :param to: the other path, of which the row under the same conditions is taken
        :param size: in bytes; None: all sizes of the path
        :param which: see `cell`
        :return: the ratio with its interval; without `size` one for each size, by size
        :raises UsageError: if the run has no such rows, or several of a size
        :raises UnavailableError: if they have no ratio: a figure is withheld, or nothing is alike
        """
        if not any(row.path == to for row in self._summary.rows):
            raise UsageError(f"the run has no path '{to}'", remedy=f"choose of: {', '.join(self.paths)}")
        rows = [structs.replace(row, ratio=None, cost_ratio=None) for row in self._summary.rows]
        relate_rows(rows, to)
        if size is not None:
            return self._ratio_of(find_row(rows, path, size, which), to)
        sizes = sorted({row.size for row in rows if row.path == path})
        if not sizes:
            find_row(rows, path, None, which)  # says what there is
        return {each: self._ratio_of(find_row(rows, path, each, which), to) for each in sizes}

    @property
    def paths(self) -> list[str]:
        """The paths that were measured, in the experiment's order."""
        there = {row.path for row in self._summary.rows}
        return [path for path in dict.fromkeys(self.experiment.paths) if path in there]

    @overload
    def table(self) -> str: ...

    @overload
    def table(self, name: str) -> pa.Table | None: ...

    def table(self, name: str | None = None) -> pa.Table | str | None:
        """Return the text that the command ends with, 80 columns wide; with a name a table of the run's files.

        :param name: "stages", "copies", …: see `Run.table`
        :return: text; with a name an Arrow table, None if the run has none of that name
        """
        if name is not None:
            return super().table(name)
        from hwrx.report import terminal  # a console, which who reads figures alone does not need

        buffer = io.StringIO()
        terminal.show_summary(self._summary, buffer, TABLE_WIDTH)
        return buffer.getvalue()

    @property
    def figure_names(self) -> list[str]:
        """The names that `figure` takes, of the pictures that this run can fill."""
        from hwrx.report import figures  # matplotlib takes longer to import than all else

        return figures.figure_names(self._summary)

    def figure(self, name: str, *, width: float | None = None) -> Figure:
        """Draw one of the report's figures, for example "cdf".

        :param width: in inches; None: a column of a paper
        :return: a figure of Matplotlib; it is the caller's, and bound to no window
        :raises UsageError: if this run has no such figure; it names the ones that it has
        """
        from hwrx.report import figures, style  # matplotlib takes longer to import than all else

        return figures.draw_figure(self._summary, name, style.COLUMN if width is None else width)

    def _repr_html_(self) -> str:
        from hwrx.report.notebook import render_cell  # templates, which only a notebook wants

        return render_cell(self._summary)

    @functools.cached_property
    def _summary(self) -> Summary:
        return self.summary()

    def _ratio_of(self, row: Row, to: str) -> Estimate:
        found = row.cost_ratio if row.counted and row.cost_ratio is not None else row.ratio
        if found is None:
            name = PathFigures(self._summary, row).name
            raise UnavailableError(
                f"{name} has no ratio to {to}: a figure of one of them is withheld, or {to} was not measured alike"
                if row.path != to
                else f"{name} is {to} itself: its ratio is 1"
            )
        return found
