"""`hwrx track`: a history of runs, with change points."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.table import Table

from hwrx.campaign import tracking, tracking_page
from hwrx.campaign.history import Track
from hwrx.commands.shared.campaigns import over_option
from hwrx.commands.shared.output import hostnames_option
from hwrx.errors import UsageError
from hwrx.host import disk, strict_json
from hwrx.host.console import open_console


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]…")
@click.option("--history", type=click.Path(path_type=Path, file_okay=False), help="Every run beneath this folder.")
@click.option("--across-kernels", is_flag=True, help="One history over all kernels [one for each].")
@over_option
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), help="Where the page goes [none is written].")
@click.option("--json", "as_json", is_flag=True, help="Print the histories as JSON.")
@hostnames_option
def track(
    runs: tuple[Path, ...],
    history: Path | None,
    across_kernels: bool,
    over: float,
    page: Path | None,
    as_json: bool,
    hostnames: bool,
) -> None:
    """Show how each figure went from run to run, and where it changed.

    A history is of one experiment and setting on one machine and kernel. Guest instructions change where their digits
    do; of times Apache Otava finds the change points (pip install --no-deps apache-otava).

    \b
    Examples:
      hwrx track --history runs --page track.html
      hwrx track runs/A runs/B runs/C runs/D --json
    """
    paths = [*runs, *(tracking.runs_beneath(history) if history is not None else ())]
    if not paths:
        raise UsageError("no run is given", remedy="hwrx track --history runs")
    once = list(dict.fromkeys(path.resolve() for path in paths))
    found = tracking.read_track(once, over=over, across_kernels=across_kernels, hostnames=hostnames)
    if not found.histories:
        raise UsageError(f"none of the {len(once)} runs has a figure: {'; '.join(found.left_out[:3])}")
    if page is not None:
        disk.write_new(page, tracking_page.render_track(found, over))
    if as_json:
        click.echo(strict_json.to_json(msgspec.to_builtins(found), indent=2))
    else:
        _show(found)
        if page is not None:
            click.echo(page)


def _show(found: Track) -> None:
    console = open_console()
    table = Table(box=None, pad_edge=False)
    for name in ("experiment", "setting", "kernel", "runs", "last", "unit", "changes"):
        table.add_column(name, justify="right" if name in ("runs", "last") else "left")
    for each in found.histories:
        changes = each.not_judged or "; ".join(tracking_page.change_words(each)) or "none"
        last = tracking_page.number(each.points[-1].value)
        kernel = each.kernel or "several"
        table.add_row(each.experiment, each.setting, kernel, str(len(each.points)), last, each.unit, changes)
    console.print(table)
    for words in found.left_out:
        console.print(f"left out: {words}")
