"""Counted twins: whose time each nanosecond of a trial's measured messages was, by the programs that count a flood.

A twin is the same trial again with those programs attached: tracepoints where a CPU's time passes from one actor to
another. They give every nanosecond of every CPU to one actor, in bins of time. The client's agent begins to count right
before its loop, and what is reported is cut to the two readings of the observing end's meter: so no warm-up, no
cool-down and nobody waiting for the first message is in it. The programs take time themselves, which is spread over
those that they watch: `busy` of the twin beside that of the untraced trial shows how much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import pyarrow as pa
from msgspec import structs

from hwrx import paths
from hwrx.control.messages import Counted, CountEnd, Counting, CountOpen, Setting
from hwrx.errors import HwrxError, MachineError, PeerError
from hwrx.paths import cputime
from hwrx.probes import account
from hwrx.probes.counters import SPARE
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment, wish_of
from hwrx.runs.schedule import Measured, Pair, holds_for_next
from hwrx.runs.schema import TEXT
from hwrx.runs.store import Writer
from hwrx.runs.trials import Trial
from hwrx.timelines import owed

ATTACH_WITHIN = 300.0  # seconds: an emulated machine verifies some thirty programs
TWIN = 1 << 29  # added to a trial's number, as traced.TWIN is
SLOWER = 4.0  # how much longer a counted loop may take than the plain one
TRIES = 4  # of a twin whose loop took longer than was counted: each time the programs count SLOWER times as long

UNKNOWN_AMONG_OTHERS = ("worker", "other", "housekeeping", "idle")

# by actor of account.ACTORS, which of these it counts to
ACTORS = ("user", "system", "softirq", "interrupt", "worker", "other", "housekeeping", "idle")
SUMS = dict(
    zip(
        account.ACTORS,
        ("idle", "user", "system", "user", "system", "other", "other", "worker", "softirq", "softirq", "interrupt",
         "worker", "housekeeping"),
        strict=True,
    )
)  # fmt: skip
TABLE = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("path", TEXT, nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("pattern", TEXT, nullable=False),
        pa.field("actor", TEXT, nullable=False),
        pa.field("ns", pa.int64(), nullable=False),
        pa.field("messages", pa.int32(), nullable=False),
    ]
)


# --- in the controller ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted_twins(
    experiment: Experiment,
    testbed: Testbed,
    writer: Writer,
    settings: Collection[Setting] | None = None,
) -> Iterator[Callable[..., None]]:
    """Yield what run.execute calls after each trial; leaving counts a twin of each setting's first, in new agents.

    Does nothing if the experiment asks for no tracing. Of a run that goes on after an interruption the trials that were
    measured before it and have no twin yet get theirs, too. `settings` are those that are to have a twin, all if it is
    None. What cannot be counted is said in the run, which goes on.
    """
    waiting: list[tuple[Trial, float]] = []

    def put_off(trial: Trial, seconds: float) -> None:
        shorter = owed.twin_of(trial, experiment.clock)
        waiting.append((shorter, seconds * shorter.setting.total / trial.setting.total))

    if experiment.trace:
        for trial, line, _ in owed.trials_without(writer, ["actors"], testbed):
            if owed.has_twin(trial, settings):
                cpu = line["extra"].get("cpu", {}).get(cputime.observing_end(trial.setting), {})
                put_off(trial, _loop_seconds(cpu, trial.setting))

    def after(pair: Pair, trial: Trial, measured: Measured, writer: Writer) -> None:
        if experiment.trace and owed.has_twin(trial, settings):
            put_off(trial, loop_seconds(measured, trial.setting))

    yield after
    if not waiting:
        return
    with Pair(testbed, wish_of(experiment)) as pair:
        try:
            lacks = attach_counter(pair)
        except PeerError:
            raise
        except HwrxError as error:
            writer.log(f"no time by actor: {error}")
            writer.note(counting={"problem": str(error)})
            return
        failed: dict[str, str] = {}
        writer.note(counting={"lacks": lacks, "failed": failed})
        trials = [trial for trial, _ in waiting]
        for index, (trial, seconds) in enumerate(waiting):
            hold = holds_for_next(trials, index)
            try:
                found, measured = run_twin(pair, trial.number, trial.setting, seconds, alone=testbed.alone, hold=hold)
            except PeerError:
                raise
            except HwrxError as error:
                writer.log(f"trial {trial.number} {trial.label}: counted twin failed: {error}")
                failed[str(trial.number)] = str(error)
                writer.note(counting={"lacks": lacks, "failed": failed})
                continue
            writer.add_table("actors", twin_rows(trial, found, measured))


def loop_seconds(measured: Measured, setting: Setting) -> float:
    """About how long the whole loop of a trial took; 0 if its observer saw too little."""
    end = measured.server if cputime.observing_end(setting) == "server" else measured.client
    return _loop_seconds(end.cpu, setting)


def _loop_seconds(cpu: Mapping[str, int], setting: Setting) -> float:
    """The same of what the observing end's meter found, in ns; it may have found nothing."""
    return cpu["elapsed"] / 1e9 * setting.total / setting.messages if cpu else 0.0


def attach_counter(pair: Pair) -> list[str]:
    """Attach the programs in the client's agent, MachineError if it cannot; return what this kernel does not show."""
    return pair.peers["client"].ask(CountOpen(), Counting, ATTACH_WITHIN).lacks


def run_twin(
    pair: Pair, number: int, setting: Setting, seconds: float, *, alone: bool, hold: bool = False
) -> tuple[dict[str, int], Measured]:
    """Run a trial while the programs count, which are attached: ns by actor of its measured messages, and the trial.

    `seconds`: that the loop took without them. `alone`: whether nobody else uses the machine; if not, only what ran on
    the CPUs of both ends is told, without others and idle time. A loop that takes longer than was counted is run again.
    MachineError if the interval was not seen.
    """
    if setting.senders > 1:
        raise MachineError("several senders are measured from different messages on", remedy="measure one sender")
    if setting.pattern == "pingpong":
        # exchanges that are only to be checked, and the filling and comparing of bytes, would be among the counted
        setting = structs.replace(setting, check_every=0)
    for slower in (SLOWER**power for power in range(1, TRIES + 1)):
        measured = pair.measure(TWIN + number, setting, counted=slower * seconds + SPARE, hold=hold)
        ends = {"client": measured.client, "server": measured.server}
        end = ends[cputime.observing_end(setting)]
        start, stop = end.between
        if setting.settle:  # not the sender's sleep
            start = measured.client.between[0]
        if not 0 < start < stop or measured.client.boot != measured.server.boot:
            raise MachineError(
                "of the measured messages the end that observes them did not see the last, or both ends are on two "
                "kernels",
                remedy="measure more messages, and both ends on this machine",
            )
        try:
            ns = pair.peers["client"].ask(CountEnd(start=start, stop=stop), Counted).ns
            break
        except MachineError:  # others came to the machine after the plain trial
            if slower == SLOWER**TRIES:
                raise
    ran_on = {done.placed.ran_on for done in ends.values() if done.placed is not None}
    cpus = set(range(len(ns))) if alone else ran_on
    resting = setting.rest * (end.cpu["messages"] - end.cpu["beside"]) if end is measured.client else 0
    found = by_actor([ns[cpu] for cpu in sorted(cpus)], setting.messages / end.cpu["messages"], resting)
    if not alone:
        found = {actor: value for actor, value in found.items() if actor not in UNKNOWN_AMONG_OTHERS}
    return found, measured


def by_actor(ns: Sequence[Sequence[int]], share: float = 1.0, resting: int = 0) -> dict[str, int]:
    """Add up CPUs and both ends: `share` of the ns of each of ACTORS. A client's `resting` is no part of a message."""
    found = dict.fromkeys(ACTORS, 0)
    for cpu in ns:
        for name, value in zip(account.ACTORS, cpu, strict=True):
            found[SUMS[name]] += value
    found["user"] -= resting
    return {actor: round(value * share) for actor, value in found.items()}


def twin_rows(trial: Trial, found: Mapping[str, int], measured: Measured) -> pa.Table:
    """Return a twin's rows of the table `actors`. Of a round trip both messages count, as in the report."""
    setting = trial.setting
    both = setting.pattern == "paced" or (setting.pattern == "pingpong" and not paths.find_path(setting.path).full_rtt)
    same = {"trial": trial.number, "path": setting.path, "size": setting.size, "pattern": setting.pattern}
    same["messages"] = len(measured.ns) * (2 if both else 1)
    return pa.Table.from_pylist([{**same, "actor": actor, "ns": ns} for actor, ns in found.items()], schema=TABLE)
