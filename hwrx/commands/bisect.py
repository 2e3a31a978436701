"""`hwrx bisect`: the first kernel of a list, or the first commit of a git tree, on which a figure is bad."""

from __future__ import annotations

import traceback
from pathlib import Path

import click
import msgspec
from rich.table import Table

from hwrx.campaign import bisecting, cells, condition
from hwrx.campaign.bisecting import ABORT, Found
from hwrx.commands.shared.campaigns import measure_one, open_search, steps_of
from hwrx.commands.shared.display import Display
from hwrx.commands.shared.options import Many, counting, experiment_options
from hwrx.errors import HwrxError, UsageError
from hwrx.host import strict_json
from hwrx.host.console import open_console
from hwrx.runs import planning
from hwrx.runs.experiment import described_experiment


class AbortUsageError(click.UsageError):
    """A wrong word of a script of `git bisect run`."""

    exit_code = ABORT


class GitsScript(click.Command):
    """A command that `git bisect run` may call: what is wrong with its own words ends that, and is no bad commit."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **options: object
    ) -> click.Context:
        """Exit with 128 instead of 2 if --build is among the words."""
        builds = any(word.startswith("--build") for word in args)
        try:
            return super().make_context(info_name, args, parent, **options)
        except click.UsageError as error:
            if builds:
                raise AbortUsageError(error.message, error.ctx) from error
            raise


@click.command(cls=GitsScript)
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[EXPERIMENT]")
@click.option(
    "--test", "wanted", required=True, help="What a bad kernel has: 'udp@64 p50 > 1.05' (times the good one)."
)
@click.option("--kernels", type=Many(str, "KERNEL,…"), help="The list, in order; all, all-rt: each that apt offers.")
@click.option("--good", help="A kernel of the list that is good.")
@click.option("--bad", help="A kernel of the list that is bad.")
@click.option("--build", metavar="CMD", help="As a script of `git bisect run`: the command that builds the kernel.")
@click.option("--tree", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="The git tree [.].")
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="RUN", help="With --build: a run on a good kernel."
)
@experiment_options
@click.option("--topology", help="What lies between the two ends.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Where runs go [campaigns/bisect-NAME].")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def bisect(
    file: Path | None,
    wanted: str,
    kernels: list[str] | None,
    good: str | None,
    bad: str | None,
    build: str | None,
    tree: Path,
    reference: Path | None,
    topology: str | None,
    out: Path | None,
    as_json: bool,
    **options: object,
) -> None:
    """Find the first kernel on which a figure of EXPERIMENT is bad.

    Of a list of kernels it boots the good one and then the middle of what is left: 5 boots for 17 kernels. Given again
    the command goes on where it was.

    With --build it is the script of `git bisect run`: it builds the kernel of the commit that git has checked out,
    boots it from the tree, and exits with 0 if it is good, 1 if it is bad, 125 if it cannot be built or booted, and 128
    if there is no use in going on.

    \b
    Examples:
      hwrx bisect udp.toml --kernels all --good 6.1.0-47 --bad 6.12.117+deb12 --test 'udp@64 p50 > 1.05'
      git bisect start BAD GOOD
      git bisect run hwrx bisect ~/udp.toml --build 'make -j8 bzImage modules' --test 'udp@64 > 13000 instructions'
    """
    del options["kernel"]
    try:
        test = condition.parse_condition(wanted)
        experiment = described_experiment(file, counting(file, {**options, "topology": topology}))
        test.need_measured(planning.plan_run(experiment).settings)
    except HwrxError as error:
        if build is not None:
            raise bisecting.AbortError(str(error)) from error
        raise
    if build is not None:
        if kernels or good or bad:
            raise bisecting.AbortError(
                "--build takes the commit that git has checked out", remedy="leave out --kernels"
            )
        runs = out or tree / ".git" / "hwrx-runs"
        try:
            with Display() as waiting:
                code, words = bisecting.judge_build(
                    experiment, test, build=build, tree=tree, reference=reference, runs=runs, progress=waiting
                )
        except HwrxError:
            raise
        except Exception as error:  # Python's own exit code would call the commit bad
            traceback.print_exc()
            raise bisecting.AbortError(f"{type(error).__name__}: {error}") from error
        click.echo(f"{ {0: 'good', 1: 'bad'}.get(code, 'skipped') }: {words}")
        raise click.exceptions.Exit(code)
    if not (kernels and good and bad):
        raise UsageError(
            "a list needs its ends", remedy="--kernels all --good K --bad K, or --build CMD within git bisect run"
        )
    listed = bisecting.between(cells.listed_kernels(kernels), good, bad)
    axes = cells.parse_axes({"kernels": listed}, "--kernels")
    book = open_search(experiment, axes, out, str(file or "the options"))
    with book.driven(), Display() as display:
        search = bisecting.Search(listed, test, lambda place: measure_one(book, place, display))
        found = search.carry_out()
        ends = [listed.index(name) for name in (found.last_good, found.first_bad)]
        moved = steps_of(book, ends, display)
        found = msgspec.structs.replace(found, moved=[each for step in moved for each in step.functions])
    if as_json:
        click.echo(strict_json.to_json(msgspec.to_builtins(found), indent=2))
    else:
        _show(found)


def _show(found: Found) -> None:
    console = open_console()
    table = Table(box=None, pad_edge=False)
    for name in ("boot", "kernel", "figure", "times the good one's", "verdict"):
        table.add_column(name, justify="right" if name in ("boot", "figure", "times the good one's") else "left")
    for number, each in enumerate(found.judged, 1):
        figures = ("–", "–") if each.verdict == "skip" else (f"{each.value:,.6g}", f"{each.ratio:.4f}")
        table.add_row(
            str(number),
            each.kernel,
            *figures,
            each.verdict + (f": {each.reason.splitlines()[0]}" if each.reason else ""),
        )
    console.print(table)
    between = f", or one of {', '.join(found.between)}, which cannot be looked at" if found.between else ""
    console.print(f"\nThe first bad kernel is {found.first_bad}{between}; the last good one is {found.last_good}.")
    for one in found.moved[:12]:
        console.print(f"  {one.after - one.before:+10,.1f}  {one.function}, {one.layer} ({one.setting})")
