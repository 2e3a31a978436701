"""Statistics against closed forms and against SciPy's and NumPy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hwrx import stats


def nanoseconds(values: np.ndarray) -> np.ndarray:
    return np.asarray(values * 1e6, np.int64)


def digests(count: int, size: int, seed: int, effect: float = 0.05, factor: float = 1.0) -> list[stats.Digest]:
    draw = np.random.default_rng(seed)
    blocks = np.exp(np.random.default_rng(99).normal(0, effect, count))
    return [stats.digest_samples(nanoseconds(factor * block * draw.exponential(1, size))) for block in blocks]


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=200),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
)
def test_quantiles_are_hyndman_and_fan_type_8(values: list[int], places: list[float]) -> None:
    ours = stats.quantile_of(np.sort(np.array(values)), places)
    np.testing.assert_allclose(ours, np.quantile(values, places, method="median_unbiased"), rtol=1e-9, atol=1e-3)
    np.testing.assert_allclose(ours, scipy.stats.mstats.mquantiles(values, places, 1 / 3, 1 / 3), rtol=1e-9, atol=1e-3)


def test_quantiles_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.quantile_of(np.array([], np.int64), 0.5)
    with pytest.raises(ValueError, match="no samples"):
        stats.digest_samples(np.array([], np.int64))


@pytest.mark.parametrize(
    ("count", "p", "expected"),
    [(1000, 0.99, True), (999, 0.99, False), (100, 0.9, True), (99, 0.9, False), (10_000, 0.999, True),
     (9_999, 0.999, False), (20, 0.5, True), (19, 0.5, False), (100, 0.1, True), (99, 0.1, False)],
)  # fmt: skip
def test_a_quantile_needs_ten_samples_beyond(count: int, p: float, expected: bool) -> None:
    assert stats.shown_quantiles(count, p) is expected


def test_withheld_quantiles_are_none() -> None:
    trials = digests(3, 999, 1)
    assert stats.quantile_across(trials, 0.99) is None
    assert stats.quantile_across(trials, 0.9) is not None
    assert stats.quantile_ratio(trials, digests(3, 5000, 2), 0.99) is None
    assert stats.quantile_across([], 0.5) is None


def test_a_digest_holds_the_quantiles_exactly_at_its_grid() -> None:
    ns = nanoseconds(np.random.default_rng(1).exponential(1, 100_003))
    digest = stats.digest_samples(ns.copy())
    for p in (*stats.NAMED, 0.1, 0.3, 0.7, 0.9999):
        assert digest.quantile(p) == pytest.approx(np.quantile(ns, p, method="median_unbiased"), abs=1e-6)
    assert (digest.count, digest.lowest, digest.highest, digest.total) == (len(ns), ns.min(), ns.max(), ns.sum())
    assert digest.mean == pytest.approx(ns.mean())


def test_a_digest_leaves_a_read_only_array_as_it_is() -> None:
    ns = nanoseconds(np.random.default_rng(1).exponential(1, 1000))
    before = ns.copy()
    ns.flags.writeable = False
    stats.digest_samples(ns)
    assert np.array_equal(ns, before)


def test_no_outlier_is_dropped() -> None:
    ns = np.full(1000, 1000, np.int64)
    ns[500] = 10**12
    digest = stats.digest_samples(ns)
    assert digest.highest == 10**12
    assert digest.count == 1000


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression_is_the_closed_form(phi: float) -> None:
    noise = np.random.default_rng(5).normal(size=200_000)
    series = scipy.signal.lfilter([1], [1, -phi], noise)
    assert stats.effective_share(series) == pytest.approx((1 - phi) / (1 + phi), rel=0.12)
    np.testing.assert_allclose(stats.lag_autocorrelation(series)[:5], phi ** np.arange(5), atol=0.02)


def test_autocorrelation_of_a_constant_is_that_of_nothing() -> None:
    assert stats.lag_autocorrelation(np.full(10, 3.0)).tolist() == [1.0] + [0.0] * 9
    assert stats.effective_share(np.full(10, 3.0)) == 1.0


def test_one_value_a_trial_has_students_interval_on_the_logarithm() -> None:
    values = [100.0, 110.0, 95.0, 103.0, 99.0]
    ours = stats.interval_across(values)
    logs = np.log(values)
    low, high = scipy.stats.t.interval(0.95, len(logs) - 1, logs.mean(), scipy.stats.sem(logs))
    assert ours.value == pytest.approx(scipy.stats.gmean(values))
    assert (ours.low, ours.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_a_mean_of_either_sign_has_students_interval() -> None:
    values = [1.0, -0.5, 0.3, 0.8]
    ours = stats.mean_across(values)
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(tuple(expected))
    assert math.isnan(stats.mean_across([1.0]).low)


def test_a_ratio_is_the_paired_t_test() -> None:
    a, b = [100.0, 130.0, 95.0, 111.0], [50.0, 66.0, 47.0, 56.0]
    paired = scipy.stats.ttest_rel(np.log(a), np.log(b)).confidence_interval()
    ours = stats.ratio_across(a, b)
    assert (ours.low, ours.high) == pytest.approx((math.exp(paired.low), math.exp(paired.high)))


def test_pairing_cancels_what_a_whole_block_has_in_common() -> None:
    a, b = digests(8, 20_000, 1, effect=0.5), digests(8, 20_000, 2, effect=0.5, factor=2.0)
    paired = stats.quantile_ratio(b, a, 0.5)
    assert paired is not None
    apart = stats.compare_groups([of.quantile(0.5) for of in a], [of.quantile(0.5) for of in b]).ratio
    assert paired.low < 2.0 < paired.high
    assert paired.width < apart.width / 5


@pytest.mark.parametrize("repeats", [3, 10, 40])
def test_an_interval_of_quantiles_is_students_on_the_trials_logarithms(repeats: int) -> None:
    trials = digests(repeats, 2000, 7, effect=0.0)
    logs = np.log([trial.quantile(0.5) for trial in trials])
    estimate = stats.quantile_across(trials, 0.5)
    assert estimate is not None
    low, high = scipy.stats.t.interval(0.95, repeats - 1, logs.mean(), scipy.stats.sem(logs))
    assert (estimate.low, estimate.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_one_trial_has_no_interval() -> None:
    estimate = stats.quantile_across(digests(1, 10_000, 1), 0.5)
    assert estimate is not None
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert not estimate.split
    assert math.isnan(stats.interval_across([5.0]).low)
    ratio = stats.quantile_ratio(digests(1, 1000, 1), digests(1, 1000, 2), 0.5)
    assert ratio is not None
    assert math.isnan(ratio.low)


def test_no_interval_is_narrower_than_the_step_of_the_clock() -> None:
    """All trials have one and the same median, which says nothing of what lies between two ticks."""
    ticks = [np.repeat([9_000, 10_000, 11_000], [300, 500, 200]) for _ in range(4)]
    trials = [stats.digest_samples(ns) for ns in ticks]
    assert {trial.step for trial in trials} == {1000.0}
    estimate = stats.quantile_across(trials, 0.5)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((9_000, 11_000))
    ratio = stats.quantile_ratio(trials, trials, 0.5)
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((0.8, 1.2))
    rate = stats.interval_across([100.0] * 3, step=0.01)
    assert (rate.low, rate.high) == pytest.approx((99, 101))
    slope = stats.mean_across([2.0] * 3, step=0.5)
    assert (slope.low, slope.high) == (1.5, 2.5)


def test_a_quantile_of_zero_has_no_logarithm_and_is_withheld() -> None:
    gaps = [np.repeat([0, 5_000], [900, 100]) for _ in range(3)]
    trials = [stats.digest_samples(ns) for ns in gaps]
    assert stats.quantile_across(trials, 0.5) is None
    assert stats.quantile_ratio(trials, digests(3, 1000, 1), 0.5) is None


def test_low_quantiles_are_their_own_and_beyond_the_grid_refused() -> None:
    ns = nanoseconds(np.random.default_rng(1).lognormal(0, 1, 200_000))
    digest = stats.digest_samples(ns.copy())
    for p in (0.0001, 0.001, 0.01):
        assert digest.quantile(p) == pytest.approx(np.quantile(ns, p, method="median_unbiased"), rel=1e-9)
    assert digest.quantile(0.0001) < digest.quantile(0.0005) < digest.quantile(0.002)
    for p in (1e-9, 1 - 1e-9):
        with pytest.raises(ValueError, match="no quantile at"):
            digest.quantile(p)


def test_stopping_at_a_narrow_interval_keeps_the_truth_in_95_of_100() -> None:
    """Looking after each repeat from the third on; intervals at 95 % would hold it in some 91."""
    draw = np.random.default_rng(9)
    hits = dict.fromkeys((stats.LEVEL, stats.SEQUENTIAL), 0)
    for _ in range(1500):
        values = np.exp(draw.normal(0, 0.1, 100))
        for level in hits:
            estimate = next(
                found
                for count in range(3, 101)
                if stats.is_converged(found := stats.interval_across(values[:count], level), 0.05) or count == 100
            )
            hits[level] += estimate.low <= 1 <= estimate.high
    assert hits[stats.SEQUENTIAL] >= 0.945 * 1500
    assert hits[stats.LEVEL] < 0.94 * 1500


def test_two_repeats_are_never_converged() -> None:
    assert not stats.is_converged(stats.interval_across([1.0, 1.0]), 0.5)
    assert stats.is_converged(stats.interval_across([1.0, 1.0, 1.0]), 0.5)


def test_shift_shows_where_a_distribution_moved() -> None:
    draw = np.random.default_rng(1)
    base = [nanoseconds(draw.lognormal(0, 0.1, 20_000)) for _ in range(4)]
    slow_tail = [np.where(draw.random(len(ns)) < 0.05, ns * 3, ns) for ns in base]
    moved = dict(
        stats.shift_between([stats.digest_samples(ns) for ns in slow_tail], [stats.digest_samples(ns) for ns in base])
    )
    assert set(moved) == {*(k / 10 for k in range(1, 10)), 0.99}
    assert moved[0.5].value == pytest.approx(1.0, abs=0.02)
    assert moved[0.99].value > 2


def test_convergence_is_the_width_of_the_interval() -> None:
    estimate = stats.Estimate(value=100.0, low=96.0, high=104.0, trials=3)
    assert stats.is_converged(estimate, 0.05)
    assert not stats.is_converged(estimate, 0.03)
    assert not stats.is_converged(None, 0.5)
    assert not stats.is_converged(stats.interval_across([5.0]), 0.5)


def test_answers_a_second_of_an_open_loop() -> None:
    """Below capacity it is the rate; above, what the path can do: here 10 µs a message, offered every 4 µs."""
    each = np.arange(1000)
    kept_up = stats.answered_within(each * 10_000, np.full(1000, 7_000))
    assert kept_up == pytest.approx(1e5)
    behind = stats.answered_within(each * 4_000, each * (10_000 - 4_000) + 10_000)
    assert behind == pytest.approx(1e5)
    assert stats.answered_within(each[:1], np.ones(1, np.int64)) is None


def test_a_transient_is_found_and_a_steady_trial_has_none() -> None:
    draw = np.random.default_rng(8)
    steady = nanoseconds(draw.lognormal(0, 0.2, 20_000))
    assert stats.find_warmup(steady) == stats.Warmup(0, True)
    cold = steady.copy()
    cold[:1500] *= 3
    found = stats.find_warmup(cold)
    assert found.settled
    assert found.samples == pytest.approx(1500, abs=60)


def test_a_trial_that_drifts_to_its_end_did_not_settle() -> None:
    drift = nanoseconds(1 + np.linspace(0, 2, 20_000))
    assert not stats.find_warmup(drift).settled


def test_one_late_spike_makes_no_warmup() -> None:
    steady = nanoseconds(np.random.default_rng(8).lognormal(0, 0.2, 20_000))
    steady[9000] = 10**12
    assert stats.find_warmup(steady).samples == 0


def test_false_alarms_of_warmup_are_rare() -> None:
    draw = np.random.default_rng(17)
    alarms = sum(stats.find_warmup(nanoseconds(draw.lognormal(0, 0.3, 2000))).samples > 0 for _ in range(400))
    assert alarms <= 40
