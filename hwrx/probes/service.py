"""The agent's side of tracing: holds the Ledger, answers the controller."""

from __future__ import annotations

import contextlib
import time

from hwrx.control.messages import (
    Chunk,
    FetchEvents,
    FromAgent,
    Ready,
    ToTracer,
    TraceBegin,
    TraceClose,
    Traced,
    TraceEnd,
    TraceOpen,
    Tracing,
)
from hwrx.errors import PeerError
from hwrx.probes.recording import Ledger, Recording


class Service:
    """One ledger, opened, then begun and ended once a trial."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._ledger: Ledger | None = None
        self._recording: Recording | None = None

    def answer(self, message: ToTracer) -> FromAgent:
        """Do what the message asks."""
        match message:
            case TraceOpen():
                return self._open(message)
            case TraceBegin():
                self._recording = None
                self._opened().begin(sample_every=message.sample_every, size=message.size, trial=message.trial)
                return Ready()
            case TraceEnd():
                self._recording = recording = self._opened().end()
                return Traced(
                    events=len(recording.events),
                    lost=recording.lost,
                    missed=recording.missed,
                    totals=recording.totals.tobytes(),
                )
            case TraceClose():
                self.close()
                return Ready()
            case FetchEvents():
                if self._recording is None:
                    raise PeerError("events were asked for before anything was recorded")
                events = self._recording.events[message.first : message.first + message.count]
                return Chunk(first=message.first, data=events.tobytes())

    def _open(self, message: TraceOpen) -> Tracing:
        self.close()
        before = time.monotonic()
        self._ledger = self._stack.enter_context(Ledger(message.ways, namespaces=message.namespaces))
        found = self._ledger.found
        return Tracing(
            available={f.stage.name: f"{f.probe.kind} {f.probe.target}" for f in found if f.probe is not None},
            unavailable={f.stage.name: f.reason for f in found if f.probe is None},
            seconds=time.monotonic() - before,
        )

    def _opened(self) -> Ledger:
        if self._ledger is None:
            raise PeerError("asked to record before the tracer was opened")
        return self._ledger

    def close(self) -> None:
        """Detach everything; harmless when nothing is attached."""
        self._stack.close()
        self._ledger = None
        self._recording = None
