"""Tracing in runs: each trial has a traced twin, and what tracing costs is the pair's difference.

Attached programs cost time even where they record nothing, so they are attached for the twins only: for each by itself,
right after its trial, where that takes a fraction of a second; and in a guest, where it takes many, once, for all twins
after all trials.

The samples of a run are those of the untraced trials. Of the twins the run directory gets `stages.parquet` (the
timelines of sampled messages, one row a stamp), `copies.parquet` (the copy ledger) and `tracing.parquet` (how complete
the timelines are, and p50 and p99 with tracing off and on).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from hwrx import paths as delivery
from hwrx import stages
from hwrx.control.messages import (
    Array,
    Chunk,
    FetchEvents,
    Ready,
    Role,
    Setting,
    TraceBegin,
    TraceClose,
    Traced,
    TraceEnd,
    TraceOpen,
    Tracing,
)
from hwrx.control.peers import Peer
from hwrx.errors import HwrxError, MachineError, PeerError
from hwrx.machine.placement import Wish
from hwrx.runs import collecting, schedule
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment, wish_of
from hwrx.runs.schedule import Measured, Pair
from hwrx.runs.store import Writer
from hwrx.runs.testbed import GuestBed
from hwrx.runs.trials import Trial
from hwrx.stages import Stage
from hwrx.stages.model import ENDPOINT
from hwrx.timelines import copies, join, owed, tables
from hwrx.timelines.join import Ends, Timelines

ATTACH_WITHIN = 300.0  # seconds: an emulated machine verifies some seventy programs
TIMELINES = 1000  # messages of a trial that get one: enough for a p99
EVENTS_A_CHUNK = 8000
TWIN = 1 << 30  # added to a trial's number: no straggler of the one is taken for the other's

# the stages inside of an endpoint, and what its array of stamps is called
OWN: dict[str, Array] = {
    "descriptor seen": "seen",
    "parsed": "parsed",
    "looked up": "looked_up",
    "headers parsed": "parsed",
    "ICRC verified": "verified",
    "in order": "looked_up",
}


@dataclass
class Directions:
    """One traced trial: its timelines by direction, and its ledger."""

    timelines: dict[str, Timelines]
    ledger: copies.Ledger
    traced: Traced
    measured: Measured


class RunTracer:
    """Traces trials of a testbed. A context manager; leaving it ends the agent, and with it everything is detached.

    `paths`: those to be traced; MachineError where the kernel stamps no stage of any.
    """

    def __init__(self, testbed: Testbed, paths: Sequence[str]) -> None:
        self._paths = [path for path in paths if len(delivery.stage_chain(path)) > 2]
        if not self._paths:
            raise MachineError(
                f"no stage of {', '.join(paths)} is stamped by anybody",
                remedy="trace another path; hwrx stages PATH lists what is stamped",
            )
        self._probed = [path for path in self._paths if delivery.probed_in_kernel(path)]
        self._testbed = testbed
        self._stack = contextlib.ExitStack()
        self._peer: Peer
        self._namespaces: list[str] = []
        self.tracing: Tracing | None = None

    def __enter__(self) -> Self:
        self._peer, self._namespaces = self._testbed.start_tracer()
        self._stack.enter_context(self._peer)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def attach(self) -> None:
        """Attach the programs; MachineError where the kernel lets none be."""
        if not self._probed:
            self.tracing = Tracing(available={}, unavailable={}, seconds=0.0)  # the endpoints stamp all there is
            return
        message = TraceOpen(ways=sorted({delivery.way_of(path) for path in self._probed}), namespaces=self._namespaces)
        self.tracing = self._peer.ask(message, Tracing, ATTACH_WITHIN)

    def detach(self) -> None:
        """Detach them."""
        if self._probed:
            self._peer.ask(TraceClose(), Ready, ATTACH_WITHIN)

    def traces(self, path: str) -> bool:
        """Whether the path is one that is traced."""
        return path in self._paths

    @property
    def available(self) -> list[Stage]:
        """The stages that have a probe here."""
        assert self.tracing is not None
        return [
            stage for stage in stages.STAGES if stage.name in self.tracing.available or stage.probes[:1] == ENDPOINT
        ]

    def trace(
        self,
        pair: Pair,
        number: int,
        setting: Setting,
        timelines: int = TIMELINES,
        inspect: Callable[[str, Mapping[Role, Peer]], None] = lambda when, peers: None,
        *,
        hold: bool = False,
    ) -> Directions:
        """Run a trial with tracing on. `inspect` is called "before" and "after" the loops, with both agents.

        `hold`: see Prepare.
        """
        path = delivery.find_path(setting.path)
        every = 1 if path.full_rtt else max(1, setting.messages // timelines)
        stamped = path.way in stages.FRAMES
        wanted = ("posted", "delivered", *(OWN.values() if stamped else ()))
        arrays: dict[tuple[Role, Array], npt.NDArray[np.int64]] = {}

        def look(peers: Mapping[Role, Peer]) -> None:
            inspect("after", peers)
            for role, peer in peers.items():
                for array in wanted:
                    arrays[role, array] = collecting.fetch_array(peer, array, setting.messages)

        if setting.pattern == "pingpong":
            # messages that are only to be checked would be in what the endpoints count, and not among those traced
            setting = msgspec.structs.replace(setting, check_every=0)
        self.begin(number, setting.size, every)
        try:
            measured = pair.measure(
                number, setting, look, lambda peers: inspect("before", peers), stamps=stamped, stamped=True, hold=hold
            )
        finally:
            traced, events = self.end()
        totals = np.frombuffer(traced.totals, dtype=_types()[1])
        both = 1 if path.full_rtt or setting.pattern == "stream" else 2
        delivered = measured.tally["delivered"] * setting.size * both
        reckon = copies.reckon_frames if stamped else copies.reckon_copies
        ledger = reckon(setting.path, totals, delivered, available=self.available, tally=measured.tally)
        available = [stage for stage in self.available if stage.name not in excluded_reason(setting)]
        found = {
            direction: join.join_events(
                events, ends, setting.path, available=available, modulo=_modulo(setting, events), every=every
            )
            for direction, ends in _ends(setting, arrays).items()
        }
        return Directions(found, ledger, traced, measured)

    def begin(self, number: int, size: int, every: int = 1) -> None:
        """Record the messages of one trial, of `size` bytes; each `every`-th gets a timeline."""
        if self._probed:
            self._peer.ask(TraceBegin(trial=number, size=size, sample_every=every), Ready)

    def end(self) -> tuple[Traced, npt.NDArray[Any]]:
        """Stop recording; return what was counted, and the events."""
        if not self._probed:
            return Traced(0, 0, {}, np.zeros(stages.COUNT, dtype=_types()[1]).tobytes()), np.zeros(0, _types()[0])
        traced = self._peer.ask(TraceEnd(), Traced)
        return traced, self._events(traced.events)

    def _events(self, count: int) -> npt.NDArray[Any]:
        event = _types()[0]
        parts = []
        for first in range(0, count, EVENTS_A_CHUNK):
            chunk = self._peer.ask(FetchEvents(first=first, count=min(EVENTS_A_CHUNK, count - first)), Chunk)
            if chunk.first != first or len(chunk.data) % event.itemsize:
                raise PeerError(f"peer {self._peer.name} sent {len(chunk.data)} bytes, which are no events")
            parts.append(np.frombuffer(chunk.data, dtype=event))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=event)

    def twin(self, pair: Pair, trial: Trial, off: npt.NDArray[np.int64], writer: Writer, *, hold: bool = False) -> None:
        """Repeat a trial with tracing on, and write what it brought. `off`: the nanoseconds of the untraced one.

        `hold`: see Prepare.
        """
        try:
            traced = self.trace(pair, TWIN + trial.number, trial.setting, hold=hold)
        except PeerError:
            raise
        except HwrxError as error:
            writer.log(f"trial {trial.number} {trial.label}: traced twin failed: {error}")
            return
        for direction, timelines in traced.timelines.items():
            writer.add_table("stages", tables.stage_rows(trial, direction, timelines))
            pair_ns = (off, traced.measured.ns)
            row = tables.tracing_row(trial, direction, timelines, traced.traced, traced.ledger, pair_ns)
            writer.add_table("tracing", row)
        writer.add_table("copies", tables.copy_rows(trial, traced.ledger))

    def about(self) -> dict[str, Any]:
        """What the manifest says of tracing."""
        assert self.tracing is not None
        return {
            "attach_seconds": round(self.tracing.seconds, 3),
            "available": self.tracing.available,
            "unavailable": self.tracing.unavailable,
        }


class Twins:
    """The twins of a run: `after` goes to run.execute as its `twin`, `rest` runs those that were put off.

    Where tracing is impossible the run goes on without it, and says so in its log and manifest.
    """

    def __init__(
        self, tracer: RunTracer, testbed: Testbed, writer: Writer, *, put_off: bool, wish: Wish, clock: str = "wall"
    ) -> None:
        self._tracer = tracer
        self._testbed = testbed
        self._writer = writer
        self._waiting: list[tuple[Trial, npt.NDArray[np.int64]]] = []
        self._put_off = put_off
        self._wish = wish
        self._clock = clock
        self._given_up = False

    def after(self, pair: Pair, trial: Trial, measured: Measured, writer: Writer) -> None:
        """Trace the twin of a trial that was just measured, now or later."""
        if self._given_up or not self._tracer.traces(trial.setting.path):
            return
        if self._put_off:
            self.put_off(trial, measured.ns)
            return
        with self._attached():
            if not self._given_up:
                self._tracer.twin(pair, trial, measured.ns, writer)

    def put_off(self, trial: Trial, ns: npt.NDArray[np.int64]) -> None:
        """Leave the twin of a trial, whose samples were `ns`, to `rest`."""
        if self._tracer.traces(trial.setting.path):
            self._waiting.append((owed.twin_of(trial, self._clock), ns))

    def rest(self) -> None:
        """Trace all twins that were put off."""
        if not self._waiting:
            return
        with self._attached():
            if not self._given_up:
                with Pair(self._testbed, self._wish) as pair:
                    trials = [trial for trial, _ in self._waiting]
                    for index, (trial, off) in enumerate(self._waiting):
                        if index and trial.repeat != self._waiting[index - 1][0].repeat:
                            pair.renew()
                        hold = schedule.holds_for_next(trials, index)
                        self._tracer.twin(pair, trial, off, self._writer, hold=hold)
        self._waiting = []

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        first = self._tracer.tracing is None
        try:
            self._tracer.attach()
        except PeerError:
            raise
        except HwrxError as error:
            self._given_up = True
            no_tracing(self._writer, error)
            yield
            return
        # of paths that stamp all stages themselves there is nothing to tell that another guest's tracer has not told
        if first and (self._tracer.about()["available"] or "tracing" not in self._writer.manifest):
            self._writer.note(tracing=self._tracer.about())
        yield
        if not self._put_off:
            # in a guest that takes seconds, and the agent that holds them ends with the twins
            self._tracer.detach()


def no_tracing(writer: Writer, error: HwrxError) -> None:
    """Say in a run why it has no timelines."""
    writer.log(f"no tracing: {error}")
    writer.note(tracing={"problem": str(error)})


@contextlib.contextmanager
def traced_twins(
    experiment: Experiment, testbed: Testbed, writer: Writer, settings: Collection[Setting] | None = None
) -> Iterator[Callable[..., None]]:
    """Yield what run.execute calls after each trial; leaving runs the twins that were put off.

    Does nothing if the experiment asks for no tracing. `settings` are those that are to have a twin, all if it is None.
    """
    theirs = set(experiment.paths) if settings is None else {setting.path for setting in settings}
    chosen = [path for path in experiment.paths if path in theirs]
    with contextlib.ExitStack() as stack:
        try:
            tracer = stack.enter_context(RunTracer(testbed, chosen)) if experiment.trace and chosen else None
        except HwrxError as error:
            no_tracing(writer, error)
            tracer = None
        if tracer is None:
            yield lambda pair, trial, measured, writer: None
            return
        kept = Twins(
            tracer,
            testbed,
            writer,
            put_off=isinstance(testbed, GuestBed),
            wish=wish_of(experiment),
            clock=experiment.clock,
        )
        # what is counted repeats to the digit: one twin of a setting shows all that more of them would
        once = experiment.clock == "icount"
        for trial, _, run_so_far in owed.trials_without(writer, ["stages", "copies"], testbed):
            if owed.has_twin(trial, settings, once=once):
                kept.put_off(trial, run_so_far.trial_samples(trial.number).ns)
        yield (
            lambda pair, trial, measured, writer: (
                kept.after(pair, trial, measured, writer) if owed.has_twin(trial, settings, once=once) else None
            )
        )
        kept.rest()


def _types() -> tuple[np.dtype[Any], np.dtype[Any]]:
    try:
        from cython_ext.bpf.tracer import EVENT, TOTALS
    except ImportError as error:
        raise MachineError(
            f"hwrx was built without libbpf, so it cannot read what a tracer sends ({error})",
            remedy="apt install libbpf-dev, and install hwrx again",
        ) from None
    return EVENT, TOTALS


def excluded_reason(setting: Setting) -> set[str]:
    """Name the stages that a setting's messages do not pass, though others of the path do."""
    gone = set()
    if setting.zerocopy_send:
        gone.add("ip_generic_getfrag")
    if setting.zerocopy_receive:
        gone |= {"copied to the user", "sys_exit recv"}
    return gone


def _modulo(setting: Setting, events: npt.NDArray[Any]) -> int:
    """READ's payloads were written beforehand, a buffer each: what they carry counts the buffers."""
    return int(events["sequence"].max()) + 1 if delivery.find_path(setting.path).full_rtt and len(events) else 0


def _ends(setting: Setting, arrays: Mapping[tuple[Role, Array], npt.NDArray[np.int64]]) -> dict[str, Ends]:
    """Return the user's stamps of each direction that the trial's pattern has."""
    first = setting.warmup
    if delivery.find_path(setting.path).full_rtt:
        # the client asks and receives; its `posted` is the request's
        return {"there": Ends(arrays["client", "posted"], arrays["client", "delivered"], first)}
    there = Ends(arrays["client", "posted"], arrays["server", "delivered"], first, _own(arrays, "server"))
    if setting.pattern == "stream":
        return {"there": there}
    # the server's answer is posted as soon as the message is seen
    back = Ends(arrays["server", "delivered"], arrays["client", "delivered"], first, _own(arrays, "client"))
    return {"there": there, "back": back}


def _own(arrays: Mapping[tuple[Role, Array], npt.NDArray[np.int64]], role: Role) -> dict[str, npt.NDArray[np.int64]]:
    """Return what the receiving endpoint stamped itself, by stage."""
    return {stage: arrays[role, array] for stage, array in OWN.items() if (role, array) in arrays}
