"""`hwrx report`: everything that a run says, made from its directory alone."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from hwrx.commands.shared.output import hostnames_option, print_json
from hwrx.errors import UsageError
from hwrx.host.console import open_console
from hwrx.report import tables, write_report
from hwrx.report.published import open_published
from hwrx.report.summary import summarise_runs

if TYPE_CHECKING:
    from hwrx.runs.schema import Column

FORMATS = ("table", "html", "pdf", "svg", "latex", "csv", "json")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=pathlib.Path))
@click.option(
    "--to",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="What to make [table and html]; repeat for several.",
)
@click.option("--out", type=click.Path(path_type=pathlib.Path, file_okay=False), help="Where to write [the first run].")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON, and write nothing.")
@click.option("--schema", is_flag=True, help="Say what stands in the tables of the run: columns, units, meanings.")
@click.option("--check-latex", is_flag=True, help="Compile the LaTeX tables after writing them.")
@hostnames_option
def report(
    runs: tuple[pathlib.Path, ...],
    formats: tuple[str, ...],
    out: pathlib.Path | None,
    as_json: bool,
    schema: bool,
    check_latex: bool,
    hostnames: bool,
) -> None:
    """Print and write the report of one run, or of several in one.

    \b
    Examples:
      hwrx report runs/latest
      hwrx report runs/latest --to pdf --to latex --out paper/figures
      hwrx report runs/A runs/B --json
      hwrx report runs/latest --schema
    """
    loaded = [open_published(run, hostnames=hostnames) for run in runs]
    if schema:
        for run in loaded:
            print_columns(run.columns(), as_json=as_json)
        return
    if floods := [run for run in loaded if run.manifest.get("kind") == "flood"]:
        if len(loaded) > 1 or formats or out:
            raise UsageError("a run of floods has a report of its own, all of it", remedy=f"hwrx flood {runs[0]}")
        # of floods alone: what a comparison's report needs not start with
        from hwrx.commands.shared.floods import report_flood

        report_flood(floods[0].path, as_json=as_json, hostnames=hostnames)
        return
    summary = summarise_runs(loaded)
    if as_json:
        click.echo(tables.to_json(summary))
        return

    for path in write_report(
        summary, formats or ("table", "html"), out or summary.runs[0].path, check_latex=check_latex
    ):
        click.echo(path)


def print_columns(columns: list[Column], *, as_json: bool) -> None:
    """Print the columns of a run's tables, as a table or as JSON."""
    if as_json:
        print_json(columns)
        return
    shown = Table(box=None, pad_edge=False)
    for name in ("table", "column", "type", "unit", "meaning"):
        shown.add_column(name, overflow="fold")
    for column in columns:
        shown.add_row(*map(Text, (column.table, column.name, column.type, column.unit, column.meaning)))
    open_console().print(shown)
