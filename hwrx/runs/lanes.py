"""Parts of a run that go on side by side: each in a thread of its own, and all end if one cannot go on.

A guest that counts instructions has one CPU, and its figures are the same whatever else the machine does. So the two
guests of a run that prices copies both ways take no more time than one of them, if the machine has a CPU for each.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hwrx.errors import HwrxError
from hwrx.host.interruption import hold_signals

WAKES_EVERY = 0.2  # seconds: how soon somebody who waits for another part sees that it has failed


class Killable(Protocol):
    """What a part may be waiting for, such as a guest."""

    def kill(self) -> None:
        """End it at once, from any thread; whoever waits for it gets an error."""


class StoppedError(HwrxError):
    """This part ended because another one had failed, or the user wants an end: nobody is told."""


class Lanes:
    """Parts that are carried out at the same time, or one after the other.

    :param together: whether at the same time; the order is then nobody's promise.
    """

    def __init__(self, *, together: bool) -> None:
        self.together = together
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._held: list[Killable] = []

    def carry_out(self, parts: Sequence[Callable[[], None]]) -> None:
        """Carry all parts out, and return when all have ended.

        :raises BaseException: what ended the first part that failed, or the user's interrupt; no part is left then.
        """
        if not self.together or len(parts) == 1:
            for part in parts:
                part()
            return
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threads = [threading.Thread(target=_carried_out, args=(part, ended), name="lane") for part in parts]
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                error = ended.get()  # a signal interrupts it
                if error is not None:
                    raise error
        except BaseException:
            self._end_all()
            raise
        finally:
            with hold_signals():
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()

    @contextlib.contextmanager
    def held(self, what: Killable) -> Iterator[None]:
        """While in this context, what a part waits for is killed as soon as another part has failed."""
        with self._lock:
            self._held.append(what)
        try:
            self.check_going()
            yield
        finally:
            with self._lock:
                self._held.remove(what)

    def check_going(self) -> None:
        """Raise StoppedError if the parts are to end."""
        if self.stopped():
            raise StoppedError("another part of the run has ended")

    def stopped(self) -> bool:
        """Whether the parts are to end."""
        return self._stop.is_set()

    def wait_for(self, event: threading.Event) -> None:
        """Wait for what another part does; StoppedError if it will not."""
        while not event.wait(WAKES_EVERY):
            self.check_going()

    def _end_all(self) -> None:
        with self._lock:
            self._stop.set()
            for what in self._held:
                what.kill()


class LaneCounts:
    """How many trials have ended, of how many, in all lanes together. Its lock is whoever's that has it."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def expect(self, lane: str, total: int) -> None:
        """Note how many trials a lane will have."""
        self._counts[lane] = (0, total)

    def count(self, lane: str, done: int, total: int) -> tuple[int, int]:
        """Note how far a lane is, and return how far all are: trials done, and in all."""
        self._counts[lane] = (done, total)
        done, total = (sum(counts) for counts in zip(*self._counts.values(), strict=True))
        return done, total


def _carried_out(part: Callable[[], None], ended: queue.SimpleQueue[BaseException | None]) -> None:
    try:
        part()
    except BaseException as error:  # it is raised again where the parts are waited for
        ended.put(error)
    else:
        ended.put(None)


def has_room(guests: int, memory: int, meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Whether this machine has a CPU, and `memory` bytes, for each of several guests of one CPU."""
    return len(os.sched_getaffinity(0)) >= guests and available_memory(meminfo) >= guests * memory


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the bytes that programs can still have on this machine; 0 if the kernel does not say."""
    available = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
    return 0 if available is None else int(available[1]) << 10
