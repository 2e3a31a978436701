"""The rate of a stream: over whole receiving calls while it is steady, or not at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hwrx.runs import streams
from hwrx.runs.collecting import steady_part
from hwrx.runs.streams import Rate, Withheld

MS = 1_000_000


def calls(count: int, each: int, apart: int) -> npt.NDArray[np.int64]:
    """Deliveries of `count` calls, `apart` ns from each other, that bring `each` messages."""
    return np.repeat(np.arange(1, count + 1) * apart, each).astype(np.int64)


@pytest.mark.parametrize("each", [1, 16, 4096])
@pytest.mark.parametrize("count", [101, 1001])
def test_a_rate_is_the_same_whatever_a_call_brings(each: int, count: int) -> None:
    rate = streams.steady_rate(calls(count, each, 1000 * each * 1000 // each))
    assert isinstance(rate, Rate)
    assert rate.value == pytest.approx(each * 1000, rel=1e-9)
    assert (rate.calls, rate.messages) == (count - 1, (count - 1) * each)


def test_the_first_call_is_where_the_time_begins_and_counts_for_nothing() -> None:
    """Its messages were under way before; counted, a thousand messages in three calls would be half as many more."""
    delivered = calls(300, 10, MS)
    delivered[:10] = delivered[10] - MS
    more = np.concatenate([np.full(5000, delivered[0]), delivered])
    rate = streams.steady_rate(more)
    assert isinstance(rate, Rate)
    assert rate.value == pytest.approx(10_000, rel=1e-9)


@pytest.mark.parametrize(
    ("delivered", "says"),
    [
        (calls(3, 4096, 100 * MS), "2 receiving calls"),
        (calls(400, 16, MS // 100), "steady for 3.99 ms"),
        (calls(1, 1000, MS), "all 1,000 messages were under way"),
        (np.empty(0, np.int64), "no message was delivered"),
    ],
)
def test_what_is_too_little_is_withheld_with_its_reason(delivered: npt.NDArray[np.int64], says: str) -> None:
    found = streams.steady_rate(delivered)
    assert isinstance(found, Withheld)
    assert says in found.reason
    assert not len(delivered) or "raise 'messages' to" in found.reason


def test_a_counted_clock_needs_less_of_it() -> None:
    delivered = calls(400, 16, MS // 100)
    assert isinstance(streams.steady_rate(delivered, least_ns=streams.STEADY_INSTRUCTIONS), Rate)


def test_the_advice_is_enough() -> None:
    few = calls(40, 16, MS)
    found = streams.steady_rate(few)
    assert isinstance(found, Withheld)
    wanted = int(found.reason.rpartition("to ")[2].removesuffix(" or more").replace(",", ""))
    assert isinstance(streams.steady_rate(calls(wanted // 16, 16, MS)), Rate)


def test_a_trial_that_a_time_ended_is_to_last_longer() -> None:
    found = streams.steady_rate(calls(40, 16, MS), duration=0.04)
    assert isinstance(found, Withheld)
    assert "raise 'duration' to 0.2 s or more" in found.reason
    uneven = np.concatenate([calls(200, 16, MS), 200 * MS + calls(200, 16, 2 * MS)])
    moved = streams.steady_rate(uneven, duration=0.6)
    assert isinstance(moved, Withheld)
    assert moved.moved
    assert "raise 'duration' to" in moved.reason
    assert "messages" not in moved.reason


def test_neither_filling_nor_draining_is_steady() -> None:
    """A sender posts a message each µs until 1,000 are under way, then as fast as the receiver takes, one each 2 µs."""
    posted = np.concatenate([np.arange(2000) * 1000, 2_000_000 + np.arange(8000) * 2000]).astype(np.int64)
    delivered = (2000 + np.arange(10_000) * 2000).astype(np.int64)
    delivered[-1000:] = delivered[-1001] + np.arange(1, 1001) * 100  # nobody sends any more: faster
    begin, end = steady_part(delivered, posted)
    assert begin >= 2_000_000 - 2000
    assert end <= posted[-1]
    rate = streams.steady_rate(delivered - delivered[0], begin=begin, end=end, least_ns=MS)
    assert isinstance(rate, Rate)
    assert rate.value == pytest.approx(500_000, rel=0.001)


def test_messages_that_were_all_under_way_at_once_have_no_steady_part() -> None:
    assert steady_part(np.arange(2000, 2100), np.arange(100)) == (0, 0)
    assert steady_part(np.arange(0), np.arange(100)) == (0, 0)


def test_ends_with_two_clocks_have_what_was_recorded() -> None:
    assert steady_part(np.arange(100, 400, 10), None) == (0, 290)


def test_a_rate_that_moved_within_the_trial_is_withheld() -> None:
    fast, slow = calls(500, 16, MS), calls(500, 16, 3 * MS)
    found = streams.steady_rate(np.concatenate([fast, fast[-1] + slow]))
    assert isinstance(found, Withheld)
    assert "moved within the trial" in found.reason
    assert "stop what else runs" in found.reason
    counted = streams.steady_rate(np.concatenate([fast, fast[-1] + slow]), least_ns=streams.STEADY_INSTRUCTIONS)
    assert isinstance(counted, Withheld)
    assert "stop what else runs" not in counted.reason, "nothing else runs where instructions are counted"


def test_a_rate_whose_calls_bring_what_has_gathered_is_steady() -> None:
    """As TCP's do: more after a longer time. Over whole calls the rate is the same."""
    apart = np.random.default_rng(3).integers(MS // 2, 2 * MS, 400)
    delivered = np.repeat(np.cumsum(apart), apart // 1000)
    rate = streams.steady_rate(delivered)
    assert isinstance(rate, Rate)
    assert rate.value == pytest.approx(1e6, rel=0.005)
