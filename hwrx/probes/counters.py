"""The agent's side of counted twins: the programs that count processor time by actor, from one trial to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwrx.control.messages import Counted, CountEnd, Counting, CountOpen, FromAgent, ToCounter
from hwrx.errors import MachineError, PeerError
from hwrx.probes.account import Int64s

if TYPE_CHECKING:
    from hwrx.probes.counting import Counter

FINEST = 12  # as a shift: a bin of 4 µs
SPARE = 0.05  # seconds that are counted beyond what a loop may take


class Counters:
    """The programs, attached by CountOpen, and what the last trial that they counted brought."""

    def __init__(self) -> None:
        self._counter: Counter | None = None

    def answer(self, message: ToCounter) -> FromAgent:
        """Do what the message asks."""
        match message:
            case CountOpen():
                from hwrx.probes.counting import Counter  # not before it is asked for: it needs libbpf

                self.close()
                self._counter = Counter(SPARE)
                return Counting(lacks=self._counter.lacks)
            case CountEnd():
                if self._counter is None:
                    raise PeerError("asked what was counted before anything was")
                counts = self._counter.end()
                start, stop = message.start - counts.start, message.stop - counts.start
                return Counted(cut_interval(counts.time, counts.width, start, stop).tolist())

    def begin(self, seconds: float) -> None:
        """Count from now on, for about so long."""
        if self._counter is not None:
            self._counter.reach(seconds, FINEST)
            self._counter.begin()

    def close(self) -> None:
        """Detach everything; harmless when nothing is attached."""
        if self._counter is not None:
            self._counter.__exit__()
            self._counter = None


def cut_interval(time: Int64s, width: int, start: int, stop: int) -> Int64s:
    """Return each CPU's ns by actor between two times: (CPUs, actors), each CPU's sum `stop - start`.

    `time` is (CPUs, bins, actors) in ns, a bin `width` ns, and the times are ns since the first bin began. Of the bins
    that the interval begins or ends in, each actor has its share of what lies within. MachineError if not all of the
    interval was counted.
    """
    if not 0 <= start < stop <= time.shape[1] * width:
        raise MachineError(
            f"only {time.shape[1] * width / 1e9:.3f} s were counted, and not all measured messages lie in them",
            remedy="measure fewer messages",
        )
    begins = np.arange(time.shape[1]) * width
    within = np.clip(np.minimum(stop, begins + width) - np.maximum(start, begins), 0, width)
    found = np.einsum("cba,b->ca", time, within / width)
    rounded = np.floor(found).astype(np.int64)
    # what rounding took goes to whoever has most
    rounded[np.arange(len(rounded)), rounded.argmax(axis=1)] += stop - start - rounded.sum(axis=1)
    return np.asarray(rounded)
