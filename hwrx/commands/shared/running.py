"""An experiment from its plan to the printed report, with a bar for the person who waits."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from hwrx.campaign import measuring
from hwrx.commands.shared.display import Display
from hwrx.errors import HwrxError
from hwrx.host import strict_json
from hwrx.runs import estimate
from hwrx.runs.experiment import Experiment
from hwrx.runs.planning import Plan
from hwrx.runs.testbed import Wanted


def run_and_report(
    experiment: Experiment, wanted: Wanted, *, runs: Path, dry_run: bool, as_json: bool, resume: Path | None = None
) -> Path | None:
    """Plan, run with a progress display, and end with the table and the path of the report.

    Return the run's directory; None after a dry run.
    """
    with Display() as display:
        layout = measuring.settle_plan(experiment, wanted, display.stage)
    if dry_run:
        print_plan(layout, wanted, as_json)
        return None
    with Display() as display:
        outcome, directory = measuring.measure_plan(layout, wanted, runs, resume, progress=display)
    print_report(directory, as_json=as_json)
    if outcome.failed:
        raise HwrxError(
            f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}",
            remedy=f"each failure stands in {directory / 'log.txt'}",
        )
    return directory


def print_report(directory: Path, *, as_json: bool) -> None:
    """Write report.html, print the table and where the report is; with `as_json` print the summary as JSON instead."""
    # Matplotlib takes longer to start than all else: not before something was measured
    from hwrx.report import tables, write_report
    from hwrx.report.published import open_published
    from hwrx.report.summary import summarise_runs

    summary = summarise_runs([open_published(directory)])
    written = write_report(summary, ("html",) if as_json else ("table", "html"), directory)
    if as_json:
        click.echo(tables.to_json(summary))
    else:
        for path in written:
            click.echo(path)


def print_plan(layout: Plan, wanted: Wanted, as_json: bool) -> None:
    """Say what a run of the plan would be."""
    guess = estimate.estimate_run(layout, here=wanted.here)
    if as_json:
        plan = {
            "estimate": msgspec.to_builtins(guess),
            "trials": [trial.label for trial in layout.trials],
            "skipped": [msgspec.to_builtins(skip) for skip in layout.skipped],
        }
        click.echo(strict_json.to_json(plan, indent=2))
        return
    click.echo(
        f"{layout.experiment.name}: {guess.trials} trials, {guess.samples} messages, about {guess.seconds:.0f} s and "
        f"{guess.disk / 1e6:.1f} MB ({guess.basis})"
    )
    for trial in sorted(layout.trials, key=lambda trial: trial.label)[:: max(1, layout.experiment.repeats)]:
        click.echo(f"  {trial.label}")
    for skip in layout.skipped:
        click.echo(f"  left out: {skip.label}: {skip.reason}")
