"""How often does `hwrx diff` see a change that is none, and how often one that is?

A pool of runs is made on this machine, one after the other, each by a command of its own: udp and tcp between two
network namespaces, 64 and 1400 B. Then they are held against each other by hwrx.report.diff itself:

* single: neighbours in time, one run on either side;
* five a side: ten runs in a row, made in turn (A B A B …), who begins drawn for each pair, in each of the 16 ways
  there are (the other 16 are the same with the sides' names exchanged): one draw alone would be chance, for the figures
  of ten runs go up and down together;
* the same with every time of one side longer by 10 % and by 20 % (planted: a quantile of scaled times is the scaled
  quantile, so that the figures of the runs are scaled).

Windows of ten overlap, as there are fewer runs than ten times the comparisons. So the standard error that stands with
a share is that of as many windows as lie side by side in the pool, each window's share taken as one observation. A
pool is kept with --pool and goes on from what is there; it may be of another machine, or of other settings. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

import hwrx
from hwrx.errors import HwrxError
from hwrx.report import diff
from hwrx.report.model import Row, Summary, scaled_estimate
from hwrx.report.reported import ReportedRun

SIDE = 5
FEWEST = 2 * SIDE
HWRX = (sys.executable, "-m", "hwrx")


class Kept:
    """A run whose summary is made once, and whose times may be longer by a factor."""

    def __init__(self, run: ReportedRun, summary: Summary, factor: float = 1.0) -> None:
        self._run = run
        self._summary = summary if factor == 1 else msgspec.structs.replace(
            summary, rows=[longer(row, factor) for row in summary.rows]
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def summary(self) -> Summary:
        return self._summary


def longer(row: Row, factor: float) -> Row:
    digests = [msgspec.structs.replace(digest, quantiles=digest.quantiles * factor) for digest in row.digests]
    quantiles = {name: found and scaled_estimate(found, factor) for name, found in row.quantiles.items()}
    return msgspec.structs.replace(
        row, digests=digests, quantiles=quantiles, rates=[rate / factor for rate in row.rates]
    )


def make_runs(pool: pathlib.Path, wanted: int, minutes: float, command: Sequence[str]) -> list[pathlib.Path]:
    """Fill the pool up to `wanted` runs, or until the minutes are over; a run that fails is told and left out."""
    began = time.monotonic()
    failed = 0
    while len(found := complete(pool)) < wanted and time.monotonic() - began < 60 * minutes and failed < 5:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed += 1
            print(f"a run failed ({done.returncode}): {done.stderr.strip()[-300:]}", file=sys.stderr)
        left = time.monotonic() - began
        print(f"\r{len(found) + 1} of {wanted} runs, {left:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return complete(pool)


def complete(pool: pathlib.Path) -> list[pathlib.Path]:
    """The runs of the pool that ended well, in the order in which they were made."""
    found = []
    for path in pool.iterdir():
        if path.is_symlink() or not (path / "manifest.json").exists():
            continue
        try:
            run = hwrx.load(path)
        except HwrxError:
            continue
        if run.status == "complete":
            found.append((run.manifest["started"], path))
    return [path for _, path in sorted(found)]


class Told(NamedTuple):
    """What one comparison says: figures judged, told apart at 5 % and after Holm; p50 alone; what --fail-over does."""

    figures: int
    apart: int
    firm: int
    middles: int
    middles_apart: int
    failed: bool


def told(found: diff.Diff) -> Told:
    judged = found.judged
    middles = [change for change in judged if change.figure in ("p50 µs", "messages/s")]
    return Told(
        figures=len(judged),
        apart=sum(change.told_apart for change in judged),
        firm=sum(change.told_apart and change.holm <= diff.CHANCE for change in judged),
        middles=len(middles),
        middles_apart=sum(change.told_apart for change in middles),
        failed=bool(found.failures(0.05)),
    )


def singles(runs: Sequence[Kept], pairs: int, *, judged: bool) -> list[Told]:
    places = range(0, len(runs) - 1, 2)[:pairs]
    return [told(diff.compare_runs([runs[place]], [runs[place + 1]], single=judged)) for place in places]  # type: ignore[list-item]


def fives(runs: Sequence[Kept], slower: Sequence[Kept], times: int) -> list[list[Told]]:
    """Each window of ten runs, told in each way in which the order within its pairs may have been drawn."""
    found = []
    for place in np.linspace(0, len(runs) - 2 * SIDE, times).astype(int):
        window = []
        for order in itertools.product((0, 1), repeat=SIDE - 1):
            sides: tuple[list[Kept], list[Kept]] = ([], [])
            for pair, second in enumerate((0, *order)):
                sides[0].append(runs[place + 2 * pair + second])
                sides[1].append(slower[place + 2 * pair + 1 - second])
            window.append(told(diff.compare_runs(*sides)))  # type: ignore[arg-type]
        found.append(window)
    return found


def line(what: str, found: Sequence[Sequence[Told]], goal: str, apart_from_others: float = 0.0) -> None:
    """Print a row: shares over all comparisons; with `apart_from_others` windows a standard error from theirs."""
    total = Told(*(sum(of) for of in zip(*itertools.chain(*found), strict=True)))
    error = ""
    if apart_from_others > 1:
        shares = [sum(each.apart for each in window) / sum(each.figures for each in window) for window in found]
        error = f" ± {100 * float(np.std(shares, ddof=1)) / apart_from_others**0.5:.1f}"
    comparisons = sum(len(window) for window in found)
    print(
        f"| {what} | {comparisons} | {total.figures} | {100 * total.apart / total.figures:.1f}{error} % "
        f"| {100 * total.middles_apart / total.middles:.1f} % | {100 * total.firm / total.figures:.1f} % "
        f"| {100 * total.failed / comparisons:.0f} % | {goal} |",
        flush=True,
    )


def spreads(runs: Sequence[Kept]) -> None:
    """By how much the runs of the pool differ: what any comparison has to see through."""
    print(
        "\n| p50 | runs | geometric mean, µs | standard deviation of runs | of repeats within a run |\n"
        "|---|---|---|---|---|"
    )
    by_row: dict[str, list[list[float]]] = {}
    for run in runs:
        for row in run.summary().rows:
            if row.digests:
                by_row.setdefault(diff.name_of_row(row), []).append([of.quantile(0.5) for of in row.digests])
    for name, medians in by_row.items():
        logs = [np.log(of) for of in medians]
        between = float(np.std([of.mean() for of in logs], ddof=1))
        within = float(np.sqrt(np.mean([of.var(ddof=1) for of in logs if len(of) > 1])))
        middle = float(np.exp(np.mean([of.mean() for of in logs])))
        print(f"| {name} | {len(medians)} | {middle:.2f} | {100 * between:.1f} % | {100 * within:.1f} % |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=80, help="in the pool")
    parser.add_argument("--pairs", type=int, default=40, help="comparisons of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=12.0, help="after which no more runs are made")
    parser.add_argument("--pool", type=pathlib.Path, help="keep the runs here, and go on from those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hwrx-aa-") as scratch:
        pool = arguments.pool or pathlib.Path(scratch)
        pool.mkdir(parents=True, exist_ok=True)
        options = ["--paths", "udp,tcp", "--size", "64,1400", "--topology", "netns"]
        options += ["--repeats", str(arguments.repeats), "--messages", str(arguments.messages), "--runs", str(pool)]
        paths = make_runs(pool, arguments.runs, arguments.minutes, [*HWRX, "compare", *options])
        if len(paths) < FEWEST:
            print(f"{len(paths)} runs are too few: {FEWEST} are needed", file=sys.stderr)
            return 1
        loaded = [hwrx.load(path) for path in paths[: arguments.runs]]
        summaries = [run.summary() for run in loaded]
        pools = {
            factor: [Kept(run, summary, factor) for run, summary in zip(loaded, summaries, strict=True)]
            for factor in (1.0, 1.1, 1.2)
        }
    same = pools[1.0]
    print(f"`hwrx compare {' '.join(options[:-2])}`, {len(same)} runs, {summaries[0].label}\n")
    print(
        "| runs | comparisons | figures | told apart at 5 % | p50 alone | after Holm | exit 1 with --fail-over 5% "
        "| goal |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    apart = len(same) / (2 * SIDE)
    line("the same, one a side", [singles(same, arguments.pairs, judged=False)], "told apart ≤ 7 %")
    line("the same, one a side, --single", [singles(same, arguments.pairs, judged=True)], "none; it must be asked for")
    line("the same, five a side", fives(same, same, arguments.pairs), "told apart ≤ 7 %", apart)
    line("+10 %, five a side", fives(same, pools[1.1], arguments.pairs), "told apart ≥ 50 %", apart)
    line("+20 %, five a side", fives(same, pools[1.2], arguments.pairs), "told apart ≥ 80 %", apart)
    spreads(same)
    return 0


if __name__ == "__main__":
    sys.exit(main())
