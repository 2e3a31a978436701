"""Which distributions have several modes, by a definition in full and by draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hwrx import modes, stats


def dip_by_linear_programs(x: list[float]) -> float:
    """The definition: over each place of the mode, the distribution nearest to the empirical one that has it there."""
    count = len(x)
    least = 1.0
    for mode in range(count - 1):
        rows, limits = [], []
        for place in range(count):
            row = np.zeros(count + 1)
            row[place], row[-1] = -1, -1
            rows.append(row)
            limits.append(-(place + 1) / count)
            row = np.zeros(count + 1)
            row[place], row[-1] = 1, -1
            rows.append(row)
            limits.append(place / count)
        for place in range(count - 1):
            row = np.zeros(count + 1)
            row[place], row[place + 1] = 1, -1
            rows.append(row)
            limits.append(0.0)
        for place in range(1, count - 1):
            before, after = 1 / (x[place] - x[place - 1]), 1 / (x[place + 1] - x[place])
            row = np.zeros(count + 1)
            row[place - 1], row[place], row[place + 1] = -before, before + after, -after
            rows.append(row if place <= mode else -row)
            limits.append(0.0)
        cost = np.zeros(count + 1)
        cost[-1] = 1
        free = [(None, None)] * (count + 1)
        least = min(least, scipy.optimize.linprog(cost, A_ub=np.array(rows), b_ub=limits, bounds=free).fun)
    return least


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=9, unique=True))
@example([0, 2, 16, 26, 28, 37])  # the minorant and the majorant run side by side
def test_the_dip_is_the_distance_to_the_nearest_distribution_with_one_mode(values: list[int]) -> None:
    x = sorted(map(float, values))
    assert modes.dip_statistic(np.array(x)) == pytest.approx(dip_by_linear_programs(x), abs=1e-7)


def test_the_dip_of_what_cannot_have_two_modes_is_the_least() -> None:
    assert modes.dip_statistic(np.full(50, 3.0)) == 1 / 100
    assert modes.dip_statistic(np.array([1.0, 2.0])) == 1 / 4


def ns(values: np.ndarray) -> np.ndarray:
    return np.asarray(values * 1e4, np.int64)


def wandering(draw: np.random.Generator, count: int, phi: float) -> np.ndarray:
    noise = draw.normal(0, math.sqrt(1 - phi**2), count)
    noise[0] = draw.normal()
    return np.exp(0.4 * scipy.signal.lfilter([1], [1, -phi], noise))


@pytest.mark.parametrize("count", [300, 3000, 30_000])
def test_one_mode_is_one_state(count: int) -> None:
    draw = np.random.default_rng(count)
    for _ in range(10):
        for values in (
            draw.lognormal(0, 0.1, count),
            draw.lognormal(0, 1, count),
            draw.gamma(2, 1, count),
            1 + draw.pareto(1.5, count),
            wandering(draw, count, 0.9),
            wandering(draw, count, 0.99),
        ):
            assert [state.share for state in stats.find_states(ns(values), exact=False)] == [1.0]


def test_two_modes_are_two_states_with_their_shares() -> None:
    draw = np.random.default_rng(1)
    slow = draw.random(4000) < 0.3
    fast, slower = stats.find_states(ns(np.where(slow, 1.5, 1.0) * draw.lognormal(0, 0.05, 4000)), exact=False)
    assert (fast.share, slower.share) == pytest.approx((0.7, 0.3), abs=0.02)
    assert (fast.value, slower.value) == pytest.approx((10_000, 15_000), rel=0.02)
    assert fast.low < fast.value < fast.high < slower.low < slower.value < slower.high


def test_three_modes_are_three() -> None:
    draw = np.random.default_rng(2)
    values = np.array([1.0, 1.4, 4.0])[draw.integers(0, 3, 6000)] * draw.lognormal(0, 0.04, 6000)
    found = stats.find_states(ns(values), exact=False)
    assert [state.value for state in found] == pytest.approx([10_000, 14_000, 40_000], rel=0.02)


def test_states_that_last_for_long_are_states_though_few_samples_are_independent() -> None:
    draw = np.random.default_rng(3)
    held = np.repeat(draw.permutation(np.arange(20) % 2), 500)
    found = stats.find_states(ns(np.where(held, 1.6, 1.0) * draw.lognormal(0, 0.05, len(held))), exact=False)
    assert [state.share for state in found] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("step", [50, 1000, 4166.67])
def test_steps_of_a_coarse_clock_are_no_states(step: float) -> None:
    draw = np.random.default_rng(4)
    begin = draw.random(3000) * 1e6
    end = begin + 10_000 * draw.lognormal(0, 0.2, 3000)
    taken = (np.floor(end / step) * step).astype(np.int64) - (np.floor(begin / step) * step).astype(np.int64)
    assert stats.clock_step(np.sort(taken)) == pytest.approx(step, rel=0.02)
    assert len(stats.find_states(taken, exact=False)) == 1


def test_a_fine_clock_has_a_step_of_one() -> None:
    draw = np.random.default_rng(5)
    assert stats.clock_step(np.sort(ns(draw.lognormal(0, 0.3, 5000)))) == 1.0
    assert stats.clock_step(np.sort(ns(draw.lognormal(0, 0.3, 40)))) == 1.0
    assert stats.clock_step(np.repeat([23_651, 26_115], 50)) == 1.0


def test_exact_states_are_told_to_the_digit() -> None:
    """As an emulated guest gives them: two common ways, each a few instructions longer at times, and interruptions."""
    taken = np.repeat([23_651, 23_663, 23_867, 26_115, 26_129, 26_349, 35_503], [1000, 160, 20, 740, 40, 39, 1])
    fast, slow = stats.find_states(np.random.default_rng(6).permutation(taken), exact=True)
    assert (fast.value, fast.low, fast.high, fast.share) == (23_651, 23_651, 23_867, 1180 / 2000)
    assert (slow.value, slow.share) == (26_115, 820 / 2000)


def test_exact_times_of_which_none_is_common_go_by_their_density() -> None:
    draw = np.random.default_rng(7)
    values = ns(np.where(draw.random(3000) < 0.5, 8.8, 7.7) * draw.lognormal(0, 0.01, 3000))
    assert len(stats.find_states(values, exact=True)) == 2


def test_no_samples_have_no_states() -> None:
    with pytest.raises(ValueError, match="no samples"):
        stats.find_states(np.array([], np.int64), exact=True)


def test_states_of_a_setting_are_those_that_most_trials_have() -> None:
    def states(*pairs: tuple[float, float]) -> list[modes.State]:
        return [modes.State(share=share, value=value, low=value - 1, high=value + 1) for share, value in pairs]

    two = stats.join_states([states((0.6, 10), (0.4, 20)), states((0.8, 10), (0.2, 20)), states((1.0, 11))])
    assert [state.share for state in two] == pytest.approx([0.7, 0.3])
    assert [(state.low, state.high) for state in two] == [(9, 11), (19, 21)]
    (one,) = stats.join_states([states((0.6, 10), (0.4, 20)), states((1.0, 10)), states((1.0, 12))])
    assert one.share == 1.0
    assert stats.join_states([]) == []


def test_trials_that_fall_into_groups_are_named_and_have_no_interval() -> None:
    values = [2.41, 2.45, 2.5, 4.0, 4.05, 4.1, 2.44, 4.02]
    assert [state.value for state in stats.trial_groups(values)] == pytest.approx([2.445, 4.035])
    estimate = stats.interval_across(values)
    assert estimate.split
    assert math.isnan(estimate.low)
    assert stats.ratio_across(values, [1.0] * 8).split
    assert stats.mean_across(values).split


def test_trials_that_are_spread_or_near_or_few_are_no_groups() -> None:
    draw = np.random.default_rng(8)
    alarms = sum(bool(stats.trial_groups(np.exp(draw.normal(0, 0.3, 8)))) for _ in range(1000))
    assert alarms <= 20
    assert stats.trial_groups([2.4, 2.41, 4.0, 4.01]) == []
    assert stats.trial_groups([2.40, 2.401, 2.402, 2.45, 2.451, 2.452]) == []  # 2 % apart: nobody minds
    assert stats.trial_groups([3.0, 3.0, 3.0, 4.0, 4.0], step=1 / 3) == []  # steps of a clock


def test_three_groups_of_trials() -> None:
    values = [2.4, 2.5, 2.6, 4.0, 4.1, 4.2, 8.0, 8.2, 8.4]
    assert [state.share for state in stats.trial_groups(values)] == pytest.approx([1 / 3] * 3)


def test_of_many_values_that_repeat_none_has_to_be_often() -> None:
    """tcp's messages: fifty times, each of which a fiftieth took. The figure is where a twentieth have ended."""
    (state,) = modes.exact_states(np.repeat(np.arange(18_300, 18_350), 4))
    assert (state.low, state.high) == (18_300, 18_349)
    assert state.value == 18_302


def test_rare_values_that_are_a_twentieth_only_together_do_not_move_a_clear_figure() -> None:
    """Four values below the usual one have 1.25 % of the messages each: chance has them be a twentieth, or not."""
    draw = np.random.default_rng(9)
    values, shares = [12_100, 12_110, 12_120, 12_130, 12_163, 12_190], [0.0125] * 4 + [0.7, 0.25]
    found = {modes.exact_states(draw.choice(values, 1000, p=shares))[0].value for _ in range(100)}
    assert found == {12_163}
