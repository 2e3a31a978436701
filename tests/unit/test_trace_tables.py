"""What a traced run keeps, and what is made of it: Parquet rows, the waterfall, Perfetto's file, the walk."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_join import BACK, FORTH, PROBED, made

from hwrx import stages
from hwrx.control.messages import Setting, Traced
from hwrx.errors import UsageError
from hwrx.report import ledgers, style
from hwrx.report.journeys import UNKNOWN, Step, _intervals, _journey
from hwrx.runs.trials import Trial
from hwrx.timelines import copies, join, perfetto, walk
from hwrx.timelines.actors import ACTORS, actor_column
from hwrx.timelines.exact import Exact
from hwrx.timelines.tables import STAGES, stage_rows, tracing_row

SETTING = Setting(path="udp", size=64, messages=40)
TRIAL = Trial(number=0, repeat=0, setting=SETTING, label="udp 64 B")


def timelines(flow: int = FORTH) -> join.Timelines:
    events, ends = made(40, flow=flow)
    events["cpu"] = 1
    events["tid"] = 77
    events["object"] = 0xFFFF0000
    events["context"] = ACTORS.index("softirq")
    # as ftrace shows it for a veth pair: the sender's own thread goes on to netif_rx
    events["context"][events["stage"] <= stages.BY_NAME["netif_rx"].number] = ACTORS.index("user thread")
    return join.join_events(events, ends, "udp", available=PROBED, flow=flow)


class FakeRun:
    """As much of a run as the report of timelines needs."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        self._tables = tables
        self.path = Path("runs/made")
        self.manifest: dict[str, Any] = {"clock": "wall"}
        self.experiment = type("Experiment", (), {"paths": ["udp"]})()

    def table(self, name: str) -> pa.Table | None:
        return self._tables.get(name)


def steps_of(table: pa.Table) -> list[Step]:
    """What the report makes of a run's stamps."""
    run: Any = FakeRun({"stages": table})
    row: Any = SimpleNamespace(path="udp")
    return _journey(run, row, "there", *_intervals.__wrapped__(run)[TRIAL.number, "there"]).steps


def test_a_row_for_every_stamp() -> None:
    found = timelines()
    table = stage_rows(TRIAL, "there", found)
    assert table.schema == STAGES
    assert table.num_rows == 40 * len(found.stages)
    first = table.slice(0, len(found.stages)).to_pylist()
    assert [row["name"] for row in first] == [stage.name for stage in found.stages]
    assert first[0]["cpu"] is None
    assert first[1]["cpu"] == 1
    assert first[1]["tid"] == 77
    assert sum(row["ns"] for row in first) == first[-1]["at_ns"] - first[0]["at_ns"]


def test_no_complete_message_makes_no_rows() -> None:
    events, ends = made(5)
    found = join.join_events(events[:0], ends, "udp", available=PROBED)
    assert stage_rows(TRIAL, "there", found).num_rows == 0


def test_what_tracing_costs_a_stream_is_its_mean_time_a_message(tmp_path: Path) -> None:
    """Its messages come many a call, so most have no time at all between them and the one before."""
    stream = Trial(number=0, repeat=0, setting=Setting(path="udp", pattern="stream", messages=40, window=8), label="s")
    found = timelines()
    off, on = (np.tile([each, 0, 0, 0], 100) for each in (400, 600))
    ledger = copies.Ledger("udp", 40 * 64, (), 1.0, 1.0, balanced=True)
    row = tracing_row(stream, "there", found, Traced(0, 0, {}, b""), ledger, (off, on))
    (kept,) = row.to_pylist()
    assert kept["mean_on_ns"] / kept["mean_off_ns"] == pytest.approx(1.5)
    assert kept["p50_off_ns"] is None
    assert ledgers._change([(kept["mean_off_ns"], kept["mean_on_ns"])], 1.0)[1] == "+50 %"


def test_perfettos_file_has_a_track_for_each_cpu_and_actor(tmp_path: Path) -> None:
    both = [stage_rows(TRIAL, "there", timelines()), stage_rows(TRIAL, "back", timelines(BACK))]
    run: Any = FakeRun({"stages": pa.concat_tables([table.unify_dictionaries() for table in both])})
    path = tmp_path / "t.json"
    assert perfetto.export_timelines(run, path) == 80
    events = json.loads(path.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == 80 * (len(timelines().stages) - 1)
    assert {event["pid"] for event in slices} == {1}
    named = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert {"CPU 1", "softirq", "user thread"} <= named
    assert "kernel" not in named, "nothing was observed to be the catalogue's `kernel`"
    one = [event for event in events if event.get("id") == 1]
    assert [event["ph"] for event in one] == ["s", *["t"] * (len(one) - 2), "f"]


def test_perfetto_of_an_untraced_run_is_refused_in_words(tmp_path: Path) -> None:
    run: Any = FakeRun({})
    with pytest.raises(UsageError, match="no timelines"):
        perfetto.export_timelines(run, tmp_path / "t.json")


def test_the_walk_is_the_median_messages() -> None:
    found = timelines()
    found.stamps[:, -1] += np.arange(40)
    journey = walk.journey_of(found, SETTING, {stage.name: f"fentry {stage.name}" for stage in PROBED})
    assert journey.sequence == 20
    assert journey.one_way == journey.steps[-1].at
    assert sum(step.ns for step in journey.steps) == journey.one_way
    assert journey.steps[1].object == "0xffff0000"
    assert journey.stayed() is None
    rows = tuple(copies.Row(f"stage {n}", "sender", "kernel", "copied", 1, 64, 1.0, "") for n in range(15))
    journey.ledger = copies.Ledger("udp", 64, rows, 15.0, 0.0, balanced=True)
    picture = walk.walk_picture([journey, journey])
    height = int(picture.split('height="')[1].split('"')[0])
    lines = [float(y) for y in re.findall(r'<text x="[^"]*" y="([^"]*)"', picture)]
    assert max(lines) < height, "words below the picture"
    assert picture.count("<circle") == 2 * len(journey.steps)
    assert "copied to the user" in picture


def test_a_page_that_moved_is_said_to_have_moved() -> None:
    journey = walk.Journey("udp", 64, 1, 10, [])
    journey.buffers = {
        "receiver before": {"receive_physical": "0x1000"},
        "receiver after": {"receive_physical": "0x2000"},
    }
    assert journey.stayed() is False
    assert any("moved" in line for line in walk.memory_words(journey))


def test_a_walk_stands_on_the_anatomy_where_there_is_one_and_keeps_what_probes_saw() -> None:
    journey = walk.journey_of(timelines(), SETTING, {})
    assert "kernel probes" in walk.memory_words(journey)[0]
    seen = next(step for step in journey.steps if step.stage == "ip_rcv")
    stamps = [("posted", "user thread", 0), ("irq_handler_entry", "hard IRQ", 70), ("ip_rcv", "softirq", 90)]
    exact = walk.on_stamps(journey, Exact("udp", "udp 64 B", "there", [*stamps, ("delivered", "", 130)]))
    assert [(step.stage, step.ns, step.at) for step in exact.steps] == [
        ("posted", 0, 0), ("irq_handler_entry", 70, 70), ("ip_rcv", 20, 90), ("delivered", 40, 130),
    ]  # fmt: skip
    assert (exact.one_way, exact.steps[2].object, exact.steps[1].tid) == (130, seen.object, None)
    assert "the anatomy: instructions" in walk.memory_words(exact)[0]
    assert "stand on the anatomy" in walk.walk_picture([exact])


def test_by_whom_a_stage_was_done_is_what_its_stamps_observed() -> None:
    found = timelines()
    table = stage_rows(TRIAL, "there", found)
    rows = {row["name"]: row["actor"] for row in table.to_pylist()}
    assert stages.BY_NAME["netif_rx"].actor == "softirq"
    assert rows["netif_rx"] == "user thread"
    assert rows["ip_rcv"] == "softirq"
    assert rows["posted"] == rows["delivered"] == "user thread"
    journey = walk.journey_of(found, SETTING, {})
    assert {step.stage: step.actor for step in journey.steps} == rows
    assert {step.stage.name: step.actor for step in steps_of(table)} == rows


def test_a_stage_done_by_several_says_how_often_by_each() -> None:
    found = timelines()
    mine = found.events["stage"] == stages.BY_NAME["ip_rcv"].number
    found.events["context"][np.flatnonzero(mine)[:10]] = ACTORS.index("user thread")
    (step,) = [step for step in steps_of(stage_rows(TRIAL, "there", found)) if step.stage.name == "ip_rcv"]
    assert (step.actor, step.actors) == ("softirq", "softirq 75 %, user thread 25 %")


def test_what_was_not_observed_is_not_the_catalogues_word() -> None:
    found = timelines()
    found.events["context"] = 0
    rows = {row["name"]: row["actor"] for row in stage_rows(TRIAL, "there", found).to_pylist()}
    assert rows["ip_rcv"] == "not observed"


def test_a_run_that_observed_no_actors_keeps_what_it_was_printed_with() -> None:
    table = stage_rows(TRIAL, "there", timelines()).drop_columns(["actor"])
    assert set(actor_column(table)) <= {stage.actor for stage in stages.STAGES}


def test_every_actor_has_a_colour_and_a_track() -> None:
    actors = {stage.actor for stage in stages.STAGES if stage.chain} | set(ACTORS)
    assert actors <= set(style.ACTORS)
    assert actors <= set(perfetto.ACTORS)
    assert actors <= set(walk.COLOURS)


def test_a_stage_added_to_the_catalogue_changes_nothing_of_a_stored_run(monkeypatch: pytest.MonkeyPatch) -> None:
    table = stage_rows(TRIAL, "there", timelines())
    before = steps_of(table)
    longer = [stages.STAGES[0], dataclasses.replace(stages.STAGES[1], name="new here"), *stages.STAGES[1:]]
    moved = [dataclasses.replace(stage, number=place) for place, stage in enumerate(longer, 1)]
    monkeypatch.setattr(stages, "STAGES", moved)
    monkeypatch.setattr(stages, "BY_NAME", {stage.name: stage for stage in moved})
    after = steps_of(table)
    named = [[(step.stage.name, step.mean) for step in steps] for steps in (before, after)]
    assert named[0] == named[1]
    assert before[-1].stage.number != after[-1].stage.number


def test_a_stage_that_the_catalogue_has_lost_is_left_out(tmp_path: Path) -> None:
    table = stage_rows(TRIAL, "there", timelines())
    names = table["name"].cast("string").to_pylist()
    renamed = pa.array(["gone" if name == "ip_rcv" else name for name in names]).dictionary_encode()
    table = table.set_column(table.schema.get_field_index("name"), "name", renamed)
    run: Any = FakeRun({"stages": table})
    assert "ip_rcv" in names
    assert {"gone", "ip_rcv"}.isdisjoint(step.stage.name for step in steps_of(table))
    assert UNKNOWN.name in [step.stage.name for step in steps_of(table)], "its time would be missing from the sum"
    assert perfetto.export_timelines(run, tmp_path / "x.json") == 40
    assert "ip_rcv" not in (tmp_path / "x.json").read_text()
