"""`hwrx diff`: runs held against runs."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import click

from hwrx.commands.shared.output import hostnames_option
from hwrx.errors import StoreError, UsageError
from hwrx.host import disk
from hwrx.report import anatomies, baselines, diff_text
from hwrx.report import diff as differences
from hwrx.report.published import open_published
from hwrx.report.reported import ReportedRun

if TYPE_CHECKING:
    pass

BETWEEN = "\x1f--"  # stands for `--` among the arguments: options may follow it, which click would not allow


class Share(click.ParamType[float]):
    """A share, as 5% or 0.05."""

    name = "PERCENT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A number without a percent sign is a share of 1 if it is below 1, else percent."""
        words = str(value).strip()
        try:
            number = float(words.removesuffix("%"))
        except ValueError:
            self.fail(f"{words!r} is not a share; give it as 5% or 0.05", param, ctx)
        if not 0 <= number < 10_000:
            self.fail(f"{words!r} is not a share; give it as 5% or 0.05", param, ctx)
        return number / 100 if words.endswith("%") or number >= 1 else number


class Sided(click.Command):
    """A command whose arguments `--` divides into two sides."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the first `--` as an argument."""
        if "--" in args:
            place = args.index("--")
            args = [*args[:place], BETWEEN, *args[place + 1 :]]
        return super().parse_args(ctx, args)


@click.command(cls=Sided)
@click.argument("runs", nargs=-1, metavar="A… [--] B…")
@click.option("--fail-over", type=Share(), help="Exit with 1 if a figure is worse by more than this, beyond chance.")
@click.option("--single", is_flag=True, help="Judge one run on either side by its repeats.")
@click.option("--anyway", is_flag=True, help="Compare even two kernels, or trials of other lengths.")
@click.option("--save-baseline", metavar="NAME", help="Remember the runs by a name, and compare nothing.")
@click.option("--baselines", "list_baselines", is_flag=True, help="List the names, and their runs.")
@click.option(
    "--svg", "picture", type=click.Path(path_type=pathlib.Path, dir_okay=False), help="Where flame charts of both go."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@hostnames_option
def diff(
    runs: tuple[str, ...],
    fail_over: float | None,
    single: bool,
    anyway: bool,
    save_baseline: str | None,
    list_baselines: bool,
    picture: pathlib.Path | None,
    as_json: bool,
    hostnames: bool,
) -> None:
    """Hold the runs B against the runs A: what changed in the environment, and in the figures beyond chance.

    A run is the unit: give several a side (three at the least, five are better, made in turn: A B A B …). One run on
    either side is compared by its repeats, which differ by less than two runs do; that never exits with 1, unless
    --single says so. Guest instructions are compared to the digit. A name saved as a baseline stands for its runs.

    \b
    Examples:
      hwrx diff runs/A1 runs/A2 runs/A3 -- runs/B1 runs/B2 runs/B3
      hwrx diff --save-baseline v1 runs/A1 runs/A2 runs/A3
      hwrx diff v1 -- runs/B1 runs/B2 runs/B3 --fail-over 5%
      hwrx diff runs/before runs/after
      hwrx diff runs/before runs/after --svg moved.svg

    \b
    Exit codes: 0 nothing is worse beyond --fail-over; 1 something is; 2 there is nothing to compare.
    """
    try:
        if list_baselines:
            for name in baselines.baseline_names():
                click.echo(f"{name}: {' '.join(map(str, baselines.find_baseline(name) or ()))}")
            return
        if save_baseline is not None:
            file = baselines.save_baseline(save_baseline, [run.path for run in _load(runs)])
            click.echo(f"{file}: {save_baseline} stands for {len(runs)} run{'s' * (len(runs) != 1)} from now on")
            return
        before, after = (_load(side, hostnames=hostnames) for side in _sides(runs))
        found = differences.compare_runs(before, after, anyway=anyway, single=single)
        if picture is not None:
            disk.write_new(picture, anatomies.difference_charts(before, after))
    except StoreError as error:  # 1 is kept for what is worse
        raise UsageError(str(error)) from error
    if as_json:
        click.echo(differences.to_json(found))
    else:
        diff_text.show_diff(found)
    if fail_over is None:
        return
    worse = found.failures(fail_over)
    for change in worse:
        click.echo(f"worse: {change.row} {change.figure}: {change.percent:+.1f} %", err=True)
    if worse:
        raise click.exceptions.Exit(1)
    if found.unsampled and not single:
        rows = ", ".join(dict.fromkeys(change.row for change in found.unsampled)) if found.sampled else ""
        side = f"one run on either side{' has ' * bool(rows)}{rows}"
        click.echo(f"not judged: {side} (--single: by its repeats, with many false alarms)", err=True)


def _sides(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if BETWEEN in words:
        place = words.index(BETWEEN)
        sides = words[:place], words[place + 1 :]
        if all(sides):
            return sides
        raise UsageError("there is no run on one side of --", remedy="hwrx diff A1 A2 A3 -- B1 B2 B3")
    if len(words) != 2:
        raise UsageError(
            f"two sides are compared, and {len(words)} names do not say which is which",
            remedy="hwrx diff A1 A2 A3 -- B1 B2 B3, or hwrx diff A B",
        )
    return (words[0],), (words[1],)


def _load(words: tuple[str, ...], *, hostnames: bool = False) -> list[ReportedRun]:
    """The runs of a side, each once; a word that is no directory is the name of a baseline."""
    paths: list[pathlib.Path] = []
    for word in words:
        if word == BETWEEN:
            raise UsageError("--save-baseline takes runs, and no second side")
        named = None if pathlib.Path(word).exists() else baselines.find_baseline(word)
        if named is None and not pathlib.Path(word).exists() and "/" not in word:
            known = ", ".join(baselines.baseline_names()) or "none is saved"
            raise UsageError(
                f"{word} is neither a run directory nor a baseline ({known})",
                remedy=f"hwrx diff --save-baseline {word} RUN…",
            )
        paths += named or [pathlib.Path(word)]
    if not paths:
        raise UsageError("no run is given", remedy="hwrx diff A1 A2 A3 -- B1 B2 B3")
    resolved = [path.resolve() for path in paths]
    if twice := [path.name for path in resolved if resolved.count(path) > 1]:
        raise UsageError(f"the run {twice[0]} is given twice on one side: it is one run, and counts once")
    return [open_published(path, hostnames=hostnames) for path in paths]
