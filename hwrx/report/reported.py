"""A run with what is made of it: what `hwrx.load` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hwrx.report.summary import summarise_runs
from hwrx.runs import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwrx.report.model import Summary


class ReportedRun(reading.Run):
    """A run directory opened for reading, with its figures of merit and pictures."""

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

    def figure(self, name: str) -> Figure:
        """Draw one of the report's figures, for example "cdf".

        :return: a figure of Matplotlib, as wide as a column of a paper; it is the caller's, and bound to no window
        :raises UsageError: if this run has no such figure; it names the ones that it has
        """
        from hwrx.report.figures import draw_figure  # matplotlib takes longer to import than all else

        return draw_figure(self.summary(), name)
