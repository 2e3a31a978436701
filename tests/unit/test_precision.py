"""Repeats until the intervals are narrow, the repeats run out or the budget ends."""

from __future__ import annotations

import datetime
import pathlib
from typing import Any

import made_runs
import pytest

import hwrx
from hwrx.campaign import precision
from hwrx.errors import UsageError
from hwrx.report import tables
from hwrx.runs import experiment, planning, store


def run(root: pathlib.Path, until: dict[str, Any], spread: float, **options: Any) -> store.Writer:
    plan = made_runs.layout(sizes=[64], until=until, **options)
    with store.Writer.create(root, plan, {}) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial, spread=spread)
        for block in precision.repeat_blocks(plan, writer):
            assert len({trial.repeat for trial in block}) == 1
            assert len(block) == 2
            for trial in block:
                made_runs.add(writer, trial, spread=spread)
    return writer


def test_repeats_go_on_until_every_row_is_narrow(tmp_path: pathlib.Path) -> None:
    writer = run(tmp_path, {"width": 0.05, "repeats": 200}, 0.1)
    read = hwrx.load(writer.path)
    repeats = {row["repeat"] for row in read.rows}
    assert 3 < len(repeats) < 200
    assert repeats == set(range(len(repeats)))
    assert read.status == "complete"
    summary = read.summary()
    assert all(row.converged for row in summary.rows)
    assert all(row.quantiles["p50"].width <= 0.05 for row in summary.rows)
    assert f"converged after {len(repeats)} repeats" in (writer.path / "log.txt").read_text()


def test_what_does_not_converge_is_said_in_table_and_warnings(tmp_path: pathlib.Path) -> None:
    writer = run(tmp_path, {"width": 0.001, "repeats": 5}, 0.2)
    summary = hwrx.load(writer.path).summary()
    assert {row.converged for row in summary.rows} == {False}
    assert len(summary.rows[0].digests) == 5
    assert any(warning.startswith("DID NOT CONVERGE") for warning in summary.warnings)
    quality = next(table for table in tables.report_tables(summary) if table.name == "quality")
    assert [cells[-1][0] for _, cells in quality.rows] == ["did not converge"] * 2
    assert "did not converge in 5 repeats: udp 64 B pingpong" in (writer.path / "log.txt").read_text()


def test_a_clock_that_is_set_meanwhile_does_not_end_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the machine's clock cannot be set by a test: the run says that it began a day ago
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    monkeypatch.setattr(store, "_now", lambda: yesterday)
    writer = run(tmp_path, {"width": 0.05, "repeats": 200}, 0.1, budget=3600.0)
    assert "converged after" in (writer.path / "log.txt").read_text()
    assert "within 3600 s" not in (writer.path / "log.txt").read_text()


def test_the_budget_of_a_run_that_goes_on_holds_what_it_took_before(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(sizes=[64])
    with store.Writer.create(tmp_path, plan, {}) as writer:
        made_runs.add(writer, plan.trials[0])
    writer.manifest["store"]["elapsed_s"] = 1000.0
    writer._write_manifest()
    again, _ = store.Writer.resume(writer.path)
    assert 1000.0 <= again.elapsed_seconds() < 1900.0
    again.finish()


def test_the_budget_ends_it_too(tmp_path: pathlib.Path) -> None:
    writer = run(tmp_path, {"width": 0.001, "repeats": 1000}, 0.2, budget=1e-3)
    assert len(hwrx.load(writer.path).rows) == 6
    assert "did not converge within 0.001 s" in (writer.path / "log.txt").read_text()


def test_an_experiment_that_asks_for_no_width_is_not_judged(tmp_path: pathlib.Path) -> None:
    summary = hwrx.load(made_runs.make(tmp_path)).summary()
    assert {row.converged for row in summary.rows} == {None}
    assert "converged" not in [name for table in tables.report_tables(summary) for name, _ in table.columns]


def test_a_longer_plan_begins_like_the_shorter_one() -> None:
    plan = made_runs.layout()
    assert planning.repeat_plan(plan, 7).trials[: len(plan.trials)] == plan.trials
    assert planning.repeat_plan(plan, 3).trials == plan.trials


def test_resume_goes_on_after_repeats_that_were_added(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(sizes=[64], until={"width": 0.001, "repeats": 9})
    with pytest.raises(KeyboardInterrupt), store.Writer.create(tmp_path, plan, {}) as writer:
        for trial in planning.repeat_plan(plan, 5).trials[:-1]:
            made_runs.add(writer, trial)
        raise KeyboardInterrupt
    again, left = store.Writer.resume(writer.path)
    assert [trial.number for trial in left.trials] == [9]
    made_runs.add(again, left.trials[0])
    assert {trial.repeat for trial in next(precision.repeat_blocks(left, again))} == {5}
    again.finish("partial")


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("width = 2.0", r"until.width: 2.0 is not allowed.*\n.*a number above 0 below 1"),
        ("width = 0.1\nquantil = 0.5", r"unknown key 'until.quantil'.*\n.*did you mean 'quantile'"),
        ("quantile = 0.5", r"'until.width' is missing.*\n.*a number above 0"),
    ],
)
def test_a_wrong_until_is_named(until: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        experiment.parse_experiment(f'paths = ["udp"]\n[until]\n{until}', source="f")
