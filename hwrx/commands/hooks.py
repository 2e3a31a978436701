"""`hwrx hooks`: where a packet can be looked at or changed, and what that costs."""

from __future__ import annotations

import pathlib
import statistics
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct
from rich.table import Table

from hwrx.commands.shared.output import print_json
from hwrx.errors import UsageError
from hwrx.host.console import open_console
from hwrx.paths.hooks import BY_NAME, HOOKS

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


class Cost(Struct, frozen=True):
    """What a hook adds to half a round trip, in ns (icount: guest instructions), with the 95 % interval over repeats.

    `as_expected`: the interval excludes zero for a hook that has work, and holds it for one that has none; None where
    there are fewer than two repeats.
    """

    hook: str
    base: float
    added: float
    low: float | None
    high: float | None
    repeats: int
    as_expected: bool | None


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=pathlib.Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def hooks(run: pathlib.Path | None, as_json: bool) -> None:
    """List the hooks in the order of a packet's way; with a RUN of lab/experiments/hooks.toml, what each costs.

    \b
    Example:
      hwrx compare lab/experiments/hooks.toml
      hwrx hooks runs/latest
    """
    # what a run says needs Arrow and SciPy, which a list of hooks starts without
    from hwrx.report.published import open_published

    found = {cost.hook: cost for cost in costs_of(open_published(run))} if run is not None else {}
    rows: list[dict[str, Any]] = []
    for hook in HOOKS:
        row = {"hook": hook.name, "where": hook.where, "sees": hook.sees, "may": hook.may, "works": hook.works}
        cost = found.get(hook.name)
        rows.append(row | ({"cost": msgspec.to_builtins(cost)} if cost else {}))
    if as_json:
        print_json(rows)
    else:
        _print(rows)


def costs_of(run: Run) -> list[Cost]:
    """Return what each hook of a run adds to the median, pair by pair: the hook's repeat against the bare one's."""
    # as above
    from hwrx.stats import student_factor

    medians: dict[str, dict[int, float]] = {}
    for row, samples in run.each_trial():
        if row["status"] == "ok":
            medians.setdefault(row.get("hook", "none"), {})[row["repeat"]] = statistics.median(samples.ns.tolist()) / 2
    if "none" not in medians:
        raise UsageError(f"{run.path} holds no trial without a hook", remedy="run lab/experiments/hooks.toml")
    bare = medians["none"]
    result = []
    for name, each in medians.items():
        added = [value - bare[repeat] for repeat, value in each.items() if repeat in bare]
        if name == "none" or not added:
            continue
        mean = statistics.fmean(added)
        low = high = None
        if len(added) > 1:
            half = student_factor(len(added) - 1) * statistics.stdev(added) / len(added) ** 0.5
            low, high = mean - half, mean + half
        holds = None if low is None or high is None else low <= 0 <= high
        expected = None if holds is None else holds != BY_NAME[name].works
        result.append(Cost(name, statistics.fmean(bare.values()), mean, low, high, len(added), expected))
    return result


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("hook", "where", "what is seen there", "what may be done"):
        table.add_column(heading)
    measured = any("cost" in row for row in rows)
    for heading in ("added a message", "95 % interval", "share") if measured else ():
        table.add_column(heading, justify="right")
    for row in rows:
        cost = row.get("cost")
        words = [row["hook"], row["where"], row["sees"], row["may"]]
        if cost:
            low, high = cost["low"], cost["high"]
            words += [
                f"{cost['added']:+,.0f}",
                "-" if low is None else f"{low:,.0f} … {high:,.0f}",
                f"{cost['added'] / cost['base']:+.1%}",
            ]
        table.add_row(*words)
    console = open_console()
    console.print(table)
    if measured:
        console.print("ns of half a round trip; with the clock icount, guest instructions")
