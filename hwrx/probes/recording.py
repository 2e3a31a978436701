"""A recording: the programs attached, the ring drained by a thread, everything detached at the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import stat
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hwrx.errors import MachineError
from hwrx.host.outside import clean_name
from hwrx.probes.attaching import Found, Prober

DRAIN_EVERY = 0.02  # seconds; a ring of 16 MiB holds some 290,000 events
CHUNK = 1 << 16  # events
TIMED = 8  # of so many messages one goes into the histograms, where there are no timelines; all are counted


@dataclass
class Recording:
    """What was recorded between `begin` and `end`.

    `events`: array of tracer.EVENT in the order of the ring (which is that of time, CPU by CPU). `totals`: one TOTALS
    for each stage number, over all messages, sampled or not. `lost`: events for which the ring had no room. `missed`:
    calls for which the kernel did not run a program because it was running on that CPU already, by program. `found`:
    what became of each stage.
    """

    events: npt.NDArray[Any]
    totals: npt.NDArray[Any]
    lost: int
    missed: dict[str, int]
    found: list[Found]


class Ledger:
    """The tracer of one machine. A context manager; only one may be active at a time.

    `ways`, `namespaces`, `histograms`: as for Prober.
    """

    def __init__(
        self,
        ways: Iterable[str] | None = None,
        *,
        namespaces: Sequence[str] = (),
        ring_bytes: int = 1 << 24,
        histograms: bool = False,
    ) -> None:
        self._lock: int | None = None
        self._prober = Prober(ways, namespaces=namespaces, ring_bytes=ring_bytes, histograms=histograms)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._chunks: list[npt.NDArray[Any]] = []
        self._lost_before = 0
        self._missed_before: dict[str, int] = {}
        self.found: list[Found] = []

    def __enter__(self) -> Self:
        self._lock = _only_one()
        try:
            self.found = self._prober.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach everything; harmless when called twice."""
        self._join()
        self._prober.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin(self, *, sample_every: int = 1, size: int = 0, trial: int | None = None) -> None:
        """Start anew: each `sample_every`-th message gets a timeline, and all go into the totals and histograms.

        0: no timelines. To disturb least, the histograms are then of each `TIMED`-th message; counts and bytes are of
        all, but for the waking of the reader (sched_waking, sched_switch), which is followed for the timed ones only.
        """
        tracer = self._prober.tracer
        if tracer is None:
            raise MachineError("the tracer is not attached", remedy="enter the Ledger first")
        self._join()
        self._chunks = []
        tracer.clear()
        self._lost_before = tracer.lost()
        self._missed_before = tracer.missed()
        tracer.settings_are(sample_every=sample_every, size=size, trial=trial, time_every=1 if sample_every else TIMED)
        if sample_every:
            self._stop.clear()
            self._thread = threading.Thread(target=self._drain_until_stopped, daemon=True, name="ledger")
            self._thread.start()

    def end(self) -> Recording:
        """Stop recording and return what there is; the programs stay attached, idle."""
        tracer = self._prober.tracer
        if tracer is None:
            raise MachineError("the tracer is not attached", remedy="enter the Ledger first")
        # totals first: after this no message of ours counts any more
        totals = tracer.totals()
        self._join()
        tracer.settings_are(sample_every=0, trial=0xFFFFFFFF)
        self._drain()
        empty = _events(0)
        events = np.concatenate(self._chunks) if self._chunks else empty
        self._chunks = []
        missed = {name: count - self._missed_before.get(name, 0) for name, count in tracer.missed().items()}
        missed = {name: count for name, count in missed.items() if count}
        return Recording(events, totals, tracer.lost() - self._lost_before, missed, self.found)

    def _join(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _drain_until_stopped(self) -> None:
        while not self._stop.wait(DRAIN_EVERY):
            self._drain()

    def _drain(self) -> None:
        tracer = self._prober.tracer
        assert tracer is not None
        while True:
            chunk = _events(CHUNK)
            count = tracer.drain(chunk.view(np.uint8))
            if count:
                self._chunks.append(chunk[:count].copy() if count < CHUNK else chunk)
            if count < CHUNK:
                return


def _events(count: int) -> npt.NDArray[Any]:
    from cython_ext.bpf.tracer import EVENT

    return np.empty(count, dtype=EVENT)


def _only_one() -> int:
    """Lock out a second tracer: each would slow the other. The kernel unlocks when this process ends."""
    folder = pathlib.Path("/run/lock")
    path = (folder if folder.is_dir() else pathlib.Path(tempfile.gettempdir())) / "hwrx-trace.lock"
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(OSError):
            owner = clean_name(os.read(descriptor, 20).strip())
        os.close(descriptor)
        raise MachineError(
            f"another hwrx is tracing on this machine (process {owner or 'unknown'})",
            remedy="wait for it: two tracers would measure each other",
        ) from None
    os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)  # as long as any that stood there
    return descriptor


def _open_lock(path: pathlib.Path) -> int:
    """Open a lock file in a folder that everybody writes to; MachineError if it may be another file under its name."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineError(
            f"the lock {path} cannot be opened: {error.strerror}",
            remedy=f"see whose it is: ls -l {path}",
        ) from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in (0, os.geteuid()):
        return descriptor
    os.close(descriptor)
    raise MachineError(
        f"the lock {path} is not a file of our own: user {found.st_uid} made it, or it has another name, too",
        remedy=f"rm {path}",
    )
