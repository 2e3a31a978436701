"""Answers that come late, or never, and messages that are only to be checked: UDP against packets made by hand."""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np
import pytest
from leaving import nothing_is_left  # noqa: F401
from test_sockets import Raw
from two_sides import TRIAL, WAITS, Side, both, clean, endpoint

from cython_ext.core import payload
from hwrx.control.messages import Setting, Wait

CHECK = b"hwrK"
PATIENCE = 1.0  # seconds: an answer of ours takes as long only if it is meant to, however busy the machine


def asked(raw: Raw) -> bytes:
    return raw.socket.recv(70_000)


def client(**more: Any) -> Setting:
    return Setting(path="udp", **{"warmup": 0, "cooldown": 0, "check_every": 0, "patience": PATIENCE, **more})


@pytest.mark.parametrize("wait", WAITS)
def test_an_answer_that_comes_after_the_clients_patience_is_late_and_has_its_time(wait: Wait) -> None:
    with Raw("client", client(messages=10, wait=wait, limit=30)) as raw:
        for number in range(10):
            assert payload.sequence(asked(raw)) == number
            if number == 3:  # given up, and answered while the next one is waited for
                assert payload.sequence(asked(raw)) == 4
                raw.say(3)
                raw.say(4)
            elif number not in (4,):
                raw.say(number)
            if number == 3:
                break
        for number in range(5, 10):
            assert payload.sequence(asked(raw)) == number
            raw.say(number)
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert (counts["late"], counts["lost"], counts["delivered"]) == (1, 0, 10)
    times = raw.side.trial.delivered - raw.side.trial.posted
    assert times[3] > PATIENCE * 1e9
    assert np.all(raw.side.trial.posted > 0)


def test_the_last_answer_may_be_late_too() -> None:
    with Raw("client", client(messages=3, limit=30)) as raw:
        for number in range(3):
            assert payload.sequence(asked(raw)) == number
            if number == 2:
                time.sleep(1.5 * PATIENCE)
            raw.say(number)
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert (counts["late"], counts["lost"]) == (1, 0)


@pytest.mark.parametrize("pattern", ["pingpong", "paced"])
def test_the_last_messages_may_be_lost_and_the_trial_is_whole(pattern: Any) -> None:
    more = {"rate": 200.0} if pattern == "paced" else {}
    with Raw("client", client(messages=8, pattern=pattern, limit=30, **more)) as raw:
        for number in range(8):
            assert payload.sequence(asked(raw)) == number
            if number < 5:
                raw.say(number)
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert (counts["delivered"], counts["lost"], counts["late"]) == (5, 3, 0)
    assert np.all(raw.side.trial.posted > 0)


@pytest.mark.parametrize("pattern", ["pingpong", "paced"])
def test_a_trial_of_which_nothing_was_answered_says_so(pattern: Any) -> None:
    more = {"rate": 1000.0} if pattern == "paced" else {}
    with Raw("client", client(messages=4, pattern=pattern, limit=30, **more)) as raw:
        assert raw.side.counts["delivered"] == 0
    assert raw.side.verdict == "nothing"


def test_a_server_that_is_told_of_the_end_does_not_wait_for_what_was_lost() -> None:
    with Raw("server", client(messages=100, limit=600)) as raw:
        raw.say(0)
        assert payload.sequence(asked(raw)) == 0
        raw.side.trial.stop()
        counts = raw.side.counts
    assert raw.side.verdict == "finished"
    assert (counts["delivered"], counts["lost"]) == (1, 99)


def test_a_receiver_of_a_stream_that_got_nothing_says_so() -> None:
    with Raw("server", client(messages=100, pattern="stream", limit=600)) as raw:
        raw.side.trial.stop()
        assert raw.side.counts["delivered"] == 0
    assert raw.side.verdict == "nothing"


def test_an_open_loop_whose_window_stays_full_ends_at_its_limit() -> None:
    setting = Setting(
        path="tcp", pattern="paced", rate=1e5, messages=50_000, size=60_000, window=8, check_every=0, limit=1.0
    )
    with endpoint("client", setting) as sender, socket.create_server(("127.0.0.1", 0)) as listener:
        sender.connect({"address": "127.0.0.1", "port": listener.getsockname()[1]})
        taken, _ = listener.accept()  # and reads nothing
        with taken:
            side = Side(sender, setting, "client")
            counts = side.counts
    assert side.verdict in ("limit",) or "ETIMEDOUT" in side.verdict
    assert counts["posted"] <= 8


def test_sends_behind_their_time_are_counted() -> None:
    """A sender cannot keep 10^9 messages a second, though UDP always has room."""
    sender, _ = both(client(messages=2000, pattern="paced", rate=1e9, limit=30))
    assert sender.counts["sent_late"] > 0
    assert sender.counts["window_full"] == 0


def test_sends_that_waited_for_room_are_counted() -> None:
    sender, _ = both(Setting(path="tcp", pattern="paced", rate=1e9, messages=2000, window=2, check_every=0))
    assert sender.counts["window_full"] > 0


# --- messages that are only to be checked ----------------------------------------------------------------------------


def check_message(number: int, size: int = 64) -> bytes:
    return CHECK + payload.make(size, number, TRIAL)[4:]


@pytest.mark.parametrize("path", ["udp", "tcp"])
@pytest.mark.parametrize(("every", "checks"), [(1, 165), (64, 3), (0, 0), (1000, 1)])
def test_each_nth_message_has_one_before_it_that_is_checked(path: str, every: int, checks: int) -> None:
    here, there = both(Setting(path=path, messages=150, warmup=10, cooldown=5, check_every=every, size=100))
    for side in (here, there):
        assert clean(side.counts), side.counts
        assert (side.counts["checked"], side.counts["unchecked"]) == (checks, 0)
        assert side.counts["bytes"] == 165 * 100


def test_a_timed_message_is_only_looked_at_and_one_to_be_checked_is_verified() -> None:
    with Raw("server", client(messages=3)) as raw:
        damaged = bytearray(payload.make(64, 0, TRIAL))
        damaged[40] ^= 1  # of the pattern, which a timed message does not have
        raw.send(bytes(damaged))
        assert payload.sequence(asked(raw)) == 0
        raw.send(check_message(1))
        answer = asked(raw)
        assert answer[:4] == CHECK
        assert payload.check(bytearray(b"hwrx" + answer[4:]), TRIAL) == "good"
        for at in (17, 25, 40, 62):
            damaged = bytearray(check_message(1))
            damaged[at] ^= 1
            raw.send(bytes(damaged))
            assert asked(raw)[:4] == CHECK
        for number in (1, 2):
            raw.say(number)
            assert payload.sequence(asked(raw)) == number
        counts = raw.side.counts
    assert (counts["delivered"], counts["checked"], counts["corrupt"]) == (3, 1, 4)


def test_a_damaged_answer_to_a_check_is_counted_and_a_lost_one_too() -> None:
    with Raw("client", client(messages=3, check_every=1, limit=30)) as raw:
        for number in range(3):
            assert asked(raw)[:4] == CHECK
            answer = bytearray(check_message(number))
            answer[30] ^= number == 0
            if number != 1:
                raw.send(bytes(answer))
            assert asked(raw)[:4] == b"hwrx"
            raw.say(number)
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert {name: counts[name] for name in ("delivered", "checked", "corrupt", "unchecked", "late", "lost")} == {
        "delivered": 3, "checked": 1, "corrupt": 1, "unchecked": 1, "late": 0, "lost": 0,
    }  # fmt: skip


def test_an_answer_to_what_was_not_sent_yet_is_none() -> None:
    with Raw("client", client(messages=3, check_every=3, limit=30)) as raw:
        assert asked(raw)[:4] == CHECK
        raw.say(0)
        raw.send(check_message(0))
        for number in range(3):
            assert payload.sequence(asked(raw)) == number
            raw.say(number)
        counts = raw.side.counts
    assert (counts["delivered"], counts["stale"], counts["duplicated"], counts["late"]) == (3, 1, 0, 0)
