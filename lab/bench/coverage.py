"""How often do hwrx's 95 % intervals hold the truth, also if what they assume is not so? And how often is one mode two?

Every line is a simulated experiment, repeated: its truth is known, its intervals are hwrx.stats' own. Nothing is left
out of the tables, and no line is measured against a goal. Prints Markdown; fewer or more draws with --experiments.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.signal
import scipy.stats

from hwrx import stats

Floats = npt.NDArray[np.float64]
Draw = np.random.Generator
Held = tuple[float, stats.Estimate | None]  # the truth, and what should hold it

COUNT = 2000  # samples a trial
BETWEEN = 0.05  # by how much trials differ beyond their samples
FAST, SLOW = scipy.stats.lognorm(0.1, scale=1.0), scipy.stats.lognorm(0.15, scale=3.0)
SHARE = 0.7


# --- samples of a trial: a distribution with mean 1 µs or so, and its quantiles ------------------------------------


def two_modes(draw: Draw, count: int) -> Floats:
    fast = draw.random(count) < SHARE
    return np.where(fast, np.exp(draw.normal(0, 0.1, count)), 3 * np.exp(draw.normal(0, 0.15, count)))


def two_modes_quantile(p: float) -> float:
    return float(scipy.optimize.brentq(lambda x: SHARE * FAST.cdf(x) + (1 - SHARE) * SLOW.cdf(x) - p, 0.1, 100))


def autoregressive(draw: Draw, count: int, phi: float) -> Floats:
    """AR(1) with variance 1, begun in its stationary state."""
    noise = draw.normal(0, math.sqrt(1 - phi**2), count)
    noise[0] = draw.normal()
    return np.asarray(scipy.signal.lfilter([1], [1, -phi], noise))


KINDS: dict[str, tuple[Callable[[Draw, int], Floats], Callable[[float], float]]] = {
    "exponential": (lambda draw, count: draw.exponential(1, count), lambda p: -math.log(1 - p)),
    "log-normal": (
        lambda draw, count: np.exp(0.5 * draw.normal(size=count)),
        lambda p: math.exp(0.5 * float(scipy.stats.norm.ppf(p))),
    ),
    "two modes": (two_modes, two_modes_quantile),
    "AR(1), 0.9": (
        lambda draw, count: np.exp(0.4 * autoregressive(draw, count, 0.9)),
        lambda p: math.exp(0.4 * float(scipy.stats.norm.ppf(p))),
    ),
}


def quantiles(kind: str, repeats: int, draw: Draw) -> Iterator[Held]:
    """p50, p90, p99, and the ratio of two paths at p50, paired by repeat."""
    make, truth = KINDS[kind]
    factors = np.exp(draw.normal(0, BETWEEN, repeats))
    both = [
        [stats.digest_samples((1e6 * factor * make(draw, COUNT)).astype(np.int64)) for factor in factors]
        for _ in range(2)
    ]
    for p in (0.5, 0.9, 0.99):
        yield 1e6 * truth(p), stats.quantile_across(both[0], p)
    yield 1.0, stats.quantile_ratio(both[0], both[1], 0.5)


# --- figures of trials: what lies between repeats ------------------------------------------------------------------


def effects(kind: str, repeats: int, draw: Draw) -> Floats:
    """Logarithms of the repeats' figures, with mean 0 over all repeats that there could be."""
    noise = 0.02 * draw.normal(size=repeats)
    if kind == "normal":
        return 5 * noise
    if kind == "heavy tails (t, 3)":
        return 0.1 * draw.standard_t(3, repeats)
    if kind == "skewed (exponential)":
        return 0.2 * (draw.exponential(1, repeats) - 1)
    if kind.startswith("two groups"):
        share = 0.5 if "half" in kind else 0.2
        return noise + math.log(1.6) * ((draw.random(repeats) < share) - share)
    if kind.startswith("AR(1)"):
        return 0.1 * autoregressive(draw, repeats, float(kind.removeprefix("AR(1), ")))
    if kind == "drift of 20 %":
        return noise + np.linspace(-0.1, 0.1, repeats)
    if kind == "one that is twice":
        return noise + math.log(2) * ((draw.random(repeats) < 0.1) - 0.1)
    raise ValueError(kind)


BETWEENS = (
    "normal", "heavy tails (t, 3)", "skewed (exponential)", "two groups, half", "two groups, a fifth", "AR(1), 0.5",
    "AR(1), 0.9", "drift of 20 %", "one that is twice",
)  # fmt: skip


def between(kind: str, repeats: int, draw: Draw) -> Iterator[Held]:
    yield 1.0, stats.interval_across(np.exp(effects(kind, repeats, draw)).tolist())


def coarse(tick: float, repeats: int, draw: Draw) -> Iterator[Held]:
    """A clock of `tick` ns, times of 10 µs: p50 and the mean's rate."""
    trials = []
    for factor in 10_000 * np.exp(draw.normal(0, 0.01, repeats)):
        begin = draw.random(COUNT) * 1e9
        end = begin + factor * np.exp(draw.normal(0, 0.03, COUNT))
        trials.append(
            stats.digest_samples((np.floor(end / tick) * tick - np.floor(begin / tick) * tick).astype(np.int64))
        )
    yield 10_000, stats.quantile_across(trials, 0.5)
    mean = 10_000 * math.exp(0.03**2 / 2)
    yield (
        1e9 / mean,
        stats.interval_across([1e9 / of.mean for of in trials], step=max(of.step / of.mean for of in trials)),
    )


def slopes(repeats: int, draw: Draw) -> Iterator[Held]:
    """2 ns a byte and 10 µs a message over five sizes, each figure moved by 3 % and each repeat by 5 %."""
    sizes = np.array([64, 256, 1024, 4096, 16384.0])
    lines = []
    for factor in np.exp(draw.normal(0, 0.05, repeats)):
        medians = factor * (10_000 + 2 * sizes) * np.exp(draw.normal(0, 0.03, len(sizes)))
        lines.append(np.polyfit(sizes, medians, 1, w=1 / medians))
    found = np.array(lines)
    middle = math.exp(0.05**2 / 2) * math.exp(0.03**2 / 2)
    yield 2 * middle, stats.mean_across(found[:, 0].tolist())
    yield 10_000 * middle, stats.mean_across(found[:, 1].tolist())


def until(spread: float, draw: Draw, level: float) -> Iterator[Held]:
    """Repeats from 3 to at most 100 until the interval is within ±5 %."""
    values = np.exp(draw.normal(0, spread, 100)).tolist()
    for count in range(3, 101):
        found = stats.interval_across(values[:count], level)
        if stats.is_converged(found, 0.05) or count == 100:
            yield 1.0, found
            return


# --- runs against runs ---------------------------------------------------------------------------------------------


IN_TURN = ", runs made in turn"
SIDES = (((1, 5), 1), ((3, 3), 1), ((5, 5), 1), ((3, 8), 1), ((3, 8), 3), ((8, 3), 3))  # runs a side, ratio of spreads


def runs(kind: str, sizes: tuple[int, int], ratio: float, draw: Draw) -> Iterator[Held]:
    """Runs that do not differ: how often the interval of their ratio holds 1. `ratio`: of their spreads."""
    if kind.endswith(IN_TURN):
        together = effects(kind.removesuffix(IN_TURN), sum(sizes), draw)
        a, b = together[::2], together[1::2]
    else:
        a, b = effects(kind, sizes[0], draw), ratio * effects(kind, sizes[1], draw)
    yield 1.0, stats.compare_groups(np.exp(a).tolist(), np.exp(b).tolist()).ratio


def family(figures: int, alike: float, draw: Draw) -> tuple[int, bool]:
    """How many of the figures of five runs a side seem to differ, and whether one does after Holm."""
    common, own = draw.normal(size=(2, 5, 1)), draw.normal(size=(2, 5, figures))
    logs = 0.1 * (math.sqrt(alike) * common + math.sqrt(1 - alike) * own)
    chances = [
        stats.compare_groups(np.exp(logs[0, :, place]).tolist(), np.exp(logs[1, :, place]).tolist()).chance
        for place in range(figures)
    ]
    return sum(chance <= 0.05 for chance in chances), min(stats.holm_adjusted(chances)) <= 0.05


# --- states --------------------------------------------------------------------------------------------------------

ONE_MODE: dict[str, Callable[[Draw, int], Floats]] = {
    "log-normal, 0.1": lambda draw, count: draw.lognormal(0, 0.1, count),
    "log-normal, 1": lambda draw, count: draw.lognormal(0, 1, count),
    "gamma, 2": lambda draw, count: draw.gamma(2, 1, count),
    "gamma, 0.5": lambda draw, count: draw.gamma(0.5, 1, count),
    "uniform": lambda draw, count: 1 + draw.random(count),
    "Pareto, 1.5": lambda draw, count: 1 + draw.pareto(1.5, count),
    **{
        f"AR(1), {phi}": lambda draw, count, phi=phi: np.exp(0.4 * autoregressive(draw, count, phi))  # type: ignore[misc]
        for phi in (0.5, 0.9, 0.99, 0.999)
    },
}


def held_for(draw: Draw, count: int, messages: int) -> Floats:
    """Two states 1.5 apart, each held for so many messages at a stretch."""
    state = draw.integers(0, 2, count // messages + 1).repeat(messages)[:count]
    return np.where(state, 1.5, 1.0) * draw.lognormal(0, 0.05, count)


def some_slower(share: float, factor: float, spread: float) -> Callable[[Draw, int], Floats]:
    return lambda draw, count: np.where(draw.random(count) < share, factor, 1.0) * draw.lognormal(0, spread, count)


TWO_MODES: dict[str, Callable[[Draw, int], Floats]] = {
    "30 % take 3 times as long": some_slower(0.3, 3, 0.15),
    "10 % take twice as long": some_slower(0.1, 2, 0.1),
    "half take 10 % longer": some_slower(0.5, 1.1, 0.02),
    "half take 30 % longer, wide": some_slower(0.5, 1.3, 0.1),
    "half 50 % longer, 50 at a stretch": lambda draw, count: held_for(draw, count, 50),
}


def several_states(make: Callable[[Draw, int], Floats], count: int, draw: Draw) -> bool:
    return len(stats.find_states((1e4 * make(draw, count)).astype(np.int64), exact=False)) > 1


# --- tables --------------------------------------------------------------------------------------------------------


def shares(experiment: Callable[[Draw], Iterator[Held]], experiments: int, seed: list[int]) -> tuple[list[str], str]:
    """Of each figure how often its interval held the truth, of those that were not withheld; and how often it was."""
    draw = np.random.default_rng(seed)
    hits: list[list[bool]] = []
    withheld = total = 0
    for _ in range(experiments):
        for place, (truth, found) in enumerate(experiment(draw)):
            if len(hits) <= place:
                hits.append([])
            total += 1
            if found is None or math.isnan(found.low):
                withheld += 1
            else:
                hits[place].append(found.low <= truth <= found.high)
    cells = [f"{100 * sum(of) / len(of):.1f}" if of else "–" for of in hits]
    return cells, f"{100 * withheld / total:.0f} %"


def header(title: str, *columns: str) -> None:
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def intervals(experiments: int) -> None:
    header("Quantiles of a path, and the ratio of two, by what a trial's samples are like (trials differ by 5 %)",
           "samples", "repeats", "p50", "p90", "p99", "ratio", "withheld")  # fmt: skip
    for place, kind in enumerate(KINDS):
        for repeats in (1, 2, 3, 5, 10):
            cells, gone = shares(
                lambda draw, kind=kind, repeats=repeats: quantiles(kind, repeats, draw),  # type: ignore[misc]
                max(experiments // 4, 10),
                [1, place, repeats],
            )
            line(kind, repeats, *cells, gone)
    header("A figure that each repeat has one of, by what lies between repeats",
           "between repeats", "repeats", "held", "withheld")  # fmt: skip
    for place, kind in enumerate(BETWEENS):
        for repeats in (2, 3, 5, 10, 30):
            cells, gone = shares(
                lambda draw, kind=kind, repeats=repeats: between(kind, repeats, draw),  # type: ignore[misc]
                experiments,
                [2, place, repeats],
            )
            line(kind, repeats, *cells, gone)
    header("A coarse clock: times of 10 µs", "step", "repeats", "p50", "rate", "withheld")
    for tick in (100, 1000, 4000):
        for repeats in (3, 10):
            cells, gone = shares(
                lambda draw, tick=tick, repeats=repeats: coarse(tick, repeats, draw),  # type: ignore[misc]
                max(experiments // 4, 10),
                [3, tick, repeats],
            )
            line(f"{tick} ns", repeats, *cells, gone)
    header("The line over sizes", "repeats", "a byte", "a message", "withheld")
    for repeats in (3, 5, 10):
        cells, gone = shares(lambda draw, repeats=repeats: slopes(repeats, draw), experiments, [4, repeats])  # type: ignore[misc]
        line(repeats, *cells, gone)
    header("`until`: repeats until ±5 %, made at 98 % as hwrx does, and at 95 % as it would be naive",
           "repeats differ by", "held", "held, naive")  # fmt: skip
    for spread in (0.02, 0.05, 0.1, 0.2, 0.4):
        cells = [
            shares(
                lambda draw, spread=spread, level=level: until(spread, draw, level),  # type: ignore[misc]
                experiments,
                [5, int(1000 * spread)],
            )[0][0]
            for level in (stats.SEQUENTIAL, stats.LEVEL)
        ]
        line(f"{100 * spread:g} %", *cells)


def sides(experiments: int) -> None:
    header("`hwrx diff`: runs that do not differ (100 less the held are the false alarms, %)",
           "between runs", "runs a side", "spreads as", "held")  # fmt: skip
    for place, kind in enumerate((*BETWEENS, f"AR(1), 0.9{IN_TURN}", f"drift of 20 %{IN_TURN}")):
        if kind == "drift of 20 %":  # both sides alike: no drift between them
            continue
        for number, (sizes, ratio) in enumerate(SIDES):
            if kind.endswith(IN_TURN) and sizes[0] != sizes[1]:
                continue
            cells, _ = shares(
                lambda draw, kind=kind, sizes=sizes, ratio=ratio: runs(kind, sizes, ratio, draw),  # type: ignore[misc]
                experiments,
                [6, place, number],
            )
            line(kind, "{} and {}".format(*sizes), f"1 : {ratio}", *cells)
    header("Many figures at once, five runs a side, none changed",
           "figures", "correlation", "seem changed, of all", "any after Holm, of families")  # fmt: skip
    for figures, alike in ((4, 0.0), (16, 0.0), (16, 0.8), (64, 0.5)):
        draw = np.random.default_rng([7, figures])
        found = [family(figures, alike, draw) for _ in range(max(experiments // 4, 10))]
        told = sum(count for count, _ in found) / figures / len(found)
        line(figures, alike, f"{100 * told:.1f} %", f"{100 * sum(firm for _, firm in found) / len(found):.1f} %")


def states(experiments: int) -> None:
    counts = {300: 1.0, 3000: 0.5, 20_000: 0.1, 100_000: 0.03}  # share of the draws
    for title, kinds in (
        ("One mode: how often several states are found", ONE_MODE),
        ("Two modes: how often", TWO_MODES),
    ):
        header(title, "samples", *(f"{count:,}" for count in counts))
        for place, (kind, make) in enumerate(kinds.items()):
            cells = []
            for count, share in counts.items():
                draw = np.random.default_rng([8, place, count])
                number = max(int(share * experiments), 10)
                found = sum(several_states(make, count, draw) for _ in range(number))
                cells.append(f"{100 * found / number:.1f} % of {number}")
            line(kind, *cells)
    repeated = (5, 8, 10, 20, 40)
    header(
        "Groups of repeats: how often they are found", "between repeats", *(f"{count} repeats" for count in repeated)
    )
    for place, kind in enumerate(BETWEENS):
        cells = []
        for repeats in repeated:
            draw = np.random.default_rng([9, place, repeats])
            drawn = (np.exp(effects(kind, repeats, draw)).tolist() for _ in range(experiments))
            found = sum(bool(stats.trial_groups(values)) for values in drawn)
            cells.append(f"{100 * found / experiments:.1f} %")
        line(kind, *cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=500, help="a line; a quarter of it if samples are drawn")
    parser.add_argument("--only", choices=("intervals", "diff", "states"))
    arguments = parser.parse_args()
    began = time.monotonic()
    print(
        "# How often the 95 % intervals hold the truth\n\n"
        f"Printed by `lab/bench/coverage`: {arguments.experiments:,} simulated experiments a line (a quarter where "
        f"{COUNT:,} samples a trial are drawn), in percent, of the intervals that were not withheld. A cell's own "
        f"standard error is {100 * math.sqrt(0.05 * 0.95 / arguments.experiments):.1f} points (twice that for a "
        "quarter). Nothing is left out.\n\n"
        "What a t interval cannot know stays unknown: three repeats that all fell into one of two groups, or that are "
        "alike because they came after each other, have an interval that is too narrow. Runs that are made in turn "
        "(A B A B …) are compared without what drifts."
    )
    for name, part in (("intervals", intervals), ("diff", sides), ("states", states)):
        if arguments.only in (None, name):
            part(arguments.experiments)
    print(f"\n{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
