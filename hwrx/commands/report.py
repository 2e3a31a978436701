"""`hwrx report`: everything that a run says, made from its directory alone."""

from __future__ import annotations

import pathlib

import click

from hwrx.errors import UsageError

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
@click.option("--check-latex", is_flag=True, help="Compile the LaTeX tables after writing them.")
def report(
    runs: tuple[pathlib.Path, ...], formats: tuple[str, ...], out: pathlib.Path | None, as_json: bool, check_latex: bool
) -> None:
    """Print and write the report of one run, or of several in one.

    \b
    Examples:
      hwrx report runs/latest
      hwrx report runs/latest --to pdf --to latex --out paper/figures
      hwrx report runs/A runs/B --json
    """
    import hwrx
    from hwrx.report import tables
    from hwrx.report.summary import summarise

    loaded = [hwrx.load(run) for run in runs]
    if floods := [run for run in loaded if run.manifest.get("kind") == "flood"]:
        if len(loaded) > 1 or formats or out:
            raise UsageError("a run of floods has a report of its own, all of it", remedy=f"hwrx flood {runs[0]}")
        from hwrx.commands import flood
        from hwrx.flood import keep

        flood.report(floods[0].path, keep.load(floods[0].path), as_json=as_json)
        return
    summary = summarise(loaded)
    if as_json:
        click.echo(tables.to_json(summary))
        return
    from hwrx.report import write

    for path in write(summary, formats or ("table", "html"), out or summary.runs[0].path, check_latex=check_latex):
        click.echo(path)
