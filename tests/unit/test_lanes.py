"""Parts of a run side by side: all of them, or none after the first failure."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from hwrx.errors import GuestError
from hwrx.runs import lanes
from hwrx.runs.lanes import Lanes, StoppedError


class Held:
    """Something to wait for, such as a guest."""

    def __init__(self) -> None:
        self.killed = threading.Event()

    def kill(self) -> None:
        self.killed.set()


def test_parts_are_carried_out_at_the_same_time() -> None:
    both = threading.Barrier(2)
    Lanes(together=True).carry_out([lambda: both.wait(60) and None] * 2)


def test_parts_that_are_not_together_follow_each_other_in_this_thread() -> None:
    seen: list[tuple[str, threading.Thread]] = []
    parts = [lambda name=name: seen.append((name, threading.current_thread())) for name in "ab"]  # type: ignore[misc]
    Lanes(together=False).carry_out(parts)
    assert seen == [("a", threading.main_thread()), ("b", threading.main_thread())]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_fails_ends_the_others_and_is_the_one_that_is_told(failing: int) -> None:
    together = Lanes(together=True)
    what, waiting = Held(), threading.Event()

    def fail() -> None:
        waiting.wait(60)
        raise GuestError("the guest is gone")

    def wait() -> None:
        with together.held(what):
            waiting.set()
            what.killed.wait(60)
            raise GuestError("what was waited for was killed")

    parts = [wait, wait]
    parts[failing] = fail
    with pytest.raises(GuestError, match="the guest is gone"):
        together.carry_out(parts)
    assert what.killed.is_set()
    assert together.stopped()


def test_an_interrupt_ends_all_parts_before_it_is_passed_on() -> None:
    together = Lanes(together=True)
    held = [Held(), Held()]
    ended = []
    main = threading.main_thread().ident
    assert main is not None
    # a real signal: it also wakes a thread that waits
    all_wait = threading.Barrier(2, lambda: signal.pthread_kill(main, signal.SIGINT))

    def wait(what: Held) -> None:
        with together.held(what):
            all_wait.wait(60)
            what.killed.wait(60)
        ended.append(what)

    with pytest.raises(KeyboardInterrupt):
        together.carry_out([lambda: wait(held[0]), lambda: wait(held[1])])
    assert len(ended) == 2


def test_who_waits_for_a_part_that_failed_is_released() -> None:
    together = Lanes(together=True)
    never = threading.Event()
    said: list[str] = []

    def fail() -> None:
        raise GuestError("it did not boot")

    def wait() -> None:
        try:
            together.wait_for(never)
        except StoppedError as error:
            said.append(str(error))
            raise

    with pytest.raises(GuestError, match="it did not boot"):
        together.carry_out([wait, fail])
    assert said == ["another part of the run has ended"]


def test_nothing_is_begun_when_all_is_to_end() -> None:
    together = Lanes(together=True)

    def fail() -> None:
        raise GuestError("no")

    with pytest.raises(GuestError):
        together.carry_out([fail, fail])
    with pytest.raises(StoppedError), together.held(Held()):
        pytest.fail("begun")


def test_guests_are_together_only_if_there_are_cpus_and_memory_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  9000 kB\nMemFree: 1 kB\nMemAvailable:    4096 kB\n")
    for cpus, memory, room in (({0, 3}, 2 << 20, True), ({0, 3}, (2 << 20) + 1, False), ({3}, 1, False)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cpus=cpus: cpus)
        assert lanes.has_room(2, memory, told) is room
