"""`hwrx matrix`: an experiment over kernels, and what moved from one to the next."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from hwrx.campaign import cells
from hwrx.commands.shared.campaigns import Way, campaign_options, run_campaign
from hwrx.commands.shared.options import Many, counting, experiment_options
from hwrx.runs.experiment import described_experiment


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[EXPERIMENT]")
@click.option(
    "--kernels",
    type=Many(str, "KERNEL,…"),
    required=True,
    help="6.1, 6.12-rt, ~/linux, '6.1 init_on_alloc=1'; all, all-rt, all-cloud: each that apt offers.",
)
@experiment_options
@click.option("--topology", help="What lies between the two ends.")
@campaign_options
def matrix(file: Path | None, kernels: list[str], topology: str | None, **options: object) -> None:
    """Run EXPERIMENT, or what the options describe, on each of the kernels; print the table, and what moved.

    If a figure moved from one kernel to the next on the list, the functions are named that have more or fewer
    instructions, if messages were taken apart (anatomy = true, --anatomy). Given again the command goes on where it
    was.

    \b
    Examples:
      hwrx matrix lab/experiments/kernels.toml --kernels all
      hwrx matrix --paths udp,tcp --topology netns --clock icount --anatomy --kernels 6.1,6.12,6.12-rt
    """
    way = msgspec.convert({name: options.pop(name) for name in Way.__struct_fields__}, Way)
    del options["kernel"]
    experiment = described_experiment(file, counting(file, {**options, "topology": topology}))
    axes = cells.parse_axes({"kernels": kernels}, "--kernels")
    run_campaign(experiment, axes, way, str(file or "the options"))
