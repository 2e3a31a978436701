"""What lab/bench/roce_exact takes for right, wrong and lost."""

from __future__ import annotations

import collections
import importlib
import pathlib
import random
from typing import Any

import numpy as np
import pytest

BENCH = pathlib.Path(__file__).parents[2] / "lab/bench"
SUCCESS = "IBV_WC_SUCCESS"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("roce_exact")


@pytest.fixture
def play(exact: Any) -> Any:
    pool = random.Random(3).randbytes(exact.POOL)
    complement = memoryview((255 - np.frombuffer(pool, np.uint8)).tobytes())
    return exact.Round(random.Random(4), memoryview(pool), complement, 40)


class End:
    """An end whose messages have all come as soon as they are posted."""

    def __init__(self, exact: Any, play: Any, side: str) -> None:
        self.exact, self.memory = exact, np.zeros(exact.ROOM, np.uint8)
        self.after = play.after[side]
        self.pair = self
        self.done: dict[str, list[Any]] = {"send": [], "receive": []}
        self.expected = play.receives(side)

    def post_receives(self, slots: list[tuple[int, int]]) -> None:
        for number, each in enumerate(self.expected):
            told = each.request.immediate if each.request.verb.endswith("imm") else None
            self.done["receive"].append(self.exact.Done(number, SUCCESS, each.size, told))

    def post_sends(self, requests: list[Any], there: Any) -> None:
        self.memory[: len(self.after)] = np.frombuffer(self.after, np.uint8)
        self.done["send"] = [self.exact.Done(number, SUCCESS, 0, None) for number in range(len(requests))]

    def progress(self) -> int:
        return 1

    def wait(self, seconds: float) -> None:
        raise AssertionError("nothing is to be waited for")

    def poll(self, queue: str) -> list[Any]:
        found, self.done[queue] = self.done[queue], []
        return found


@pytest.fixture
def meeting(exact: Any, play: Any) -> Any:
    made = exact.Meeting.__new__(exact.Meeting)
    made.wrong = []
    made.ends = {side: End(exact, play, side) for side in exact.SIDES}
    return made


def tally(counts: Any) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for (_, _, how), count in counts.items():
        found[how] += count
    return found


def test_each_verb_goes_each_way_and_all_of_it_is_right(exact: Any, play: Any, meeting: Any) -> None:
    assert {each.request.verb for each in play.messages["ours"]} == set(exact.VERBS)
    assert {each.request.verb for each in play.messages["rxe"]} == set(exact.VERBS)
    counts = tally(meeting.carry(play))
    assert (counts["right"], counts["wrong"], counts["lost"]) == (80, 0, 0)


def test_before_a_round_no_byte_is_what_it_must_be_afterwards(exact: Any, play: Any) -> None:
    for each in (each for side in exact.SIDES for each in play.messages[side]):
        before = play.before[each.lands][each.landing :][: each.size]
        assert all(was != is_now for was, is_now in zip(before, each.expected, strict=True))


def test_one_wrong_byte_is_one_wrong_message(play: Any, meeting: Any) -> None:
    each = next(each for each in play.messages["rxe"] if each.request.verb == "read")
    meeting.ends["rxe"].after[each.landing] ^= 1
    expected = play.after["rxe"] = bytearray(play.after["rxe"])
    expected[each.landing] ^= 1
    counts = meeting.carry(play)
    assert counts["rxe", "read", "wrong"] == 1 and tally(counts)["wrong"] == 1
    assert meeting.wrong == [f"rxe, read of {each.size} bytes: 1 are wrong, from 0 on, 0 of them untouched"]


@pytest.mark.parametrize("at", [0, -1])
def test_a_byte_out_of_place_and_an_atomic_executed_twice_are_seen(
    exact: Any, play: Any, meeting: Any, at: int
) -> None:
    meeting.ends["ours"].after = bytearray(play.after["ours"])
    meeting.ends["ours"].after[at] ^= 1
    with pytest.raises(exact.Wrong, match="between the places"):
        meeting.carry(play)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "IBV_WC_RETRY_EXC_ERR"}, "ended with IBV_WC_RETRY_EXC_ERR"),
        ({"size": 1 << 30}, "instead of"),
        ({"number": 7}, "instead of request 0"),
    ],
)
def test_what_follows_a_bad_completion_is_lost(
    exact: Any, play: Any, meeting: Any, change: dict[str, Any], says: str
) -> None:
    end = meeting.ends["ours"]
    end.post_receives([])
    end.done["receive"][0] = end.done["receive"][0]._replace(**change)
    end.post_receives = lambda slots: None
    with pytest.raises(exact.Wrong, match=says) as caught:
        meeting.carry(play)
    counts = caught.value.args[1]
    assert tally(counts)["lost"] >= len(play.receives("ours"))
    assert counts["ours", "read", "lost"] == counts["ours", "write", "lost"] == 0


def test_a_silent_end_is_given_up(exact: Any, play: Any, meeting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "PATIENCE", 0.0)
    end = meeting.ends["rxe"]
    meeting.ends["ours"].progress = lambda: 0
    meeting.ends["ours"].wait = lambda seconds: None
    end.poll = lambda queue: []
    with pytest.raises(exact.Wrong, match="no completion"):
        meeting.carry(play)
