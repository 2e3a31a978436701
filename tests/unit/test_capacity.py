"""Finding what a path can do, against made-up paths that serve one message at a time."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import pytest

from hwrx.control.messages import Done, Setting
from hwrx.errors import TrialError
from hwrx.paths import arrivals
from hwrx.runs import capacity, planning
from hwrx.runs.schedule import Measured

SETTING = Setting(path="udp", pattern="paced", rate=1e9, messages=400)


def path(service_ns: float, latency_ns: float, room: int = 10**9):  # type: ignore[no-untyped-def]
    """A server that takes `service_ns` a message, behind a line of `latency_ns`; more than `room` waiting are lost."""

    def measure(setting: Setting) -> Measured:
        done = Done(tally={}, ended="complete")
        if setting.pattern == "pingpong":
            ns = np.full(setting.messages, int(service_ns + latency_ns))
            return Measured(np.arange(setting.messages, dtype=np.uint32), ns, None, {}, done, done, {})
        assert setting.rate is not None
        free, due = 0.0, arrivals.schedule_sends(setting, 0, 0)
        sequence: list[int] = []
        times: list[int] = []
        for k in range(setting.messages):
            sent = float(due[k])
            if free - sent > room * service_ns:
                continue
            free = max(free, sent) + service_ns
            sequence.append(k)
            times.append(int(free + latency_ns - sent))
        if len(times) < setting.messages // 2:
            raise TrialError("nothing moved for the time limit")
        return Measured(np.array(sequence, np.uint32), np.array(times), None, {}, done, done, {})

    return measure


@pytest.mark.parametrize("latency", [100.0, 10_000.0, 300_000.0])
@pytest.mark.parametrize("how", ["even", "poisson"])
def test_capacity_is_that_of_the_server_whatever_the_line(latency: float, how: Literal["even", "poisson"]) -> None:
    setting = msgspec.structs.replace(SETTING, arrivals=how)
    assert capacity.find_capacity(setting, path(5_000.0, latency), "udp") == pytest.approx(200_000, rel=0.03)


def test_a_time_that_trials_last_is_no_number_of_messages_to_probe_with() -> None:
    asked: list[Setting] = []
    serve = path(5_000.0, 100.0)

    def measure(setting: Setting) -> Measured:
        asked.append(setting)
        return serve(setting)

    timed = msgspec.structs.replace(SETTING, duration=2.0, messages=planning.MOST_TIMED)
    assert capacity.find_capacity(timed, measure, "udp") == pytest.approx(200_000, rel=0.03)
    assert {(setting.messages, setting.duration) for setting in asked} == {(capacity.ENOUGH, None)}
    asked.clear()
    capacity.find_capacity(msgspec.structs.replace(SETTING, messages=5000), measure, "udp")
    assert {setting.messages for setting in asked} == {5000}


def test_a_path_that_loses_what_it_cannot_hold_is_not_taken_for_fast() -> None:
    assert capacity.find_capacity(SETTING, path(5_000.0, 10_000.0, room=4), "udp") == pytest.approx(200_000, rel=0.06)


@pytest.mark.parametrize("room", [10**9, 4], ids=["falls behind", "loses"])
def test_the_capacity_of_several_flows_is_that_of_each(room: int) -> None:
    """Four flows that a server of their own serves: all messages of a trial stand in its samples."""
    one = path(5_000.0, 10_000.0, room=room)

    def measure(setting: Setting) -> Measured:
        each = one(setting)
        return msgspec.structs.replace(each, sequence=np.repeat(each.sequence, 4), ns=np.repeat(each.ns, 4))

    setting = msgspec.structs.replace(SETTING, flows="a[1-4]>>b[1-4]")
    assert capacity.find_capacity(setting, measure, "udp") == pytest.approx(200_000, rel=0.06)


def test_what_cannot_be_measured_is_said() -> None:
    def nothing(setting: Setting) -> Measured:
        lost = Done(tally={}, ended="error", error="the cable is out")
        return Measured(np.array([], np.uint32), np.array([], np.int64), None, {}, lost, lost, {})

    with pytest.raises(TrialError, match="udp 64 B event cannot be measured: the cable is out"):
        capacity.find_capacity(SETTING, nothing, "udp 64 B event")

    def never(setting: Setting) -> Measured:
        if setting.pattern == "paced":
            raise TrialError("nothing moved")
        return path(5_000.0, 100.0)(setting)

    with pytest.raises(TrialError, match="does not keep up with"):
        capacity.find_capacity(SETTING, never, "udp")
