"""Processor time: of the measured messages, all of it, and nothing else's."""

from __future__ import annotations

import time

import numpy as np
import pytest
from two_sides import Side, both, endpoint, trial_of

from cython_ext.core.meter import Meter
from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from hwrx.control.messages import Pattern, Setting

SPUN = 0.1  # seconds of a processor
TRIALS = 7


class Timed(Side):
    """A side that also knows what its thread used from before the loop to after it."""

    def run(self) -> None:
        before = time.thread_time_ns()
        super().run()
        self.all_of_it = time.thread_time_ns() - before


def used(side: Side) -> dict[str, int]:
    assert side.verdict == "complete"
    found = side.trial.meter.found()
    assert found is not None
    return found


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_server_that_spins_before_the_first_message_does_not_count_that(path: str) -> None:
    setting = Setting(path=path, messages=200, warmup=0, cooldown=0, wait="spin", check_every=0)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        begin = time.process_time()
        late = Timed(server, setting, "server")
        while time.process_time() - begin < SPUN:
            time.sleep(0.01)
        first = Timed(client, setting, "client")
        for side in (late, first):
            side.join(60)
            assert not side.is_alive()
    assert late.all_of_it - used(late)["thread"] > 0.9e9 * SPUN
    assert used(late)["messages"] == 199  # from the first one that it was through with


# not a stream of tcp: one call takes thousands of its messages
@pytest.mark.parametrize(("path", "pattern"), [("udp", "pingpong"), ("tcp", "pingpong"), ("udp", "stream")])
def test_warm_up_and_cool_down_do_not_count(path: str, pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("two_sides.Side", Timed)
    setting = Setting(path=path, pattern=pattern, messages=1000, warmup=20_000, cooldown=5000, batch=1, window=8)
    for side in both(setting):
        assert isinstance(side, Timed)
        found = used(side)
        assert abs(found["messages"] - setting.messages) <= 16  # every 64th is checked by one more
        assert found["thread"] < side.all_of_it / 5


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_stream_that_settles_is_read_with_nothing_under_way(path: str) -> None:
    setting = Setting(
        path=path, pattern="stream", messages=1000, warmup=500, cooldown=200, check_every=0, settle=100_000_000
    )
    client, server = both(setting)
    assert used(client)["messages"] == 1000  # what is under way is no part of either end's
    assert used(server)["messages"] == 1000
    (first, last), (before, after) = client.trial.meter.times, server.trial.meter.times
    assert before < first < client.trial.posted[0], "all before the measured messages had come, and been slept over"
    assert server.trial.delivered[-1] <= after < last, "all measured messages had come before the sender went on"


def test_an_exchange_that_is_checked_is_one_more_and_its_bytes_are_no_cost() -> None:
    """Of 64 KiB, checked each: filling and verifying would be most of a message.

    Each cost is the least of several trials: whoever else uses the machine makes a message dearer, and none cheaper.
    """
    cost = {}
    for check_every in (0, 1) * TRIALS:
        setting = Setting(path="tcp", messages=300, warmup=50, cooldown=0, size=1 << 16, check_every=check_every)
        for role, side in zip(("client", "server"), both(setting), strict=True):
            found = used(side)
            dear = cost.get((role, check_every), np.inf)
            cost[role, check_every] = min(dear, found["thread"] / found["messages"])
            assert found["beside"] == found["messages"] - 300
            assert abs(found["beside"] - 300 * check_every) <= 1
    for role in ("client", "server"):
        assert cost[role, 1] < 2 * cost[role, 0]


def test_an_open_loop_counts_its_measured_messages() -> None:
    # room for all of them: an open loop goes on while a receiver waits for its turn
    room = 1 << 20
    setting = Setting(
        path="udp", pattern="paced", rate=20_000, messages=400, warmup=100, cooldown=100, socket_buffer=room
    )
    for side in both(setting):
        assert abs(used(side)["messages"] - 400) <= setting.batch


def test_what_a_thread_uses_is_all_counted() -> None:
    """The meter against the thread's clock, around a loop that has nothing but measured messages."""
    setting = Setting(path="udp", messages=20_000, warmup=0, cooldown=0, check_every=0)
    trial = trial_of(setting)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        other = Side(server, setting, "server")
        before = time.thread_time_ns()
        loop.run(trial, client, "pingpong", "client")
        around = time.thread_time_ns() - before
        other.join(60)
    found = trial.meter.found()
    assert found is not None
    assert found["messages"] == 20_000
    assert 0.99 * around < found["thread"] <= around
    assert abs(found["user"] + found["system"] - found["thread"]) < 2 * found["tick"]


def test_a_meter_reads_its_files_where_the_messages_begin_and_end() -> None:
    setting = Setting(path="udp", messages=100, warmup=0, cooldown=0)
    meter = Meter(0, 100, ["/proc/self/schedstat", "/proc/nothing"])
    assert meter.found() is None
    assert meter.said() == {}
    meter.close()
    meter.close()
    trial = loop_over(setting, ("/proc/thread-self/schedstat", "/nowhere/at/all"))
    (before, after), *others = trial.meter.said().values()
    assert not others
    assert int(after.split()[0]) > int(before.split()[0])


def loop_over(setting: Setting, counters: tuple[str, ...]) -> Trial:
    trial = Trial(messages=setting.messages, size=setting.size, trial=7, counters=counters, limit_ns=10**10)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        other = Side(server, setting, "server")
        loop.run(trial, client, "pingpong", "client")
        other.join(60)
    return trial
