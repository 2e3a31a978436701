"""The report as one HTML file: opens without a network, on a phone, in print, light and dark."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from hwrx.host import disk
from hwrx.report import about, anatomies, answer, figures
from hwrx.report.model import Summary
from hwrx.report.page import NARROW, WIDE, render_template
from hwrx.report.provenance import flat_changes
from hwrx.report.tables import report_tables

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


MAIN = (
    "latency",
    "throughput",
    "load",
    "cost",
    "sweep-stages-1",
)  # tables that stand before the figures; the others follow them


def render_html(summary: Summary) -> str:
    """Return the page; the same for the same runs each time."""
    runs = summary.runs
    return render_template(
        "report.html",
        title=" and ".join(dict.fromkeys(run.name for run in runs)),
        questions=[_question(text) for text in dict.fromkeys(run.manifest.get("question") for run in runs) if text],
        summary=summary,
        answers=[(found, answer.as_table(summary, found)) for found in answer.answers_of(summary)],
        tables=report_tables(summary),
        main=MAIN,
        about=about.about_row(summary),
        charts=anatomies.flame_charts(summary),
        figures=[_figure(summary, name) for name in figures.figure_names(summary)],
        manifests=[_manifest(run) for run in runs],
        names=" ".join(run.path.name for run in runs),
    )


def write_html(summary: Summary, path: pathlib.Path) -> None:
    """Write the page to a file."""
    disk.write_new(path, render_html(summary))


def _question(text: str) -> tuple[str, str]:
    """The question, which is an experiment's first line, and what its file says besides, without its line breaks."""
    first, _, more = text.partition("\n")
    return first, " ".join(more.split())


def _figure(summary: Summary, name: str) -> dict[str, str]:
    return {
        "name": name,
        "title": figures.figure_title(name),
        "wide": figures.inline_figure(figures.draw_figure(summary, name, WIDE), f"{name}-wide"),
        "narrow": figures.inline_figure(figures.draw_figure(summary, name, NARROW), f"{name}-narrow"),
    }


def _manifest(run: Run) -> dict[str, object]:
    lines = [
        (key, words) for key, words in flat_changes(run.manifest) if key not in ("question", "skipped", "warnings")
    ]
    return {
        "name": run.path.name,
        "lines": lines,
        "experiment": run.experiment_text,
    }
