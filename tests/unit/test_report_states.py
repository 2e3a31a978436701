"""What the report says of states, of groups of repeats, of a single repeat, and of sizes that lie off the line."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import made_runs
import numpy as np
import pytest

import hwrx
from hwrx.report import about, numbers, tables


@pytest.fixture
def slower_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third message of a trial takes twice as long; times are multiples of 1,000 ns but for that."""
    times = made_runs.times

    def made(setting: Any, draw: np.random.Generator, block: float = 0.0) -> Any:
        taken = times(setting, draw, block)
        taken[::3] *= 2
        return taken

    monkeypatch.setattr(made_runs, "times", made)


@pytest.mark.usefixtures("slower_now_and_then")
def test_states_of_a_wall_clock_are_told_in_half_round_trips(tmp_path: pathlib.Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path, sizes=[64])).summary()
    for row in summary.rows:
        assert [state.share for state in row.states] == pytest.approx([2 / 3, 1 / 3], abs=0.03)
        middle = row.quantiles["p50"]
        assert middle is not None
        assert row.states[0].value < middle.value < row.states[1].value
        assert row.states[1].value == pytest.approx(2 * row.states[0].value, rel=0.05)
    assert any(warning.startswith("messages went in several ways") for warning in summary.warnings)


def test_states_of_counted_instructions_have_the_exact_figure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(setting: Any, draw: np.random.Generator, block: float = 0.0) -> Any:
        return np.where(draw.random(setting.messages) < 0.6, 23_651, 26_115).astype(np.int64)

    monkeypatch.setattr(made_runs, "times", made)
    summary = hwrx.load(made_runs.make(tmp_path, sizes=[64], clock="icount")).summary()
    assert [state.value for state in summary.rows[0].states] == pytest.approx([11.8255, 13.0575], rel=1e-12)
    assert any("11.8255 µs" in warning and "13.0575 µs" in warning for warning in summary.warnings)
    written = json.loads(tables.to_json(summary))["rows"][0]
    assert [state["exact"] for state in written["states"]] == [True, True]
    assert sum(state["share"] for state in written["states"]) == pytest.approx(1)
    assert written["groups_of_repeats"] == []


def test_one_state_is_no_warning(tmp_path: pathlib.Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path)).summary()
    assert {len(row.states) for row in summary.rows} == {1}
    assert not any("several ways" in warning or "groups" in warning for warning in summary.warnings)


def test_repeats_that_fall_into_groups_are_named_and_have_no_interval(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = made_runs.times
    trials = iter(range(100))

    def made(setting: Any, draw: np.random.Generator, block: float = 0.0) -> Any:
        return times(setting, draw, math.log(1.7) * (next(trials) % 2) + block)

    monkeypatch.setattr(made_runs, "times", made)
    summary = hwrx.load(made_runs.make(tmp_path, paths=["udp"], sizes=[64], repeats=8)).summary()
    (row,) = summary.rows
    assert [state.share for state in row.groups] == [0.5, 0.5]
    median = row.quantiles["p50"]
    assert median is not None
    assert median.split
    assert numbers.plus_minus(median) == ""
    assert any(warning.startswith("the repeats fall into groups") for warning in summary.warnings)
    assert "NaN" not in tables.to_json(summary)


def test_one_repeat_has_no_intervals_and_says_so(tmp_path: pathlib.Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path, repeats=1)).summary()
    assert all(math.isnan(row.quantiles["p50"].low) for row in summary.rows)  # type: ignore[union-attr]
    assert any(warning.startswith("one repeat says nothing of what differs") for warning in summary.warnings)
    assert "one trial, no interval" in summary.answer
    assert "NaN" not in tables.to_json(summary)


def test_a_size_off_the_line_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = made_runs.times

    def made(setting: Any, draw: np.random.Generator, block: float = 0.0) -> Any:
        return times(setting, draw, block) * (3 if setting.size == 4096 else 1)

    monkeypatch.setattr(made_runs, "times", made)
    run = made_runs.make(tmp_path, paths=["udp"], sizes=[64, 1024, 2048, 4096, 8192, 16384])
    summary = hwrx.load(run).summary()
    (cost,) = summary.costs
    size, off = cost.worst
    assert size == 4096
    assert off > 0.5
    assert len(cost.misfit) == 6
    (table,) = [table for table in tables.report_tables(summary) if table.name == "cost"]
    assert table.rows[0][1][-1] == (f"{100 * off:+.0f} %", "4 KiB")
    assert json.loads(tables.to_json(summary))["costs"][0]["off_the_line"] == cost.misfit


def test_intervals_of_a_run_that_looked_again_and_again_are_wider_and_it_says_why(tmp_path: pathlib.Path) -> None:
    plain = hwrx.load(made_runs.make(tmp_path, sizes=[64])).summary()
    looked = hwrx.load(made_runs.make(tmp_path, sizes=[64], until={"width": 0.5})).summary()
    narrow, wide = (summary.rows[0].quantiles["p50"] for summary in (plain, looked))
    assert narrow is not None
    assert wide is not None
    widths = [math.log(estimate.high / estimate.value) for estimate in (narrow, wide)]
    assert widths[1] / widths[0] == pytest.approx(6.965 / 4.303, rel=1e-3)
    assert about.UNTIL in about.about_row(looked)
    assert about.UNTIL not in about.about_row(plain)
