"""Reports of traced runs: every table and picture is keyed by the whole setting, and no two settings are averaged."""

from __future__ import annotations

import json
import pathlib

import made_runs
import pytest

import hwrx
from hwrx.control.messages import Setting
from hwrx.report import figures, html, ledgers, tables, waterfall
from hwrx.report.cells import Table
from hwrx.report.journeys import UNKNOWN, journeys_of
from hwrx.report.model import Summary

LOOKUP = "udp_queue_rcv_one_skb"


def lookup(setting: Setting, way: str, stage: str) -> int:
    """As the kernel does it: early demux on the way back and without a crowd, else 31 more for each socket in front."""
    if stage != LOOKUP:
        return 100
    if way == "back" or not setting.crowd:
        return 676
    return 923 + 31 * (setting.crowd - 1 if setting.crowd_on == "chain" else 0)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    sweep = {"crowd_on": ["spread", "chain"], "crowd": [0, 1, 100, 100_000]}
    manifest = {**made_runs.MANIFEST, "clock": "icount"}
    root = tmp_path_factory.mktemp("runs")
    made = made_runs.make_traced(root, lookup, sizes=[64], repeats=1, sweep=sweep, manifest=manifest)
    return hwrx.load(made).summary()


def named(summary: Summary, name: str) -> Table:
    return next(table for table in tables.report_tables(summary) if table.name == name)


def test_a_sweeps_table_shows_the_interval_of_each_crowd_by_itself(crowded: Summary) -> None:
    table = named(crowded, "sweep-stages-1")
    names = [name for name, _ in table.columns]
    assert names[-2:] == [f"udp_rcv → {LOOKUP} [instructions]", "one way, mean [instructions]"]
    crowd, where = names.index("crowd"), names.index("crowd on")
    found = {(cells[where][0], cells[crowd][0]): cells[-2][0] for _, cells in table.rows}
    assert found == {
        **{("spread", crowd): "923" for crowd in ("1", "100", "100000")},
        ("chain", "1"): "923",
        ("chain", "100"): "3,992",
        ("chain", "100000"): "3,100,892",
        **{(where, "0"): "676" for where in ("spread", "chain")},
    }
    assert "client to server" in table.title
    # on the way back nothing varies, so that no stage is told of
    back = named(crowded, "sweep-stages-2")
    assert [name for name, _ in back.columns][-1].startswith("one way")
    assert not any(LOOKUP in name for name, _ in back.columns)


def test_every_setting_and_way_has_a_waterfall_of_its_own_that_adds_up(crowded: Summary) -> None:
    found = journeys_of(crowded)
    assert len(found) == 2 * 8
    for journey in found:
        setting = Setting(path="udp", **journey.row.swept)
        step = journey.step(LOOKUP)
        assert step is not None
        assert (step.p50, step.mean) == (lookup(setting, journey.direction, LOOKUP),) * 2
        assert journey.whole == step.mean + 4 * 100
    waterfalls = [table for table in tables.report_tables(crowded) if table.name.startswith("stages-")]
    assert len({table.title for table in waterfalls}) == len(waterfalls) == 16
    assert all(table.folded for table in waterfalls)
    assert any("crowd 100000" in table.title and "chain" in table.title for table in waterfalls)
    assert html.render_html(crowded).count('<details class="folded">') == 16


def test_patterns_waits_and_sizes_are_not_averaged(tmp_path: pathlib.Path) -> None:
    def interval(setting: Setting, way: str, stage: str) -> int:
        return setting.size * (7 if setting.pattern == "stream" else 1) * (3 if setting.wait == "poll" else 1)

    made = made_runs.make_traced(
        tmp_path, interval, lambda setting: 2 if setting.size == 64 else 1,
        patterns=["pingpong", "stream"], waits=["event", "poll"], repeats=2,
    )  # fmt: skip
    summary = hwrx.load(made).summary()
    found = {(j.row.pattern, j.row.wait, j.row.size, j.direction): j.steps[-1].p50 for j in journeys_of(summary)}
    ways = [("pingpong", "there"), ("pingpong", "back"), ("stream", "there")]
    assert found == {
        (pattern, wait, size, way): size * (7 if pattern == "stream" else 1) * (3 if wait == "poll" else 1)
        for pattern, way in ways
        for wait in ("event", "poll")
        for size in (64, 1024)
    }
    copies = ledgers.bytes_handled(summary)
    assert {key: value.copied for key, value in copies.items()} == {
        row.key: (1.0, 2.0 if row.size == 64 else 1.0) for row in summary.rows
    }
    assert all(value.passed == (0.0, 0.0) for value in copies.values())
    for name in ("copies", "tracing"):
        table = named(summary, name)
        heads = [tuple(cell for cell, _ in cells[:4]) for _, cells in table.rows if cells[0][0]]
        assert len(heads) == len(set(heads)) == 8, name
    assert {cells[-2] for _, cells in named(summary, "tracing").rows} == {("1.00 → 2.27", "+127 %")}
    drawn = figures.draw_figure(summary, "waterfall")
    assert [label.get_text() for ax in drawn.axes for label in ax.get_yticklabels()] == ["udp event", "udp poll"] * 2
    assert ["64 B" in drawn.axes[0].get_xlabel(), "1 KiB" in drawn.axes[1].get_xlabel()] == [True, True]


def test_what_the_kernel_did_not_count_is_not_known_instead_of_none(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(paths=["udp"], sizes=[64], messages=60, repeats=1)
    with hwrx.runs.store.Writer.create(tmp_path, plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
            row = {"trial": trial.number, "path": "udp", "size": 64, "pattern": "pingpong", "direction": "there"}
            row |= {"delivered_bytes": 640, "receiver_copies": 1.0, "missing": json.dumps({}), "messages": 10}
            writer.add_table("tracing", made_runs._table([row], made_runs.tables.TRACING))
    (found,) = ledgers.bytes_handled(hwrx.load(writer.path).summary()).values()
    assert found.copied == (None, 0.0)
    assert found.passed == (None, None)


def test_a_stage_of_another_version_keeps_its_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_runs, "STAMPED", (*made_runs.STAMPED[:2], "a stage that was", *made_runs.STAMPED[2:]))
    made = made_runs.make_traced(tmp_path, lambda setting, way, stage: 100, sizes=[64], repeats=1)
    (there, _) = journeys_of(hwrx.load(made).summary())
    assert there.step(UNKNOWN.name) is not None
    assert there.whole == 600


def test_a_run_without_timelines_has_no_waterfall(tmp_path: pathlib.Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path, sizes=[64], messages=60)).summary()
    assert journeys_of(summary) == []
    assert not waterfall.has_waterfall(summary)
    assert waterfall.waterfall_tables(summary) == ledgers.ledger_tables(summary) == []
