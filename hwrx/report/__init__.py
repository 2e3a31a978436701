"""What a run says: terminal, HTML, figures, LaTeX tables, CSV and JSON, all made from `summary`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hwrx.errors import StoreError

if TYPE_CHECKING:
    from hwrx.report.model import Summary


def write_report(
    summary: Summary, formats: Sequence[str], directory: pathlib.Path, *, check_latex: bool = False
) -> list[pathlib.Path]:
    """Make the formats (table, html, pdf, svg, latex, csv, json) in `directory`; return the files. `table` prints."""
    # this is imported with every module of the package: only who writes a report starts Matplotlib
    from hwrx.host import disk
    from hwrx.report import figures, html, latex, tables, terminal

    written: list[pathlib.Path] = []
    if "table" in formats:
        page = directory / "report.html"
        terminal.show_summary(summary, page=page if "html" in formats else None)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for folder in ("figures", "tables"):
            disk.refuse_link(directory / folder)
        if "html" in formats:
            written.append(directory / "report.html")
            html.write_html(summary, written[-1])
        kinds = [kind for kind in ("pdf", "svg") if kind in formats]
        if kinds:
            written += figures.write_all(summary, directory / "figures", kinds)
        if "latex" in formats:
            files = latex.write_all(summary, directory / "tables")
            written += files
            if check_latex:
                latex.check_latex(files)
        for kind, function in (("csv", tables.to_csv), ("json", tables.to_json)):
            if kind in formats:
                written.append(directory / f"summary.{kind}")
                disk.write_new(written[-1], function(summary))
    except OSError as error:
        raise StoreError(f"cannot write the report in {directory}: {error.strerror or error}") from error
    return written
