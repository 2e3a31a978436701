"""Whether a distribution has one mode or several, and where they lie: the dip test and the valleys of a density.

* Values that repeat to the digit (guest instructions) need no density: common values that lie apart are states.
* Elsewhere a distribution has several modes if its dip is too large for one: the largest distance between the empirical
  distribution and the nearest one with a single mode (Hartigan and Hartigan, The Annals of Statistics 13(1), 1985; half
  the excess mass of a second mode: Müller and Sawitzki, JASA 86(415), 1991). The threshold is that of the uniform
  distribution, the least favourable one with a single mode. It stands at the *effective* number of samples, counted
  around the states that are claimed: so a process that wanders slowly makes no states, and one that stays in either of
  two for a long time does.
* Then the sample is cut at the deepest valley of a Gaussian density of the logarithms, and either side is asked again.
* A state of less than a twentieth of the messages, or less than a twentieth away from its neighbour, is none.

lab/bench/coverage shows how often one mode is taken for several, and several for one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.float64]

POINTS = 400  # by which the dip and the density see a distribution
LEAST_SHARE = 0.05
LEAST_APART = 0.05
CLEAR_SHARE = 0.2
LEAST_DIP = 0.008  # a second mode that holds less than 1.6 % of the messages more than its valley is not worth a word
DIP_ROOT = 0.65  # critical dip times the root of the sample size; uniform, 1 in 1,000
DEPTH = 0.7  # a valley is at most that high, relative to the lower of the peaks beside it
EXACT_POINT = 0.01  # share of the messages that makes an exact value a common one
EXACT_APART = 0.02
FEWEST_GROUPED = 5  # trials, below which no groups can be told from spread
# Least share of the sum of squares that lies between two (three) groups of at least two trials each, by the number of
# trials: exceeded once in 200 cases by the least favourable of normal, uniform and exponential figures (100,000 draws
# each; Engelman and Hartigan, JASA 64(328), 1969, have the normal one). Interpolated between; above 1 is never.
_NUMBERS = (5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 40)
_TWO = (0.9941, 0.9877, 0.9808, 0.9736, 0.9672, 0.9592, 0.9479, 0.9288, 0.9031, 0.8759, 0.8605)
_THREE = (1.01, 1.01, 0.9956, 0.9940, 0.9922, 0.9896, 0.9861, 0.9790, 0.9695, 0.9543, 0.9442)


class State(Struct, frozen=True, kw_only=True):
    """One of the ways in which messages (or whole trials) go.

    `share` is its part of them, `value` its figure, `low` to `high` its extent, all in the unit of what was given. Of
    exact values `value` is the lowest one that a twentieth of the state's messages took: it repeats to the digit, and
    what took longer went the same way with an interruption. Else `value` is the median.
    """

    share: float
    value: float
    low: float
    high: float
    exact: bool = False


def exact_states(ns: npt.NDArray[np.integer]) -> list[State]:
    """The states of values that repeat to the digit, ascending; empty if hardly a value occurs twice."""
    values, counts = np.unique(ns, return_counts=True)
    common = counts >= max(2.0, EXACT_POINT * len(ns))
    if counts[common].sum() < 0.5 * len(ns):
        return []
    points = values[common].astype(float)
    ends = np.flatnonzero(points[1:] > points[:-1] * (1 + EXACT_APART))
    groups = np.split(points, ends + 1)
    # what is not common belongs to the state that is nearest on the logarithm
    borders = [math.sqrt(max(a[-1], 1.0) * b[0]) for a, b in itertools.pairwise(groups)]
    place = np.searchsorted(borders, values)
    shares = np.bincount(place, weights=counts, minlength=len(groups)) / len(ns)
    states = []
    for group, share in zip(groups, shares, strict=True):
        of = counts[np.searchsorted(values, group)]
        # The lowest value is rare now and then. Where one value has many of the messages, rare ones that only together
        # are a twentieth do not count; where many values share them, chance would decide which of them has a twentieth.
        clear = of.max() >= CLEAR_SHARE * of.sum()
        often = group[(of if clear else np.cumsum(of)) >= LEAST_SHARE * of.sum()]
        states.append(
            State(share=float(share), value=float(often[0]), low=float(group[0]), high=float(group[-1]), exact=True)
        )
    return states


def density_states(ns: npt.NDArray[np.number], step: float, effective: Callable[[Floats], float]) -> list[State]:
    """The states of values of a clock, ascending; one alone unless there are several beyond chance.

    `ns` in the order in which they were taken, `step` the resolution of their clock. `effective` gives the share of the
    samples of a series that count as independent.
    """
    values = ns.astype(float)
    # a coarse clock's steps are no modes: values are spread evenly over the step that they stand for
    values = values + (np.random.default_rng(0).random(len(values)) - 0.5) * step
    logs = np.log(np.maximum(values, max(step, 1.0) / 2))
    cuts = sorted(_cuts(logs, np.sort(logs), len(logs), effective))
    return valley_between(ns, [math.exp(cut) for cut in cuts])


def valley_between(values: npt.ArrayLike, cuts: Sequence[float]) -> list[State]:
    """The states that cuts through sorted or unsorted values make."""
    ordered = np.sort(np.asarray(values, float))
    parts = np.split(ordered, np.searchsorted(ordered, cuts))
    return [
        State(
            share=len(part) / len(ordered),
            value=float(np.median(part)),
            low=float(np.quantile(part, 0.05)),
            high=float(np.quantile(part, 0.95)),
        )
        for part in parts
        if len(part)
    ]


def fall_into_groups(values: Floats, apart: float) -> bool:
    """Whether the figures of five trials or more fall into groups beyond chance, as `group_cuts` has it."""
    return len(group_cuts(values, apart)) > 0


def group_cuts(values: Floats, apart: float) -> list[float]:
    """Where the figures of trials fall apart into two or three groups of at least two trials; empty if they do not.

    `apart`: groups that are nearer to each other (steps of a clock, differences that nobody minds) are one. At most 200
    trials are looked at: more are no set of repeats.
    """
    ordered = np.sort(values)
    count = len(ordered)
    if not FEWEST_GROUPED <= count <= 200 or ordered[0] == ordered[-1]:
        return []
    sums = np.concatenate([[0.0], np.cumsum(ordered - ordered.mean())])
    total = float(((ordered - ordered.mean()) ** 2).sum())
    places = np.arange(2, count - 1)
    two = sums[places] ** 2 * count / (places * (count - places))
    best: list[int] = []
    if two.max() >= np.interp(count, _NUMBERS, _TWO) * total:
        best = [int(places[two.argmax()])]
    elif count > 6:
        i, j = np.meshgrid(places, places, indexing="ij")
        between_two = np.maximum(j - i, 1)
        three = sums[i] ** 2 / i + (sums[j] - sums[i]) ** 2 / between_two + sums[j] ** 2 / (count - j)
        three[j - i < 2] = 0.0
        if three.max() >= np.interp(count, _NUMBERS, _THREE) * total:
            best = [int(places[at]) for at in np.unravel_index(three.argmax(), three.shape)]
    if any(ordered[place] - ordered[place - 1] < apart for place in best):
        return []
    return [float(ordered[place - 1] + ordered[place]) / 2 for place in best]


def dip_statistic(ordered: Floats) -> float:
    """Hartigan's dip of a sorted sample: 0.0 … 0.25, half the excess mass of a second mode.

    The modal interval is narrowed by the greatest convex minorant and the least concave majorant of the empirical
    distribution within it, until those lie no further apart than the distribution lies from them outside of it.
    """
    count = len(ordered)
    found = 1 / (2 * count)
    if count < 4 or ordered[0] == ordered[-1]:
        return found
    heights = np.arange(1, count + 1) / count
    low, high = 0, count - 1
    while True:
        x, y = ordered[low : high + 1], heights[low : high + 1]
        below = np.interp(x, *_hull(x, y - 1 / count, convex=True))
        above = np.interp(x, *_hull(x, y, convex=False))
        gap = above - below
        apart = float(gap.max()) / 2
        if apart <= found or high - low < 3:
            return found
        # the modal interval: from where the minorant touches, before the widest gap, to where the majorant does, after
        touches_below = np.flatnonzero(y - 1 / count - below <= 1e-12)
        touches_above = np.flatnonzero(above - y <= 1e-12)
        # where both run side by side the gap is as wide between two touches: there the interval would never be narrowed
        touches = np.union1d(touches_below, touches_above)
        widest = int(touches[gap[touches].argmax()])
        left = int(touches_below[np.searchsorted(touches_below, widest, "right") - 1])
        right_at = int(np.searchsorted(touches_above, widest))
        right = int(touches_above[min(right_at, len(touches_above) - 1)])
        outside = float((y[: left + 1] - below[: left + 1])[:-1].max(initial=0.0))
        outside = max(outside, float((above[right:] - (y[right:] - 1 / count))[1:].max(initial=0.0)))
        found = max(found, outside / 2)
        if left == 0 and right == len(x) - 1:
            return found
        low, high = low + left, low + right


def _hull(x: Floats, y: Floats, *, convex: bool) -> tuple[Floats, Floats]:
    """The corners of the greatest convex minorant or the least concave majorant through points by ascending x."""
    sign = 1.0 if convex else -1.0
    kept: list[int] = []
    xs, ys = x.tolist(), (sign * y).tolist()
    for place in range(len(xs)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (ys[b] - ys[a]) * (xs[place] - xs[a]) >= (ys[place] - ys[a]) * (xs[b] - xs[a]):
                kept.pop()
            else:
                break
        kept.append(place)
    return x[kept], y[kept]


def _cuts(logs: Floats, ordered: Floats, whole: int, effective: Callable[[Floats], float]) -> list[float]:
    """Where a sample of logarithms falls apart: at its deepest valley if it has several modes, and either side again.

    `logs` in the order in which they were taken, `ordered` sorted; `whole` is the size of the sample that is cut up.
    """
    if len(ordered) < max(20.0, 2 * LEAST_SHARE * whole):
        return []
    seen = ordered
    if len(ordered) > POINTS:
        seen = np.interp((np.arange(POINTS) + 0.5) / POINTS, (np.arange(len(ordered)) + 0.5) / len(ordered), ordered)
    depth = dip_statistic(seen)
    if depth < max(LEAST_DIP, DIP_ROOT / math.sqrt(len(ordered))):
        return []
    cut = _valley(seen, LEAST_SHARE * whole / len(ordered))
    if cut is None:
        return []
    upper = logs > cut
    sides = logs[~upper], logs[upper]
    around = np.where(upper, logs - np.median(sides[1]), logs - np.median(sides[0]))
    if depth < DIP_ROOT / math.sqrt(max(len(logs) * effective(around), 1.0)):
        return []
    lower, higher = np.split(ordered, [np.searchsorted(ordered, cut, "right")])
    return [*_cuts(sides[0], lower, whole, effective), cut, *_cuts(sides[1], higher, whole, effective)]


def _valley(ordered: Floats, least: float) -> float | None:
    """The deepest valley of the density that leaves at least the share `least` on either side, None without one."""
    count = len(ordered)
    quartiles = np.quantile(ordered, (0.25, 0.75))
    spread = min(float(ordered.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(ordered.std())
    width = 0.6 * spread * count**-0.2  # below Silverman's 0.9, which is that of one mode
    first, last = np.quantile(ordered, (0.001, 0.999))
    grid = np.linspace(first - 3 * width, last + 3 * width, 512)
    density = np.exp(-0.5 * ((grid[:, None] - ordered) / width) ** 2).sum(axis=1)
    left, right = np.maximum.accumulate(density), np.maximum.accumulate(density[::-1])[::-1]
    slopes = np.minimum(left, right)
    # far out, where the density is nothing on one side, there is no valley
    relative = np.divide(density, slopes, out=np.ones_like(density), where=slopes > 0)
    share = np.searchsorted(ordered, grid) / count
    relative[(share < least) | (share > 1 - least)] = 1.0
    deepest = int(relative.argmin())
    if relative[deepest] > DEPTH:
        return None
    parts = ordered[ordered <= grid[deepest]], ordered[ordered > grid[deepest]]
    apart = float(np.median(parts[1]) - np.median(parts[0]))
    return float(grid[deepest]) if apart >= math.log1p(LEAST_APART) else None
