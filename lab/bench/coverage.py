"""How often do the 95 % intervals hold the truth? 1,000 simulated experiments each, with known quantiles.

An experiment is a number of repeats; what differs between repeats is a log-normal factor with mean 1 on the logarithm,
so that the truth is the base distribution's quantile. Intervals are hwrx.stats' own, digests and all. Prints a table.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.signal
import scipy.stats

from hwrx import stats

Floats = npt.NDArray[np.float64]
Make = Callable[[np.random.Generator, int], Floats]
Truth = Callable[[float], float]

FAST, SLOW = scipy.stats.lognorm(0.1, scale=1.0), scipy.stats.lognorm(0.15, scale=3.0)
SHARE = 0.7
PHI = 0.9


def bimodal(draw: np.random.Generator, count: int) -> Floats:
    fast = draw.random(count) < SHARE
    return np.where(fast, np.exp(draw.normal(0, 0.1, count)), 3 * np.exp(draw.normal(0, 0.15, count)))


def bimodal_truth(p: float) -> float:
    return float(scipy.optimize.brentq(lambda x: SHARE * FAST.cdf(x) + (1 - SHARE) * SLOW.cdf(x) - p, 0.1, 100))


def autocorrelated(draw: np.random.Generator, count: int) -> Floats:
    """Log of the time is an AR(1) process with coefficient 0.9: 19 samples say what one independent one does."""
    noise = draw.normal(0, math.sqrt(1 - PHI**2), count)
    noise[0] = draw.normal()
    return np.exp(0.4 * scipy.signal.lfilter([1], [1, -PHI], noise))


KINDS: dict[str, tuple[Make, Truth]] = {
    "exponential": (lambda draw, count: draw.exponential(1, count), lambda p: -math.log(1 - p)),
    "log-normal": (
        lambda draw, count: np.exp(0.5 * draw.normal(size=count)),
        lambda p: math.exp(0.5 * float(scipy.stats.norm.ppf(p))),
    ),
    "bimodal": (bimodal, bimodal_truth),
    "autocorrelated": (autocorrelated, lambda p: math.exp(0.4 * float(scipy.stats.norm.ppf(p)))),
}


def experiment(kind: str, draw: np.random.Generator, repeats: int, count: int, between: float) -> list[stats.Digest]:
    make = KINDS[kind][0]
    factors = np.exp(draw.normal(0, between, repeats))
    return [stats.digest((1e6 * factor * make(draw, count)).astype(np.int64)) for factor in factors]


def cover(kind: str, repeats: int, count: int, between: float, experiments: int) -> dict[str, float]:
    """Shares of intervals that hold the truth: of p50, p90, p99, and of the ratio of two paths at p50 (truth 1.5)."""
    draw = np.random.default_rng([repeats, count, int(1000 * between), list(KINDS).index(kind)])
    truth = KINDS[kind][1]
    hits = dict.fromkeys(("p50", "p90", "p99", "ratio"), 0)
    for _ in range(experiments):
        trials = experiment(kind, draw, repeats, count, between)
        for name, p in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            found = stats.quantile_across(trials, p)
            assert found is not None
            hits[name] += found.low <= 1e6 * truth(p) <= found.high
        slower = experiment(kind, draw, repeats, count, between)
        slower = [scaled(trial, 1.5) for trial in slower]
        ratio = stats.quantile_ratio(slower, trials, 0.5, paired=True)
        assert ratio is not None
        hits["ratio"] += ratio.low <= 1.5 <= ratio.high
    return {name: count / experiments for name, count in hits.items()}


def scaled(trial: stats.Digest, factor: float) -> stats.Digest:
    return msgspec.structs.replace(trial, quantiles=trial.quantiles * factor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--count", type=int, default=2000, help="samples a trial")
    arguments = parser.parse_args()
    print("| distribution | repeats | between | p50 | p90 | p99 | ratio |\n|---|---|---|---|---|---|---|")
    outside = 0
    for kind in KINDS:
        for repeats in (3, 5, 10):
            for between in (0.0, 0.05):
                found = cover(kind, repeats, arguments.count, between, arguments.experiments)
                outside += sum(not 0.93 <= share <= 0.97 for share in found.values())
                shares = " | ".join(f"{100 * share:.1f}" for share in found.values())
                print(f"| {kind} | {repeats} | {100 * between:g} % | {shares} |", flush=True)
    print(f"\n{outside} of {len(KINDS) * 3 * 2 * 4} cells lie outside 93–97 %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
