"""`hwrx artifact` and `hwrx rerun`: a run that somebody else can repeat."""

from __future__ import annotations

import pathlib

import click


@click.command()
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--out", type=click.Path(path_type=pathlib.Path, dir_okay=False), help="The file [RUN.tar.gz here].")
def artifact(run: pathlib.Path, out: pathlib.Path | None) -> None:
    """Pack RUN for a reviewer: samples, manifest, versions, source, and a script that runs it again.

    \b
    Example:
      hwrx artifact runs/latest --out artifact.tar.gz
    """
    import hwrx
    from hwrx.report import artifact as artifacts

    click.echo(artifacts.pack_artifact(hwrx.load(run), out))


@click.command()
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--runs", type=click.Path(path_type=pathlib.Path), default=pathlib.Path("runs"), help="Where runs go.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, how long and how much disk it takes.")
def rerun(run: pathlib.Path, runs: pathlib.Path, dry_run: bool) -> None:
    """Run the experiment of RUN again, same order of trials and same devices, and hold the figures against RUN's.

    \b
    Example:
      hwrx rerun runs/20260131T120000Z-first
    """
    import msgspec

    import hwrx
    from hwrx.commands.compare import run_and_report
    from hwrx.report import diff, diff_text
    from hwrx.runs.testbed import Wanted

    before = hwrx.load(run)
    wanted = msgspec.convert(before.manifest.get("asked", {}), Wanted)
    after = run_and_report(before.experiment, wanted, runs=runs, dry_run=dry_run, as_json=False)
    if after is not None:
        click.echo()
        diff_text.show_diff(diff.compare_runs([before], [hwrx.load(after)], anyway=True))
