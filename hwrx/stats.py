"""Statistics of latency samples: one rule for quantiles, intervals across repeats, and what spoils either.

Rules, all of them:

* Quantiles are Hyndman and Fan's type 8 (approximately median-unbiased whatever the distribution; The American
  Statistician 50(4), 1996), here and in every table and picture.
* A quantile with fewer than ten samples beyond it is withheld. No sample is ever dropped as an outlier.
* The figure of a setting is the geometric mean over its trials of each trial's figure. Its interval comes from a
  hierarchical bootstrap on the logarithm: trials are drawn with replacement, then within each drawn trial the quantile
  of a resample. The second level needs no resample: the k-th of n draws from a sample is the sample's quantile at a
  Beta(k, n+1-k) distributed place. n is the *effective* sample size, so that autocorrelated samples count for less.
* With the three to ten repeats that a run has, percentiles of such draws are too narrow (with three trials they cannot
  leave the range of three numbers, which misses the truth one time in four). So the draws give the standard error,
  corrected for the finite number of trials and for the within-trial spread that both levels hold, and Student's t with
  one degree less than trials gives its multiple (Hesterberg, The American Statistician 69(4), 2015). lab/bench/coverage
  shows how often the intervals hold the truth.
* Ratios pair the trials of one repeat block with each other, so that what slows a whole block cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy import special

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

NAMED = (0.5, 0.9, 0.99, 0.999)  # the quantiles of every table
BEYOND = 10
LEVEL = 0.95
DRAWS = 2000
_ESS_WINDOW = 1 << 17  # samples from which autocorrelation is measured; a trial's first so many

# Where a trial's quantile function is kept: evenly up to p90, then evenly in the logarithm of what lies beyond.
GRID: Floats = np.unique(
    np.round(np.concatenate([np.linspace(0.002, 0.9, 450), 1 - np.logspace(-1, -7, 301), NAMED]), 12)
)


class Estimate(Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval across `trials`; `low` and `high` are nan where one cannot be had."""

    value: float
    low: float
    high: float
    trials: int

    @property
    def width(self) -> float:
        """Half the interval relative to the value: 0.05 is ±5 %."""
        return (self.high - self.low) / (2 * self.value) if self.value else math.nan


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

    def quantile(self, p: float) -> float:
        """The quantile at `p`, exact where GRID holds it (NAMED, and the deciles), else interpolated."""
        return float(np.interp(p, GRID, self.quantiles))

    def effective_at(self, p: float) -> float:
        """The effective sample size for the quantile at `p`: that of the nearest NAMED one."""
        return self.effective[min(self.effective, key=lambda named: abs(named - p))]


# --- one trial -----------------------------------------------------------------------------------------------------


def quantile(ordered: npt.NDArray[np.number], p: npt.ArrayLike) -> Floats:
    """Hyndman and Fan's type 8 of a sorted array, for all `p` at once."""
    count = len(ordered)
    if not count:
        raise ValueError("no samples")
    place = np.clip((count + 1 / 3) * np.asarray(p, float) + 1 / 3, 1, count) - 1
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, count - 1)
    low, high = ordered[below].astype(float), ordered[above].astype(float)
    return np.asarray(low + (place - below) * (high - low))


def shown(count: int, p: float) -> bool:
    """Whether a quantile has at least ten samples beyond it."""
    return round(count * min(p, 1 - p), 9) >= BEYOND


def digest(ns: Int64s) -> Digest:
    """Digest one trial's samples, in the order in which they were taken. A writeable array is sorted in place."""
    if not len(ns):
        raise ValueError("no samples")
    window = ns[:_ESS_WINDOW].astype(float)
    warmup = find_warmup(ns)
    bounds = np.quantile(window, NAMED)
    effective = {p: effective_share(window <= bound) * len(ns) for p, bound in zip(NAMED, bounds, strict=True)}
    neighbours = autocorrelation(window)
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
        quantiles=quantile(ns, GRID),
        effective=effective,
        autocorrelation=float(neighbours[1]) if len(neighbours) > 1 else 0.0,
        warmup=warmup,
    )


def autocorrelation(series: npt.ArrayLike) -> Floats:
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
    rho = autocorrelation(series)
    pairs = rho[: len(rho) // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    positive = pairs[: negative[0]] if len(negative) else pairs
    return float(min(1.0, 1 / max(2 * positive.sum() - 1, 1e-9))) if len(positive) else 1.0


def answered(intended: Int64s, ns: Int64s) -> float | None:
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


def quantile_across(trials: Sequence[Digest], p: float) -> Estimate | None:
    """Estimate the quantile at `p` of a setting from its trials; None where it is withheld."""
    if not trials or not all(shown(trial.count, p) for trial in trials):
        return None
    return _estimate(*_log_quantiles(trials, p))


def across(values: Sequence[float]) -> Estimate:
    """Estimate a positive figure (messages a second) that each trial has one value of."""
    logs = np.log(np.asarray(values, float))
    return _estimate(logs, None)


def mean_across(values: Sequence[float]) -> Estimate:
    """Estimate a figure that may be of either sign (a slope) from one value a trial: mean and Student's interval."""
    x = np.asarray(values, float)
    centre = float(x.mean())
    error = math.nan if len(x) == 1 else student(len(x) - 1) * _standard_error(x, None)
    return Estimate(value=centre, low=centre - error, high=centre + error, trials=len(x))


def quantile_ratio(a: Sequence[Digest], b: Sequence[Digest], p: float, *, paired: bool) -> Estimate | None:
    """Estimate the ratio a/b of the quantiles at `p`.

    `paired`: the i-th trials of both belong to one repeat block. None where a quantile is withheld.
    """
    if not a or not b or not all(shown(trial.count, p) for trial in (*a, *b)):
        return None
    (log_a, within_a), (log_b, within_b) = _log_quantiles(a, p), _log_quantiles(b, p)
    if paired:
        return _estimate(log_a - log_b, np.hypot(within_a, within_b))
    return _welch(log_a, log_b, within_a, within_b)


def ratio_across(a: Sequence[float], b: Sequence[float], *, paired: bool) -> Estimate:
    """Estimate the ratio a/b of figures that each trial has one value of."""
    log_a, log_b = np.log(np.asarray(a, float)), np.log(np.asarray(b, float))
    return _estimate(log_a - log_b, None) if paired else _welch(log_a, log_b, None, None)


def shift(a: Sequence[Digest], b: Sequence[Digest], *, paired: bool) -> list[tuple[float, Estimate]]:
    """The shift function: the ratio a/b at each decile, and how the tail (p99) moved; withheld ones are left out."""
    places = (*(k / 10 for k in range(1, 10)), 0.99)
    found = ((p, quantile_ratio(a, b, p, paired=paired)) for p in places)
    return [(p, ratio) for p, ratio in found if ratio is not None]


def converged(estimate: Estimate | None, width: float) -> bool:
    """Whether the interval is no wider than ±`width` (0.05: ±5 %)."""
    return estimate is not None and not math.isnan(estimate.low) and estimate.width <= width


def student(freedom: float, level: float = LEVEL) -> float:
    """The multiple of the standard error that a two-sided interval has, with so many degrees of freedom."""
    return float(special.stdtrit(freedom, (1 + level) / 2))


# --- inside --------------------------------------------------------------------------------------------------------


def _log_quantiles(trials: Sequence[Digest], p: float) -> tuple[Floats, Floats]:
    """The logarithm of each trial's quantile, and the standard error that it has within its trial."""
    logs = np.log(np.maximum([trial.quantile(p) for trial in trials], 1e-3))
    return logs, np.array([_within(trial, p) for trial in trials])


def _within(trial: Digest, p: float) -> float:
    """Standard error of the logarithm of a trial's quantile under resampling; see the second rule of the module.

    Not drawn: the Beta's own quantiles, evenly spaced, give the same spread without noise.
    """
    count = max(trial.effective_at(p), 2.0)
    even = (np.arange(64) + 0.5) / 64
    places = special.betaincinv(p * (count + 1), (1 - p) * (count + 1), even)
    return float(np.log(np.maximum(np.interp(places, GRID, trial.quantiles), 1e-3)).std())


def _standard_error(logs: Floats, within: Floats | None) -> float:
    """Standard error of the mean of `logs` by the hierarchical bootstrap: trials, then within.

    Trials differ by what is between them and by their own sampling error, and the second level adds the latter again:
    so the deviations of the first level are drawn in by its share, and stretched by n/(n-1), which makes the variance
    of the draws the unbiased one.
    """
    count = len(logs)
    observed = float(logs.var(ddof=1))
    if within is None or observed == 0:
        return math.sqrt(observed / count)
    inside = min(float((within**2).mean()), observed)
    between = math.sqrt((observed - inside) / observed * count / (count - 1))
    draw = np.random.default_rng(0)  # the same draws each time: a report can be made again identically
    chosen = draw.integers(0, count, (DRAWS, count))
    scale = math.sqrt(inside / max(float((within**2).mean()), 1e-300))
    noise = draw.standard_normal((DRAWS, count)) * within[chosen] * scale
    means = ((logs[chosen] - logs.mean()) * between + noise).mean(axis=1)
    return float(means.std())


def _estimate(logs: Floats, within: Floats | None) -> Estimate:
    centre, count = float(logs.mean()), len(logs)
    if count == 1:
        # one trial knows nothing of what differs between trials: its own error is all there is
        error = float(within[0]) * student(math.inf) if within is not None else math.nan
    else:
        error = student(count - 1) * _standard_error(logs, within)
    return Estimate(value=math.exp(centre), low=math.exp(centre - error), high=math.exp(centre + error), trials=count)


def _welch(log_a: Floats, log_b: Floats, within_a: Floats | None, within_b: Floats | None) -> Estimate:
    """The ratio of two independent groups of trials, with Welch's degrees of freedom."""
    centre = float(log_a.mean() - log_b.mean())
    count = min(len(log_a), len(log_b))
    if count == 1:
        known = within_a is not None and within_b is not None
        error = student(math.inf) * math.hypot(within_a[0], within_b[0]) if known else math.nan  # type: ignore[index]
    else:
        a = _standard_error(log_a, within_a) ** 2
        b = _standard_error(log_b, within_b) ** 2
        spread = a**2 / (len(log_a) - 1) + b**2 / (len(log_b) - 1)
        error = student((a + b) ** 2 / spread) * math.sqrt(a + b) if spread else 0.0
    return Estimate(value=math.exp(centre), low=math.exp(centre - error), high=math.exp(centre + error), trials=count)
