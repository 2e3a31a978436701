"""`hwrx campaign`: one experiment over kernels, boot words, hosts and settings."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from hwrx.campaign import cells
from hwrx.campaign.book import Book
from hwrx.commands.shared.campaigns import Way, campaign_options, over_option, print_campaign, run_campaign


@click.group()
def campaign() -> None:
    """One experiment over kernels, boot words, hosts and settings: each combination is a cell, a run of its own."""


@campaign.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="EXPERIMENT")
@campaign_options
def run(file: Path, **way: object) -> None:
    """Carry out the campaign that EXPERIMENT describes in its table [campaign], and print its table.

    Given again it goes on where it was: after Ctrl-C, a kill, or a cell that was lost with its node. A cell that fails
    is a cell: its error stands in the table, and the others go on.

    \b
    Examples:
      hwrx campaign run kernels.toml
      hwrx campaign run kernels.toml --slurm --sbatch '--partition=lab'

    \b
    Where kernels.toml is an experiment with, at its end:
      [campaign]
      kernels = ["6.1", "6.12", "6.12-rt", "~/linux"]

    \b
    Exit codes: 0 all cells are done or left out with a reason; 1 a cell failed.
    """
    experiment, axes = cells.load_campaign(file)
    run_campaign(experiment, axes, msgspec.convert(way, Way), str(file))


@campaign.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="CAMPAIGN")
@over_option
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def show(folder: Path, over: float, as_json: bool) -> None:
    """Print the table of what a campaign has so far, from its folder alone.

    \b
    Example:
      hwrx campaign show campaigns/kernels
    """
    print_campaign(Book.open(folder), over, as_json=as_json)
