"""Runs from end to end: broken off and resumed, repeated until narrow, run again, loaded by shares of a capacity."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hwrx
from hwrx.control.messages import Setting
from hwrx.control.places import Place
from hwrx.errors import UsageError
from hwrx.runs import capacity, experiment, planning
from hwrx.runs.testbed import Bed

COMPARE = [sys.executable, "-m", "hwrx", "compare"]
SMALL = ["--paths", "udp,tcp", "--topology", "netns", "--messages", "200", "--seed", "5"]


def journal(runs: Path) -> int:
    file = runs / "latest" / "trials.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_an_interrupted_run_goes_on_and_ends_complete(tmp_path: Path) -> None:
    command = [*COMPARE, *SMALL, "--repeats", "12", "--runs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while journal(tmp_path) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "interrupted"
    before = {row["trial"]: row["ended"] for row in run.rows if row["status"] == "ok"}
    assert 4 <= len(before) < 24
    done = subprocess.run(
        [*COMPARE, "--resume", str(run.path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    run = hwrx.load(run.path)
    assert run.status == "complete"
    assert sorted(row["trial"] for row in run.rows) == list(range(24))
    assert {row["trial"]: row["ended"] for row in run.rows if row["trial"] in before} == before
    assert run.samples.num_rows == 24 * 200
    again = subprocess.run([*COMPARE, "--resume", str(run.path)], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "there is nothing to resume" in again.stderr


@pytest.mark.parametrize("more", [["--repeats", "3"], ["lab/experiments/first.toml"]])
def test_resume_takes_no_other_experiment(tmp_path: Path, more: list[str]) -> None:
    done = subprocess.run(
        [*COMPARE, "--resume", str(tmp_path), *more], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "give neither a file nor options" in done.stderr


def test_repeats_are_added_until_the_interval_is_narrow(tmp_path: Path) -> None:
    file = tmp_path / "narrow.toml"
    file.write_text(
        'paths = ["udp"]\ntopology = "netns"\nrepeats = 2\nseed = 1\n[setting]\nmessages = 200\n'
        "[until]\nwidth = 0.0001\nrepeats = 4\n"
    )
    done = subprocess.run(
        [*COMPARE, str(file), "--runs", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "complete"
    assert {row["repeat"] for row in run.rows} == {0, 1, 2, 3}
    assert "DID NOT CONVERGE" in done.stdout


def test_rerun_runs_the_same_trials_and_holds_the_figures_together(tmp_path: Path) -> None:
    first = [*COMPARE, *SMALL, "--repeats", "2", "--runs", str(tmp_path / "a")]
    subprocess.run(first, capture_output=True, timeout=300, check=True)
    (tmp_path / "b" / "latest").mkdir(parents=True)  # what a run compares with is its own, whatever is latest
    again = [sys.executable, "-m", "hwrx", "rerun", str(tmp_path / "a" / "latest"), "--runs", str(tmp_path / "b")]
    done = subprocess.run(again, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one = hwrx.load(tmp_path / "a" / "latest")
    (two,) = (hwrx.load(path) for path in (tmp_path / "b").glob("*Z-*"))
    assert [row["label"] for row in one.rows] == [row["label"] for row in two.rows]
    assert f"{one.path.name}: wall clock" in done.stdout
    assert f"{two.path.name}: wall clock" in done.stdout
    assert "latest is something else" in (two.path / "log.txt").read_text()


def test_load_is_a_share_of_a_capacity_that_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "load.toml"
    file.write_text(
        'paths = ["udp", "tcp"]\ntopology = "netns"\npatterns = ["paced"]\nload = [0.1, 0.5]\nrepeats = 2\n'
        "seed = 1\n[setting]\nmessages = 500\n"
    )
    command = [*COMPARE, str(file), "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    run = hwrx.load(tmp_path / "latest")
    capacity = run.experiment.capacity
    assert set(capacity) == {"udp 64 B event", "tcp 64 B event"}
    assert {round(row["rate"] / capacity[f"{row['path']} 64 B event"], 6) for row in run.rows} == {0.1, 0.5}
    rows = run.summary().rows
    assert {row.load for row in rows} == {0.1, 0.5}
    # a busy machine may fall behind at any load, and exactly then there is no ratio
    behind = {row.load for row in rows if row.saturated}
    assert {row.load for row in rows if row.path == "tcp" and row.ratio is None} == behind


def test_what_the_plan_left_out_stays_out_when_the_rates_are_known() -> None:
    def no_tcp(setting: Setting) -> None:
        if setting.path == "tcp":
            raise UsageError("not on this wire")

    asked = experiment.from_options(
        paths=["udp", "tcp"], topology="here", patterns=["paced"], load=[0.5], messages=400, repeats=1, seed=1
    )
    layout = planning.plan_run(asked, no_tcp)
    bed = Bed({"client": Place(), "server": Place()}, {"client": "local", "server": "local"}, {})
    known = capacity.calibrate_plan(layout, bed, check=no_tcp)
    assert [trial.setting.path for trial in known.trials] == ["udp"]
    assert [skip.reason for skip in known.skipped] == ["not on this wire"]
    assert set(known.experiment.capacity) == {"udp 64 B event"}
