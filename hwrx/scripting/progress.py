"""How far a run is, as one kind of call: for a program that wants to tell somebody."""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec import Struct

from hwrx.runs.lanes import LaneCounts


class Step(Struct, frozen=True, kw_only=True):
    """What a run is doing. `total` is 0 before the first trial; then `done` of so many trials have ended.

    `stage` is a word ("boot", "manifest", "trial"), `text` what is being done.
    """

    stage: str
    text: str
    done: int = 0
    total: int = 0


Listener = Callable[[Step], object]


class Listening:
    """Tells a listener what a run tells of its progress; see `hwrx.campaign.measuring.Progress`.

    The listener is called by one thread at a time, now and then by another one than the caller's.
    """

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self._counts = LaneCounts()
        self._lock = threading.Lock()

    def stage(self, stage: str, text: str) -> None:
        """Tell what is being done before the first trial."""
        self._tell(Step(stage=stage, text=text))

    def expect(self, lane: str, total: int) -> None:
        """Hear how many trials a lane will have."""
        with self._lock:
            self._counts.expect(lane, total)

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Tell which trial runs; counts are the sums of all lanes."""
        with self._lock:
            done, total = self._counts.count(lane, done, total)
            self._tell_locked(Step(stage="trial", text=label, done=done, total=total))

    def _tell(self, step: Step) -> None:
        with self._lock:
            self._tell_locked(step)

    def _tell_locked(self, step: Step) -> None:
        if self._listener is not None:
            self._listener(step)
