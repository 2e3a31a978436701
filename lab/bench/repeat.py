"""Runs experiments that count instructions several times, each time in a guest that is booted anew, and holds them
against each other, row by row.

A row is alike if all runs have its figure, to `--digits` significant digits. The figure is the median of a ping-pong;
of a stream the cost (the instructions that were executed for a message: a mean, which the guest's own doings move),
else the rate. A row whose trials fell into several states (the ends take turns on the one CPU in one way or another) is
alike if each state is, whatever their shares.

Prints a table and writes JSON. Exit code 1: some row differs, or is missing from a run.

    lab/bench/repeat [EXPERIMENT.toml ...] [--runs N] [--digits N] [--short] [--kernel VERSION] [--out DIR]
                     [--json FILE]

Without experiments: all of lab/experiments that count instructions. `--short`: one repeat of 100 messages, no tracing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

import hwrx
from hwrx.campaign.measuring import measure_plan
from hwrx.report.model import Row
from hwrx.runs import experiment as experiments
from hwrx.runs import planning, testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.testbed import Wanted

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"messages": 100, "warmup": 20, "repeats": 1, "trace": False}


class Held(Struct, frozen=True, kw_only=True):
    """One row of all runs: the figures that each run has of it, one or, of several states, each."""

    experiment: str
    row: str
    figure: str
    values: list[list[float]]  # by run; empty: the run has no such row
    alike: bool


def alike(values: Sequence[float], digits: int) -> bool:
    """Whether figures differ by no more than one in their last significant digit."""
    low, high = min(values), max(values)
    if low == high:
        return True
    if low <= 0 or not math.isfinite(high):
        return False
    return high - low <= 10.0 ** (math.floor(math.log10(low)) - digits + 1) * (1 + 1e-9)


def states_alike(runs: Sequence[Sequence[float]], digits: int) -> bool:
    """Whether every run has the row, and each figure of a run (its states) has its like in every other.

    A rare state need not occur in each run; each run's must then be among the others'. So one that no run shares with
    another makes the row differ.
    """
    if not all(runs):
        return False
    if all(len(values) == 1 for values in runs):
        return alike([values[0] for values in runs], digits)
    return all(
        any(alike([value, other], digits) for values in runs if values is not mine for other in values)
        for mine in runs
        for value in mine
    )


def name_of(row: Row) -> str:
    """Name a row by all that tells it apart."""
    swept = [f"{key}={value}" for key, value in row.swept.items()]
    return " ".join([row.path, f"{row.size} B", row.pattern, row.wait, *swept])


def figures_of(row: Row) -> tuple[str, list[float]]:
    """Return what the row's figure is called, and its values: one, or one a state."""
    if row.pattern == "pingpong" and (median := row.quantiles.get("p50")) is not None:
        return "p50", [state.value for state in row.states] or [median.value]
    if row.cost is not None:
        return "cost", [row.cost.value]
    return "messages/s", [] if row.messages_per_s is None else [row.messages_per_s.value]


def counted(files: Sequence[Path]) -> list[Experiment]:
    """Return the experiments of the files that count instructions here."""
    found = [testbed.settle_clock(experiments.load_experiment(file), Wanted()) for file in files]
    return [experiment for experiment in found if experiment.clock == "icount"]


def hold(experiment: Experiment, runs: int, digits: int, folder: Path) -> list[Held]:
    """Run an experiment so many times, and hold the runs against each other."""
    layout = planning.plan_run(experiments.with_seed(experiment), testbed.setting_checker(experiment, Wanted()))
    each: list[dict[str, tuple[str, list[float]]]] = []
    for _ in range(runs):
        outcome, path = measure_plan(layout, Wanted(), folder)
        for reason in outcome.failed:
            print(f"failed: {reason}", file=sys.stderr)
        each.append({name_of(row): figures_of(row) for row in hwrx.load(path).summary().rows})
    return held(experiment.name, each, digits)


def held(name: str, each: Sequence[dict[str, tuple[str, list[float]]]], digits: int) -> list[Held]:
    """Hold the rows of several runs against each other; `each` has of every run its rows' figures."""
    result = []
    for row in dict.fromkeys(row for run in each for row in run):
        found = [run.get(row, ("", [])) for run in each]
        values = [figures for _, figures in found]
        kind = next(kind for kind, _ in found if kind)
        result.append(Held(experiment=name, row=row, figure=kind, values=values, alike=states_alike(values, digits)))
    return result


def show(rows: Sequence[Held], digits: int) -> None:
    """Print a table; what differs stands out."""
    table = Table(box=None, pad_edge=False)
    for column in ("experiment", "row", "figure", "each run", "alike"):
        table.add_column(column, overflow="fold")
    for row in rows:
        runs = ["/".join(f"{value:.{digits + 1}g}" for value in values) or "-" for values in row.values]
        table.add_row(row.experiment, row.row, row.figure, "  ".join(runs), "yes" if row.alike else "[bold]NO")
    Console(width=160, highlight=False).print(table)
    print(f"{sum(row.alike for row in rows)} of {len(rows)} rows are alike to {digits} digits")


def main(words: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="EXPERIMENT.toml")
    parser.add_argument("--runs", type=int, default=3, help="boots of each experiment [3]")
    parser.add_argument("--digits", type=int, default=4, help="significant digits [4]")
    parser.add_argument("--short", action="store_true", help="one repeat of 100 messages, no tracing")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--out", type=Path, help="folder for the runs [a temporary one]")
    parser.add_argument("--json", type=Path, help="file for the result")
    given = parser.parse_args(words)
    if given.runs < 2:
        parser.error("it takes two runs to hold against each other: --runs 2 or more")
    files = given.files or sorted((ROOT / "lab/experiments").glob("*.toml"))
    chosen = counted(files)
    if not chosen:
        parser.error("none of these experiments counts instructions")
    more = {**(SHORT if given.short else {}), **({"kernel": given.kernel} if given.kernel else {})}
    rows: list[Held] = []
    with tempfile.TemporaryDirectory() as temporary:
        for experiment in chosen:
            changed = experiments.override_experiment(experiment, **more)
            rows += hold(changed, given.runs, given.digits, given.out or Path(temporary))
            show(rows, given.digits)
    if given.json:
        given.json.write_bytes(msgspec.json.format(json.dumps([msgspec.to_builtins(row) for row in rows]).encode()))
    return 0 if all(row.alike for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
