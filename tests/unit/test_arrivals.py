"""When an open loop's messages are due."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from hwrx.control.messages import Setting
from hwrx.paths import arrivals

SEED = 11
SETTING = Setting(path="udp", pattern="paced", rate=1e5, messages=20_000, warmup=100, cooldown=7)


def poisson(**more: float) -> Setting:
    return Setting(
        path="udp", pattern="paced", arrivals="poisson", messages=20_000, warmup=100, **{"rate": 1e5, **more}
    )


def test_even_arrivals_have_one_distance() -> None:
    due = arrivals.schedule_sends(SETTING, 3, SEED)
    assert len(due) == 20_107
    assert set(np.diff(due)) == {10_000}


def test_random_arrivals_are_those_of_a_poisson_process() -> None:
    gaps = np.diff(arrivals.schedule_sends(poisson(), 0, SEED))
    assert scipy.stats.kstest(gaps, "expon", args=(0, 10_000)).pvalue > 0.001
    counts = np.bincount(arrivals.schedule_sends(poisson(), 0, SEED) // 1_000_000)[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.25)


def test_draws_belong_to_the_repeat_and_scale_with_the_rate() -> None:
    one = arrivals.schedule_sends(poisson(), 1, SEED)
    assert np.array_equal(one, arrivals.schedule_sends(poisson(), 1, SEED))
    assert not np.array_equal(one, arrivals.schedule_sends(poisson(), 2, SEED))
    np.testing.assert_allclose(arrivals.schedule_sends(poisson(rate=5e4), 1, SEED), 2 * one, atol=2)


def test_the_generator_is_the_one_that_old_runs_were_made_with() -> None:
    """A report finds the arrivals again; another sequence would make old runs mean something else."""
    assert arrivals.schedule_sends(poisson(), 0, None)[:4].tolist() == [7959, 20518, 29750, 37622]


def test_recorded_messages_count_from_the_end_of_the_warmup() -> None:
    due = arrivals.intended_times(SETTING, 0, SEED, np.array([0, 2], np.uint32))
    assert due.tolist() == [101 * 10_000, 103 * 10_000]
