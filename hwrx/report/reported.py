"""A run with what is made of it: what `hwrx.load` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwrx.report.summary import summarise_runs
from hwrx.runs import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwrx.report.model import Summary


class ReportedRun(reading.Run):
    """A run directory opened for reading, with its figures of merit and pictures."""

    def summary(self) -> Summary:
        """Figures of merit of every path and setting, with intervals: what all reports are made from."""
        return summarise_runs([self])

    def figure(self, name: str) -> Figure:
        """Draw one of the report's figures, for example "cdf"; UsageError names the ones that this run has."""
        from hwrx.report.figures import draw_figure  # matplotlib takes longer to import than all else

        return draw_figure(self.summary(), name)
