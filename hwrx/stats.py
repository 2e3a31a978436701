"""Statistics of latency samples: one rule for quantiles, intervals across repeats, and what spoils either.

Rules, all of them:

* Quantiles are Hyndman and Fan's type 8 (approximately median-unbiased whatever the distribution; The American
  Statistician 50(4), 1996), here and in every table and picture.
* A quantile with fewer than ten samples beyond it is withheld. No sample is ever dropped as an outlier.
* The figure of a setting is the geometric mean over its trials of each trial's figure, and its interval is Student's,
  on the logarithm, from the spread of the trials' figures alone: what varies within a trial varies them too, however
  alike neighbouring samples are, and need not be counted again. Nothing that all trials have in common is in it.
* One trial says nothing of what differs between trials: it has no interval.
* No interval is narrower than the step of the clock: a difference of two readings is right to one step.
* If the trials' figures fall into groups, no interval can be had from so few of them: it is withheld (`split`).
* Whoever looks again and again, and stops once an interval is narrow, stops too early too often. Intervals of
  such experiments (`until`) are made at 98 %, so that they hold the truth in at least 95 of 100 cases.
* Ratios pair the trials of one repeat block with each other, so that what slows a whole block cancels.
* Runs are compared as runs: one figure a run, Welch's test on the logarithms, and Holm's correction for many figures.

lab/bench/coverage shows how often all of these hold the truth, also where the rules' assumptions do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy import special

from hwrx import modes
from hwrx.modes import State

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

NAMED = (0.5, 0.9, 0.99, 0.999)  # the quantiles of every table
BEYOND = 10
LEVEL = 0.95
SEQUENTIAL = 0.98  # level of a t interval that holds 95 % of the time after looking at each repeat from the third on
LEAST_TRIALS = 3  # before an interval may be called narrow
_ESS_WINDOW = 1 << 17  # samples from which autocorrelation is measured; a trial's first so many

# Where a trial's quantile function is kept: evenly from p1 to p90, evenly in the logarithm of what lies beyond either.
GRID: Floats = np.unique(
    np.round(
        np.concatenate([np.logspace(-7, -2, 251), np.linspace(0.01, 0.9, 446), 1 - np.logspace(-1, -7, 301), NAMED]), 12
    )
)


class Estimate(Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval across `trials`; `low` and `high` are nan if one cannot be had.

    `split`: that is because the trials' figures fall into groups.
    """

    value: float
    low: float
    high: float
    trials: int
    split: bool = False

    @property
    def width(self) -> float:
        """Half the interval relative to the value: 0.05 is ±5 %."""
        return (self.high - self.low) / (2 * self.value) if self.value else math.nan


class Comparison(Struct, frozen=True, kw_only=True):
    """The ratio of two independent groups of figures, and how often chance alone makes one that far from 1 (p)."""

    ratio: Estimate
    chance: float


class Warmup(Struct, frozen=True):
    """How many of a trial's first samples belong to a phase of its own, and whether the trial settled at all."""

    samples: int
    settled: bool


class Digest(Struct, frozen=True, kw_only=True):
    """All that reports need of one trial's samples, whose number may be large. Times are ns."""

    count: int
    mean: float
    total: int
    lowest: int
    highest: int
    quantiles: Floats  # at GRID
    effective: dict[float, float]  # NAMED -> effective sample size for that quantile
    autocorrelation: float  # of neighbours
    warmup: Warmup
    step: float = 1.0  # resolution of the clock that took the samples, in the unit of `quantiles`

    def quantile(self, p: float) -> float:
        """The quantile at `p`, exact if GRID holds it (NAMED, and the deciles), else between its neighbours there.

        :param p: 0.5 is the median
        :return: ns
        :raises ValueError: if `p` lies beyond the ends of GRID
        """
        if not GRID[0] <= p <= GRID[-1]:
            raise ValueError(f"no quantile at {p}: a digest holds them from {GRID[0]} to {GRID[-1]}")
        return float(np.interp(p, GRID, self.quantiles))


# --- one trial -----------------------------------------------------------------------------------------------------


def quantile_of(ordered: npt.NDArray[np.number], p: npt.ArrayLike) -> Floats:
    """Hyndman and Fan's type 8 of a sorted array, for all `p` at once."""
    count = len(ordered)
    if not count:
        raise ValueError("no samples")
    place = np.clip((count + 1 / 3) * np.asarray(p, float) + 1 / 3, 1, count) - 1
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, count - 1)
    low, high = ordered[below].astype(float), ordered[above].astype(float)
    return np.asarray(low + (place - below) * (high - low))


def shown_quantiles(count: int, p: float) -> bool:
    """Whether a quantile has at least ten samples beyond it."""
    return round(count * min(p, 1 - p), 9) >= BEYOND


def digest_samples(ns: Int64s) -> Digest:
    """Digest one trial's samples, in the order in which they were taken. A writeable array is sorted in place."""
    if not len(ns):
        raise ValueError("no samples")
    window = ns[:_ESS_WINDOW].astype(float)
    warmup = find_warmup(ns)
    bounds = np.quantile(window, NAMED)
    effective = {p: effective_share(window <= bound) * len(ns) for p, bound in zip(NAMED, bounds, strict=True)}
    neighbours = lag_autocorrelation(window)
    total = int(ns.sum(dtype=np.int64))
    if ns.flags.writeable:
        ns.sort()
    else:
        ns = np.sort(ns)
    return Digest(
        count=len(ns),
        mean=total / len(ns),
        total=total,
        lowest=int(ns[0]),
        highest=int(ns[-1]),
        quantiles=quantile_of(ns, GRID),
        effective=effective,
        autocorrelation=float(neighbours[1]) if len(neighbours) > 1 else 0.0,
        warmup=warmup,
        step=clock_step(ns),
    )


def clock_step(ordered: npt.NDArray[np.integer]) -> float:
    """The resolution of the clock that took sorted samples, in their unit: 1 unless all are multiples of a longer step.

    A step that is no whole number of units, and so rounded now up and now down, is found too.
    """
    found = np.unique(ordered[:: max(1, len(ordered) >> 14)]).astype(float)
    found = found[found > 2]
    gaps = np.diff(found, prepend=0.0)
    gaps = gaps[gaps > 2]
    if not len(found) or not len(gaps):
        return 1.0
    step = float(gaps.min())
    for several in (gaps, found):  # the more steps, the better they tell one
        step = float(several.sum() / np.maximum(np.round(several / step), 1).sum())
    times = np.round(found / step)
    rest = np.abs(found - times * step)
    return step if step >= 8 and (rest <= 2 + 2e-3 * step * np.sqrt(np.maximum(times, 0))).all() else 1.0


def find_states(ns: npt.NDArray[np.integer], *, exact: bool) -> list[State]:
    """Find the states that the messages of a trial were in: the ways in which they went, each with times of its own.

    :param ns: times of one trial in the order in which they were taken; if `exact`, those of several may be joined
    :param exact: whether times repeat to the digit (guest instructions)
    :return: the states, shortest times first, in the unit of `ns`; a single one if there are no several beyond chance.
        See hwrx.modes for the method and its sources
    :raises ValueError: without samples
    """
    if not len(ns):
        raise ValueError("no samples")
    if exact and (found := modes.exact_states(ns)):
        return found
    if len(ns) > _ESS_WINDOW:  # eight stretches of it, evenly spread
        stretch = _ESS_WINDOW // 8
        ns = np.concatenate([ns[start : start + stretch] for start in np.linspace(0, len(ns) - stretch, 8).astype(int)])
    return modes.density_states(ns, clock_step(np.sort(ns)), effective_share)


def lag_autocorrelation(series: npt.ArrayLike) -> Floats:
    """Autocorrelation at lags 0, 1, …; of a constant series 1, 0, 0, …"""
    x = np.asarray(series, float)
    x = x - x.mean()
    size = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(x, size)
    covariance = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[: len(x)]
    if covariance[0] <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return np.concatenate([[1.0], np.zeros(len(x) - 1)])
    return np.asarray(covariance / covariance[0])


def effective_share(series: npt.ArrayLike) -> float:
    """Effective over actual sample size, at most 1, by Geyer's initial positive sequence (Stat. Science 7(4), 1992)."""
    rho = lag_autocorrelation(series)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    positive = pairs[: negative[0]] if len(negative) else pairs
    return float(min(1.0, 1 / max(2 * positive.sum() - 1, 1e-9))) if len(positive) else 1.0


def answered_within(intended: Int64s, ns: Int64s) -> float | None:
    """Answers a second of an open loop, from when each message was meant to be sent and its response time."""
    if len(ns) < 2:
        return None
    at = intended + ns
    span = float(at.max() - at.min())
    return (len(ns) - 1) / span * 1e9 if span > 0 else None


def find_warmup(ns: Int64s) -> Warmup:
    """Find a trial's initial transient by MSER-5 (White, Simulation 69(6), 1997).

    Values above the 99th percentile count as the 99th, so that a single late spike does not make all before it a
    warm-up; a transient that does not differ from the rest by three standard errors is none. It is shown, not removed.
    """
    batch = max(5, len(ns) // 20_000)
    batches = len(ns) // batch
    if batches < 20:
        return Warmup(0, True)
    top = float(np.quantile(ns[:: max(1, len(ns) // 100_000)], 0.99))
    means = np.minimum(ns[: batches * batch].reshape(batches, batch), top).mean(axis=1)
    kept = np.arange(batches, 0, -1)
    tail_sum = np.cumsum(means[::-1])[::-1]
    tail_square = np.cumsum((means - means.mean())[::-1] ** 2)[::-1]
    deviation = tail_sum / kept - means.mean()
    score = (tail_square - kept * deviation**2) / kept.astype(float) ** 2
    half = batches // 2
    cut = int(np.argmin(score[: half + 1]))
    if not cut:
        return Warmup(0, True)
    head, tail = means[:cut], means[cut:]
    share = effective_share(tail)
    error = tail.std() * math.sqrt(1 / cut + 1 / len(tail)) / math.sqrt(share)
    if abs(head.mean() - tail.mean()) <= 3 * error:
        return Warmup(0, True)
    return Warmup(cut * batch, cut < half)


# --- across trials -------------------------------------------------------------------------------------------------


def quantile_across(trials: Sequence[Digest], p: float, level: float = LEVEL) -> Estimate | None:
    """Estimate the quantile at `p` of a setting from its trials; None if it is withheld, or not above 0 in each."""
    if not trials or not all(shown_quantiles(trial.count, p) for trial in trials):
        return None
    logs = _log_quantiles(trials, p)
    return None if logs is None else _estimate(logs, level, _step_of(trials, p))


def interval_across(values: Sequence[float], level: float = LEVEL, step: float = 0.0) -> Estimate:
    """Estimate a positive figure (messages a second) that each trial has one value of, known to a relative `step`."""
    return _estimate(np.log(np.asarray(values, float)), level, step)


def mean_across(values: Sequence[float], level: float = LEVEL, step: float = 0.0) -> Estimate:
    """Estimate a figure that may be of either sign (a slope) from one value a trial, known to an absolute `step`."""
    x = np.asarray(values, float)
    centre = float(x.mean())
    split = len(x) > 1 and modes.fall_into_groups(x, max(modes.LEAST_APART * abs(centre), 3 * step))
    error = math.nan if split else max(_half_width(x, level), step)
    return Estimate(value=centre, low=centre - error, high=centre + error, trials=len(x), split=split)


def quantile_ratio(a: Sequence[Digest], b: Sequence[Digest], p: float, level: float = LEVEL) -> Estimate | None:
    """Estimate the ratio a/b of the quantiles at `p`; the i-th trials of both belong to one repeat block.

    None if a quantile is withheld.
    """
    if not a or not b or not all(shown_quantiles(trial.count, p) for trial in (*a, *b)):
        return None
    log_a, log_b = _log_quantiles(a, p), _log_quantiles(b, p)
    if log_a is None or log_b is None:
        return None
    return _estimate(log_a - log_b, level, _step_of(a, p) + _step_of(b, p))


def ratio_across(a: Sequence[float], b: Sequence[float], level: float = LEVEL, step: float = 0.0) -> Estimate:
    """Estimate the ratio a/b of positive figures that each trial has one value of, paired by their repeat block.

    The ratio is known to a relative `step`.
    """
    return _estimate(np.log(np.asarray(a, float)) - np.log(np.asarray(b, float)), level, step)


def compare_groups(before: Sequence[float], after: Sequence[float], step: float = 0.0) -> Comparison:
    """Hold positive figures of independent units (runs) against those of others: by how much did they change?

    Welch's t test on the logarithms. Of a single unit on one side it is asked whether it belongs to the others: the
    spread is theirs, and counts for it too. Of one unit on either side nothing can be said.

    :param before, after: a figure a unit
    :param step: how well the figures are known, relative to them; no interval is narrower
    """
    log_a, log_b = np.log(np.asarray(after, float)), np.log(np.asarray(before, float))
    shift_by = float(log_a.mean() - log_b.mean())
    variance, freedom = _variance_of_difference(log_a, log_b)
    error, chance = math.nan, math.nan
    if freedom:
        error = student_factor(freedom) * math.sqrt(variance)
        chance = 1.0
        if abs(shift_by) > math.log1p(step):
            chance = 2 * float(special.stdtr(freedom, -abs(shift_by) / math.sqrt(variance))) if variance else 0.0
    ratio = _interval(shift_by, error, step, min(len(log_a), len(log_b)), split=False)
    return Comparison(ratio=ratio, chance=chance)


def holm_adjusted(chances: Sequence[float]) -> list[float]:
    """P values that allow for their number (Holm, Scand. J. Statistics 6(2), 1979): 0.05 is 5 of 100 families wrong."""
    adjusted = [1.0] * len(chances)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=lambda index: chances[index])):
        highest = max(highest, min(1.0, (len(chances) - place) * chances[index]))
        adjusted[index] = highest
    return adjusted


def shift_between(a: Sequence[Digest], b: Sequence[Digest], level: float = LEVEL) -> list[tuple[float, Estimate]]:
    """The shift function of trials paired by their repeat block: the ratio a/b at each decile and at p99.

    Withheld ones are left out.
    """
    places = (*(k / 10 for k in range(1, 10)), 0.99)
    found = ((p, quantile_ratio(a, b, p, level)) for p in places)
    return [(p, ratio) for p, ratio in found if ratio is not None]


def is_converged(estimate: Estimate | None, width: float) -> bool:
    """Whether the interval of at least three trials is no wider than ±`width` (0.05: ±5 %)."""
    return (
        estimate is not None
        and estimate.trials >= LEAST_TRIALS
        and not math.isnan(estimate.low)
        and estimate.width <= width
    )


def student_factor(freedom: float, level: float = LEVEL) -> float:
    """The multiple of the standard error that a two-sided interval has, with so many degrees of freedom."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


def join_states(trials: Sequence[Sequence[State]]) -> list[State]:
    """The states of a setting from those of each of its trials; one alone unless most trials have as many."""
    counts = [len(states) for states in trials]
    number = max(sorted(set(counts)), key=counts.count, default=0)
    alike = [states for states in trials if len(states) == number]
    if not alike or 2 * len(alike) <= len(trials):
        number, alike = 1, [_one_state(states) for states in trials]
    return [
        State(
            share=float(np.mean([states[place].share for states in alike])),
            value=float(np.exp(np.mean(np.log([max(states[place].value, 1e-9) for states in alike])))),
            low=min(states[place].low for states in alike),
            high=max(states[place].high for states in alike),
        )
        for place in range(number if alike else 0)
    ]


def trial_groups(values: Sequence[float], step: float = 0.0) -> list[State]:
    """The groups that the positive figures of trials fall into, the lowest first; empty if they do not.

    `step`: how well the figures are known, relative to them.
    """
    logs = np.log(np.asarray(values, float))
    cuts = modes.group_cuts(logs, _apart(step))
    return modes.valley_between(values, [math.exp(cut) for cut in cuts]) if cuts else []


# --- inside --------------------------------------------------------------------------------------------------------


def _one_state(states: Sequence[State]) -> list[State]:
    value = max(states, key=lambda state: state.share).value
    return [State(share=1.0, value=value, low=states[0].low, high=states[-1].high)]


def _log_quantiles(trials: Sequence[Digest], p: float) -> Floats | None:
    """The logarithm of each trial's quantile; None if one has none, for it is not above 0."""
    found = np.array([trial.quantile(p) for trial in trials])
    return np.log(found) if (found > 0).all() else None


def _step_of(trials: Sequence[Digest], p: float) -> float:
    """The step of the clock relative to the quantile at `p`, of the trial that it is the largest for."""
    return max(trial.step / trial.quantile(p) for trial in trials)


def _apart(step: float) -> float:
    """How far apart on the logarithm groups of trials must be: not by rounding, and so that somebody minds."""
    return max(math.log1p(modes.LEAST_APART), 3 * step)


def _half_width(x: Floats, level: float) -> float:
    """Half of Student's interval of the mean, nan of a single value."""
    if len(x) == 1:
        return math.nan
    return student_factor(len(x) - 1, level) * math.sqrt(float(x.var(ddof=1)) / len(x))


def _interval(centre: float, error: float, step: float, trials: int, *, split: bool) -> Estimate:
    """From the logarithm and the half-width there; `step` is relative to the value, and at least what it reaches."""
    error = math.nan if split else error
    low, high = math.exp(centre - error), math.exp(centre + error)
    if not math.isnan(error):
        value = math.exp(centre)
        low, high = min(low, value * max(0.0, 1 - step)), max(high, value * (1 + step))
    return Estimate(value=math.exp(centre), low=low, high=high, trials=trials, split=split)


def _estimate(logs: Floats, level: float, step: float) -> Estimate:
    split = modes.fall_into_groups(logs, _apart(step))
    return _interval(float(logs.mean()), _half_width(logs, level), step, len(logs), split=split)


def _variance_of_difference(log_a: Floats, log_b: Floats) -> tuple[float, float]:
    """Of the means of two independent groups, and its degrees of freedom (Welch's); (nan, 0) if none can be had."""
    if len(log_a) == len(log_b) == 1:
        return math.nan, 0.0
    if min(len(log_a), len(log_b)) == 1:
        many = max(log_a, log_b, key=len)
        return float(many.var(ddof=1)) * (1 + 1 / len(many)), len(many) - 1.0
    a, b = (float(logs.var(ddof=1)) / len(logs) for logs in (log_a, log_b))
    spread = a**2 / (len(log_a) - 1) + b**2 / (len(log_b) - 1)
    return a + b, (a + b) ** 2 / spread if spread else len(log_a) + len(log_b) - 2.0
