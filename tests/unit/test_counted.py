"""Time by actor of the counted twins: what is cut to the measured messages, what is added up, what is shown of it."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any, ClassVar, cast

import made_runs
import numpy as np
import pytest

import hwrx
from hwrx.control.messages import Counted, Done, Setting
from hwrx.errors import MachineError
from hwrx.probes import account, counters
from hwrx.report import actors
from hwrx.runs import beds, experiment, schema, store
from hwrx.runs.schedule import Measured, Pair
from hwrx.timelines import counted, owed

WIDTH = 1000
IDLE, SENDER, SYSTEM = 0, 1, 4
DONE = Done(tally={}, ended="complete")


def time(*bins: dict[int, int]) -> np.ndarray[Any, Any]:
    """One CPU's bins, each filled up with idle time."""
    found = np.zeros((1, len(bins), len(account.ACTORS)), np.int64)
    for number, each in enumerate(bins):
        for actor, ns in each.items():
            found[0, number, actor] = ns
        found[0, number, IDLE] += WIDTH - sum(each.values())
    return found


def test_what_lies_before_and_behind_the_measured_messages_is_cut_off() -> None:
    bins = time({SENDER: 1000}, {SENDER: 400}, {SYSTEM: 1000}, {SENDER: 1000})
    (found,) = counters.cut_interval(bins, WIDTH, 1000, 3000)
    assert (found[SENDER], found[SYSTEM], found[IDLE]) == (400, 1000, 600)
    # of a bin that lies half in it everybody has half
    (found,) = counters.cut_interval(bins, WIDTH, 1500, 2250)
    assert (found[SENDER], found[SYSTEM], found[IDLE]) == (200, 250, 300)


def test_all_actors_together_have_all_of_the_time() -> None:
    draw = np.random.default_rng(1)
    cuts = np.sort(draw.integers(0, WIDTH + 1, (2, 50, len(account.ACTORS) - 1)), axis=2)
    bins = np.diff(cuts, axis=2, prepend=0, append=WIDTH)
    for start, stop in draw.integers(0, 50 * WIDTH, (100, 2)):
        if start < stop:
            found = counters.cut_interval(bins, WIDTH, int(start), int(stop))
            assert found.sum(axis=1).tolist() == [stop - start] * 2
            assert (found >= 0).all()


@pytest.mark.parametrize(("start", "stop"), [(-1, 500), (500, 2001), (700, 700)])
def test_messages_that_were_not_counted_are_no_figure(start: int, stop: int) -> None:
    with pytest.raises(MachineError, match="not all measured messages lie in them"):
        counters.cut_interval(time({}, {}), WIDTH, start, stop)


def test_both_ends_and_all_cpus_are_added_up_and_resting_is_no_work() -> None:
    each = list(range(1, len(account.ACTORS) + 1))
    found = counted.by_actor([each, each])
    assert found == {
        "user": 2 * (2 + 4), "system": 2 * (3 + 5), "softirq": 2 * (9 + 10), "interrupt": 2 * 11,
        "worker": 2 * (8 + 12), "other": 2 * (6 + 7), "housekeeping": 2 * 13, "idle": 2,
    }  # fmt: skip
    assert sum(found.values()) == 2 * sum(each)
    assert counted.by_actor([each], resting=4)["user"] == 2
    assert counted.by_actor([each], share=0.5)["worker"] == 10
    assert {counted.SUMS[name] for name in account.ACTORS} == set(counted.ACTORS)


def test_no_figure_without_both_readings_nor_of_several_senders() -> None:
    done = Done(tally={}, ended="complete", boot="one")
    measured = Measured(np.arange(1, dtype=np.uint32), np.array([5]), None, {}, done, done, {})

    class Agents:
        def measure(self, *args: Any, **options: Any) -> Measured:
            assert options["counted"] > 1.0
            return measured

    pair = cast(Pair, Agents())
    with pytest.raises(MachineError, match="did not see the last"):
        counted.run_twin(pair, 0, Setting(path="udp"), 1.0, alone=True)
    with pytest.raises(MachineError, match="several senders"):
        counted.run_twin(pair, 0, Setting(path="udp", senders=2), 1.0, alone=True)


def test_a_loop_that_took_longer_than_was_counted_is_counted_for_longer() -> None:
    """On a machine that others have come to since the plain trial was measured."""
    done = Done(tally={}, ended="complete", boot="one", between=(1000, 3000), cpu={"messages": 1000, "beside": 0})
    measured = Measured(np.arange(1, dtype=np.uint32), np.array([5]), None, {}, done, done, {})
    asked: list[float] = []

    class Agents:
        peers: ClassVar[dict[str, Any]] = {}

        def measure(self, *args: Any, **options: Any) -> Measured:
            asked.append(options["counted"])
            return measured

        def ask(self, message: Any, *kind: Any) -> Counted:
            if len(asked) < self.enough:
                raise MachineError("only 0.01 s were counted")
            return Counted([[2000] * len(account.ACTORS)])

        def __init__(self, enough: int) -> None:
            self.enough = enough
            self.peers["client"] = self

    found, _ = counted.run_twin(cast(Pair, Agents(3)), 0, Setting(path="udp"), 0.01, alone=True)
    assert found["idle"] == 2000
    assert len(asked) == 3 and all(later > 2 * earlier for earlier, later in itertools.pairwise(asked))
    with pytest.raises(MachineError, match="were counted"):
        counted.run_twin(cast(Pair, Agents(100)), 0, Setting(path="udp"), 0.01, alone=True)


def test_the_report_has_the_split_of_the_setting_whose_twin_was_counted(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(paths=["udp", "tcp"], sizes=[64], repeats=2)
    with store.Writer.create(tmp_path, plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
            if trial.repeat == 0 and trial.setting.path == "udp":
                measured = Measured(np.zeros(100, np.uint32), np.zeros(100, np.int64), None, {}, DONE, DONE, {})
                found = {"user": 200_000, "softirq": 400_000, "idle": 1_000_000}
                writer.add_table("actors", counted.twin_rows(trial, found, measured))
    summary = hwrx.load(writer.path).summary()
    by_path = {row.path: row.cpu_counted for row in summary.rows}
    # 100 round trips, µs a message
    assert by_path["udp"] == pytest.approx({"user": 1.0, "softirq": 2.0, "idle": 5.0, "busy": 3.0})
    assert by_path["tcp"] == {}
    (table,) = [table for table in actors.actor_tables(summary) if table.name == "processor-counted"]
    names = [name for name, _ in table.columns]
    place = names.index("user")
    assert names[place : place + 4] == ["user", "softirqs", "idle", "busy, counted"]
    ((_, cells),) = table.rows
    assert [cell[0] for cell in cells[place : place + 4]] == ["1.00", "2.00", "5.00", "3.00"]
    assert schema.column_of("actors", "ns")[1].startswith("of all measured messages")


def test_what_cannot_be_counted_is_said_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    class Writer:
        manifest: ClassVar[dict[str, Any]] = {}

        def log(self, line: str) -> None:
            said.append(line)

        def note(self, **what: Any) -> None:
            said.append(what)

    class Agents:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Agents:
            return self

        def __exit__(self, *_: object) -> None: ...

    def refuse(pair: Pair) -> list[str]:
        raise MachineError("no BPF here")

    monkeypatch.setattr(counted, "attach_counter", refuse)
    monkeypatch.setattr(counted, "Pair", Agents)
    done = Done(tally={}, ended="complete", cpu={"elapsed": 5})
    measured = Measured(np.arange(1, dtype=np.uint32), np.array([5]), None, {}, done, done, {})
    bed = cast(beds.Testbed, None)
    for trace in (False, True):
        plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=1, trace=trace)
        with counted.counted_twins(plan.experiment, bed, cast(store.Writer, Writer())) as after:
            after(None, plan.trials[0], measured, None)
        assert bool(said) is trace
    assert said == ["no time by actor: no BPF here", {"counting": {"problem": "no BPF here"}}]
    assert experiment.from_options(paths=["udp"], trace=True).trace


@pytest.mark.parametrize(
    ("counting", "words"),
    [
        ({}, "--trace tells them apart"),
        ({"problem": "bpf: Operation not permitted"}, "could not count: bpf: Operation not permitted"),
        ({"lacks": [], "failed": {"0": "only 0.1 s were counted"}}, "could not count: only 0.1 s were counted"),
    ],
)
def test_a_traced_run_says_what_kept_softirqs_from_being_counted(
    tmp_path: pathlib.Path, counting: dict[str, Any], words: str
) -> None:
    plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=1)
    with store.Writer.create(tmp_path, plan, {**made_runs.MANIFEST, "counting": counting}) as writer:
        made_runs.add(writer, plan.trials[0])
    (table,) = actors.actor_tables(hwrx.load(writer.path).summary())
    assert words in table.caption
    assert ("--trace" in table.caption) == (not counting)


def test_the_report_points_to_the_twin_that_told_softirqs_apart(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=1)
    with store.Writer.create(tmp_path, plan, made_runs.MANIFEST) as writer:
        made_runs.add(writer, plan.trials[0])
        measured = Measured(np.zeros(100, np.uint32), np.zeros(100, np.int64), None, {}, DONE, DONE, {})
        writer.add_table("actors", counted.twin_rows(plan.trials[0], {"softirq": 400_000}, measured))
    first, _ = actors.actor_tables(hwrx.load(writer.path).summary())
    assert "the table of what was counted by actor tells them apart" in first.caption
    assert "--trace" not in first.caption


def test_a_twin_has_fewer_messages_only_if_instructions_are_counted() -> None:
    (trial,) = made_runs.layout(paths=["udp"], sizes=[64], repeats=1, messages=5000).trials
    assert owed.twin_of(trial, "wall") == trial
    shorter = owed.twin_of(trial, "icount")
    assert (shorter.setting.messages, shorter.number, shorter.label) == (500, trial.number, trial.label)
