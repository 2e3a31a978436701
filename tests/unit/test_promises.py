"""What is said before a run (how long, how much disk) and about its quality after it (warm-up, effective samples)."""

from __future__ import annotations

import json
import math
import pathlib

import made_runs
import numpy as np
import pytest
import scipy.signal

import hwrx
from hwrx.cli import main
from hwrx.report import html, tables
from hwrx.report.model import Summary
from hwrx.runs import estimate, store

SWEPT = """# Is it so?
paths = ["udp", "tcp"]
sizes = [64, 70000]
patterns = ["pingpong", "stream"]
repeats = 4
topology = "netns"
[setting]
messages = 500
[sweep]
window = [1, 8, 64]
"""


def test_a_dry_run_counts_what_would_be_run_and_writes_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "swept.toml"
    file.write_text(SWEPT)
    assert main(["compare", str(file), "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    # udp 64, tcp 64 and 70000, two patterns, four times, of which udp's stream alone has a window, and so three
    # settings; udp has no datagram of 70,000 bytes
    assert said["estimate"]["trials"] == len(said["trials"]) == (3 * 2 + 2) * 4
    assert said["estimate"]["samples"] == 500 * len(said["trials"])
    assert len(said["skipped"]) == 1 + 3
    streams = {label.partition("window=")[2] for label in said["trials"] if label.startswith("udp 64 B stream")}
    assert streams == {"1", "8", "64"}
    assert not [label for label in said["trials"] if "window" in label and not label.startswith("udp 64 B stream")]
    assert said["estimate"]["seconds"] > 0
    assert "namespaces" in said["estimate"]["basis"]
    assert list(tmp_path.iterdir()) == [file]
    assert main(["compare", str(file), "--dry-run"]) == 0
    assert f"{len(said['trials'])} trials, {500 * len(said['trials'])} messages, about " in capsys.readouterr().out


def test_the_disk_that_is_promised_is_about_what_a_run_takes(tmp_path: pathlib.Path) -> None:
    options = {"paths": ["udp", "tcp"], "messages": 20_000, "repeats": 3, "patterns": ["pingpong"]}
    promised = estimate.estimate_run(made_runs.layout(**options)).disk
    made = made_runs.make(tmp_path, **options)
    taken = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    assert 0.33 < taken / promised < 3


def measured(root: pathlib.Path, ns: np.ndarray) -> Summary:
    plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=2, messages=len(ns))
    with store.Writer.create(root, plan, {}) as writer:
        for trial in plan.trials:
            writer.add_trial(trial, status="ok", sequence=np.arange(len(ns), dtype=np.uint32), ns=ns.astype(np.int64))
    return hwrx.load(writer.path).summary()


def quality(summary: Summary, column: str) -> str:
    table = next(table for table in tables.report_tables(summary) if table.name == "quality")
    return table.rows[0][1][[name for name, _ in table.columns].index(column)][0]


def test_a_warmup_that_was_left_is_found_and_shown_and_nothing_is_taken_away(tmp_path: pathlib.Path) -> None:
    ns = np.random.default_rng(1).lognormal(10, 0.1, 5000)
    steady = measured(tmp_path / "steady", ns)
    assert quality(steady, "warm-up") == "0"
    assert not any("warm-up" in warning for warning in steady.warnings)
    ns[:600] *= 3
    cold = measured(tmp_path / "cold", ns)
    assert int(quality(cold, "warm-up")) == pytest.approx(600, abs=30)
    assert any(warning.startswith("samples that are still warm-up") for warning in cold.warnings)
    assert cold.rows[0].samples == 2 * 5000
    assert "samples of an initial transient" in html.render_html(cold)
    drifting = measured(tmp_path / "drifting", np.linspace(1e4, 5e4, 5000))
    assert quality(drifting, "warm-up") == "did not settle"
    assert any(warning.startswith("a trial did not settle") for warning in drifting.warnings)


def test_alike_neighbours_are_told_by_the_effective_share_and_widen_the_interval(tmp_path: pathlib.Path) -> None:
    noise = np.random.default_rng(2).normal(size=5000)
    independent = measured(tmp_path / "independent", np.exp(10 + 0.3 * noise))
    assert quality(independent, "effective") == "100 %"
    alike = scipy.signal.lfilter([math.sqrt(1 - 0.95**2)], [1, -0.95], noise)
    correlated = measured(tmp_path / "alike", np.exp(10 + 0.3 * alike))
    assert float(quality(correlated, "effective").rstrip(" %")) < 12
    assert any(warning.startswith("neighbouring samples are alike") for warning in correlated.warnings)
    assert correlated.rows[0].quantiles["p50"] is not None
