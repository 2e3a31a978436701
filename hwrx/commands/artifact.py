"""`hwrx artifact` and `hwrx rerun`: a run that somebody else can repeat."""

from __future__ import annotations

import pathlib

import click
import msgspec

from hwrx.commands.shared.output import hostnames_option
from hwrx.commands.shared.running import run_and_report
from hwrx.errors import StoreError, UsageError
from hwrx.report import artifact as artifacts
from hwrx.report import diff, diff_text
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs.testbed import Wanted


@click.command()
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--out", type=click.Path(path_type=pathlib.Path, dir_okay=False), help="The file [RUN.tar.gz here].")
@click.option("--anonymous", is_flag=True, help="For double-blind review: without names of people, hosts and places.")
@hostnames_option
def artifact(run: pathlib.Path, out: pathlib.Path | None, anonymous: bool, hostnames: bool) -> None:
    """Pack RUN for a reviewer: samples, manifest, versions, source, and a script that runs it again.

    \b
    Examples:
      hwrx artifact runs/latest --out artifact.tar.gz
      hwrx artifact runs/latest --anonymous
    """
    if anonymous and hostnames:
        raise UsageError("--anonymous takes names out, and --hostnames keeps them", remedy="leave out either")
    click.echo(artifacts.pack_artifact(ReportedRun.open(run), out, anonymous=anonymous, hostnames=hostnames))


@click.command()
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--runs", type=click.Path(path_type=pathlib.Path), default=pathlib.Path("runs"), help="Where runs go.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, how long and how much disk it takes.")
@click.option("--yes", is_flag=True, help="Do what the run says on this machine: see what that is without it.")
def rerun(run: pathlib.Path, runs: pathlib.Path, dry_run: bool, yes: bool) -> None:
    """Run the experiment of RUN again, same order of trials and same devices, and hold the figures against RUN's.

    A run may name a command that starts its peer, a host, or a kernel to boot. Nothing of it is done before --yes.

    \b
    Example:
      hwrx rerun runs/20260131T120000Z-first
    """
    before = ReportedRun.open(run)
    try:
        wanted = msgspec.convert({**before.manifest.get("asked", {}), "log": None}, Wanted)
    except msgspec.ValidationError as error:
        raise StoreError(f"{before.path} does not say how its ends were reached: {error}") from None
    asks = [*wanted.actions(), *experiments.boot_actions(before.experiment)]
    for words in asks:
        click.echo(f"the run asks for this on this machine: {words}", err=True)
    if asks and not (yes or dry_run):
        raise UsageError("nothing was done", remedy="if you trust whoever made the run: the same command with --yes")
    after = run_and_report(before.experiment, wanted, runs=runs, dry_run=dry_run, as_json=False)
    if after is not None:
        click.echo()
        diff_text.show_diff(diff.compare_runs([open_published(run)], [open_published(after)], anyway=True))
