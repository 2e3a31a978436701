"""The join, with events made by hand: whatever is true of them is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwrx import paths, stages
from hwrx.timelines import join

EVENT = np.dtype(
    [
        ("ns", "<u8"), ("sequence", "<u8"), ("object", "<u8"), ("flow", "<u4"), ("trial", "<u4"), ("bytes", "<u4"),
        ("position", "<u4"), ("tid", "<u4"), ("cpu", "<u2"), ("stage", "u1"), ("context", "u1"),
    ]
)  # fmt: skip
FORTH, BACK = 0x10002, 0x20001
PROBED = [stage for stage in paths.stage_chain("udp") if stage.probes]
INNER = [stage for stage in PROBED if stage.name not in ("posted", "delivered")]
GAP = 100


def made(
    messages: int, *, first: int = 0, flow: int = FORTH, start: int = 1_000_000
) -> tuple[npt.NDArray[Any], join.Ends]:
    """Every stage of every message, GAP apart, and the user's stamps."""
    whole = GAP * (len(INNER) + 1)
    posted = start + np.arange(messages, dtype=np.int64) * 10 * whole
    events = np.zeros(messages * len(INNER), dtype=EVENT)
    for number, stage in enumerate(INNER):
        part = events[number :: len(INNER)]
        part["ns"] = posted + (number + 1) * GAP
        part["sequence"] = np.arange(messages) + first
        part["stage"] = stage.number
        part["flow"] = flow
    return events, join.Ends(posted, posted + whole, first)


def test_a_whole_trial_is_complete_and_adds_up() -> None:
    events, ends = made(50, first=7)
    timelines = join.join_events(events, ends, "udp", available=PROBED)
    assert timelines.complete.all()
    assert timelines.sequence.tolist() == list(range(7, 57))
    intervals, present = timelines.intervals()
    assert present.all()
    assert (intervals[:, 1:] == GAP).all()
    assert (intervals.sum(axis=1) == timelines.one_way()).all()


def test_the_order_of_the_events_does_not_matter() -> None:
    events, ends = made(20)
    shuffled = np.random.default_rng(1).permutation(events)
    assert (join.join_events(shuffled, ends, "udp").stamps == join.join_events(events, ends, "udp").stamps).all()


def test_the_other_direction_with_the_same_sequence_numbers_is_kept_apart() -> None:
    forth, ends_forth = made(20)
    back, ends_back = made(20, flow=BACK, start=1_000_000 + GAP * (len(INNER) + 1))
    both = np.concatenate([forth, back])
    assert join.flow_of(both, ends_forth) == FORTH
    assert join.flow_of(both, ends_back) == BACK
    assert (join.join_events(both, ends_back, "udp").intervals()[0][:, 1:] == GAP).all()


@pytest.mark.parametrize("name", [stage.name for stage in INNER if not stage.unless])
def test_a_missing_unconditional_stage_is_counted_by_its_name(name: str) -> None:
    events, ends = made(10)
    lost = (events["stage"] == stages.BY_NAME[name].number) & (events["sequence"] == 3)
    timelines = join.join_events(events[~lost], ends, "udp", available=PROBED)
    assert timelines.missing == {name: 1}
    assert timelines.complete.sum() == 9
    assert not timelines.complete[3]


def test_the_first_missing_stage_is_named() -> None:
    events, ends = made(4)
    lost = events["sequence"] == 2
    lost &= np.isin(events["stage"], [stages.BY_NAME[n].number for n in ("sk_data_ready", "udp_rcv", "sys_exit recv")])
    assert join.join_events(events[~lost], ends, "udp", available=PROBED).missing == {"udp_rcv": 1}


def test_a_conditional_stage_may_be_absent_and_its_time_goes_to_the_next() -> None:
    events, ends = made(10)
    woken = np.isin(events["stage"], [stages.BY_NAME[n].number for n in ("sched_waking", "sched_switch")])
    timelines = join.join_events(events[~woken], ends, "udp", available=PROBED)
    assert timelines.complete.all()
    intervals, present = timelines.intervals()
    names = [stage.name for stage in timelines.stages]
    assert not present[:, names.index("sched_switch")].any()
    assert (intervals[:, names.index("__skb_recv_udp")] == 3 * GAP).all()
    assert (intervals.sum(axis=1) == timelines.one_way()).all()


def test_a_conditional_stamp_of_another_message_is_dropped() -> None:
    events, ends = made(10)
    stray = (events["stage"] == stages.BY_NAME["sched_switch"].number) & (events["sequence"] == 4)
    events["ns"][stray] += 2 * GAP
    timelines = join.join_events(events, ends, "udp", available=PROBED)
    assert timelines.dropped == {"sched_switch": 1}
    assert timelines.complete.all()


def test_an_unconditional_stamp_out_of_order_is_no_complete_message() -> None:
    events, ends = made(10)
    stray = (events["stage"] == stages.BY_NAME["ip_rcv"].number) & (events["sequence"] == 4)
    events["ns"][stray] -= 12 * GAP
    timelines = join.join_events(events, ends, "udp", available=PROBED)
    assert not timelines.complete[4]
    assert timelines.complete.sum() == 9
    assert sum(timelines.disordered.values()) > 0


def test_a_kernel_stamp_outside_of_the_users_is_no_complete_message() -> None:
    events, ends = made(10)
    ends.delivered[5] = ends.posted[5] + GAP
    assert not join.join_events(events, ends, "udp", available=PROBED).complete[5]


def test_of_several_stamps_the_first_or_the_last_counts() -> None:
    events, ends = made(3)
    again = events[
        np.isin(events["stage"], [stages.BY_NAME[n].number for n in ("ip_rcv", "copied to the user")])
    ].copy()
    again["ns"] += GAP // 2
    timelines = join.join_events(np.concatenate([events, again]), ends, "udp", available=PROBED)
    names = [stage.name for stage in timelines.stages]
    rcv, copied = names.index("ip_rcv"), names.index("copied to the user")
    assert (timelines.stamps[:, rcv] == ends.posted + rcv * GAP).all()
    assert (timelines.stamps[:, copied] == ends.posted + copied * GAP + GAP // 2).all()


def test_messages_of_warm_up_and_of_lost_messages_are_no_rows() -> None:
    events, ends = made(10, first=0)
    ends = join.Ends(ends.posted[2:], ends.delivered[2:], first=2)
    ends.delivered[3] = 0
    timelines = join.join_events(events, ends, "udp", available=PROBED)
    assert timelines.sequence.tolist() == [2, 3, 4, 6, 7, 8, 9]


def test_only_sampled_messages_are_rows() -> None:
    events, ends = made(100)
    timelines = join.join_events(events[events["sequence"] % 10 == 0], ends, "udp", available=PROBED)
    assert timelines.sequence.tolist() == list(range(0, 100, 10))
    assert timelines.complete.all()


def test_stages_that_the_endpoint_stamps_itself_need_no_event() -> None:
    posted = np.arange(1, 101, dtype=np.int64) * 1000
    own = {"descriptor seen": posted + 300, "parsed": posted + 350, "looked up": posted + 360}
    own["parsed"][40] = 0
    ends = join.Ends(posted, posted + 400, 7, own)
    timelines = join.join_events(
        np.zeros(0, dtype=EVENT), ends, "nic-ring", available=paths.stage_chain("nic-ring"), every=10
    )
    assert timelines.sequence.tolist() == list(range(10, 107, 10))
    assert [stage.name for stage in timelines.stages] == [
        "posted",
        "descriptor seen",
        "parsed",
        "looked up",
        "delivered",
    ]
    intervals, _ = timelines.intervals()
    assert (intervals == [0, 300, 50, 10, 40]).all()
    whole = join.join_events(np.zeros(0, dtype=EVENT), ends, "nic-ring", available=paths.stage_chain("nic-ring"))
    assert (len(whole.complete), whole.missing) == (100, {"parsed": 1})


def test_no_events_make_no_rows() -> None:
    _, ends = made(5)
    timelines = join.join_events(np.zeros(0, dtype=EVENT), ends, "udp", available=PROBED)
    assert len(timelines.complete) == 0
    assert timelines.share == 0.0
    assert join.timeline_table(timelines)[0].count == 0


def test_means_add_up_to_the_mean_one_way_time() -> None:
    events, ends = made(40)
    rng = np.random.default_rng(3)
    ends.delivered[:] += rng.integers(0, 1000, 40)
    rows = join.timeline_table(join.join_events(events, ends, "udp", available=PROBED))
    assert sum(row.mean for row in rows) == pytest.approx(float((ends.delivered - ends.posted).mean()))
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert all(np.isnan(row.p99) for row in rows), "forty messages give no p99"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_lost_complete_messages_add_up(data: st.DataObject) -> None:
    events, ends = made(12)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events))))
    shift = np.array(data.draw(st.lists(st.integers(-300, 300), min_size=len(events), max_size=len(events))))
    events["ns"] = (events["ns"].astype(np.int64) + shift).astype(np.uint64)
    timelines = join.join_events(events[kept], ends, "udp", available=PROBED, flow=FORTH)
    intervals, _ = timelines.intervals()
    assert (intervals >= 0).all()
    assert (intervals.sum(axis=1) == timelines.one_way()).all()
    gone = len(timelines.complete) - int(timelines.complete.sum())
    assert sum(timelines.missing.values()) <= gone


def test_sequence_numbers_that_wrap_are_those_of_the_last_message_posted() -> None:
    events, ends = made(30, first=5)
    events["sequence"] %= 4
    timelines = join.join_events(events, ends, "udp", available=PROBED, modulo=4)
    assert timelines.complete.all()
    assert timelines.sequence.tolist() == list(range(5, 35))
