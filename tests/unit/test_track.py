"""A history of runs: where a figure changed, what is not judged, and the page."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import made_runs
import numpy as np
import pytest
from msgspec import structs

from hwrx.anatomy import model
from hwrx.anatomy.model import Dissection, Part
from hwrx.campaign import tracking, tracking_page
from hwrx.cli import main
from hwrx.report.headline import headlines_of
from hwrx.report.reported import ReportedRun
from hwrx.runs import store

COUNTED = {**made_runs.MANIFEST, "clock": "icount", "topology": "netns"}


@pytest.fixture(autouse=True)
def a_day_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    days = iter(range(1000))
    began = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    monkeypatch.setattr(store, "_now", lambda: began + datetime.timedelta(days=next(days)))


def make_history(root: Path, instructions: Sequence[int], kernel: str = "6.1.0-test", **options: Any) -> list[Path]:
    """Runs in which every message takes so many instructions, there and back, but for a tenth that takes longer."""
    made = []
    for value in instructions:
        plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=1, messages=100, clock="icount", **options)
        manifest = {**COUNTED, "machine": {**COUNTED["machine"], "kernel": kernel}}
        with store.Writer.create(root, plan, manifest) as writer:
            ns = np.full(100, value, dtype=np.int64)
            ns[::10] += 777
            writer.add_trial(
                plan.trials[0], status="ok", tally={"posted": 100, "delivered": 100, "lost": 0},
                sequence=np.arange(100, dtype=np.uint32), ns=ns, service_ns=None, extra={},
            )  # fmt: skip
        made.append(writer.path)
    return made


def dissected(label: str, parts: list[Part]) -> Dissection:
    return Dissection(
        label=label, path="udp", size=64, whole=False, messages=90, instructions=900.0, named=1.0, layered=1.0,
        awake=90, exact=90, beyond=0, halted=0.0, lost=0, parts=parts, layers={}, states=[], pieces=[], calls=0,
        unmatched=0, stamps=[],
    )  # fmt: skip


def make_timed(root: Path, runs: int, slower_from: int) -> list[Path]:
    """Runs by the wall clock, of which those from a place on are a third slower."""
    made = []
    for number in range(runs):
        plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=2, messages=400)
        with store.Writer.create(root, plan, made_runs.MANIFEST) as writer:
            for trial in plan.trials:
                draw = np.random.default_rng([number, trial.number])
                ns = made_runs.times(trial.setting, draw) * (4 if number >= slower_from else 3) // 3
                writer.add_trial(
                    trial, status="ok", tally={"posted": 400, "delivered": 400, "lost": 0},
                    sequence=np.arange(400, dtype=np.uint32), ns=ns, service_ns=None, extra={},
                )  # fmt: skip
        made.append(writer.path)
    return made


def test_a_figure_that_repeats_to_the_digit_changes_where_its_digits_do(tmp_path: Path) -> None:
    made = make_history(tmp_path, [20_000, 20_000, 21_000, 21_000, 20_000])
    (found,) = tracking.read_track(made, over=0.01).histories
    assert found.exact and found.unit == "instructions" and not found.not_judged
    assert [point.value for point in found.points] == [10_000, 10_000, 10_500, 10_500, 10_000]
    assert [(change.run, change.place, change.worse) for change in found.changes] == [
        (made[2].name, 2, True),
        (made[4].name, 4, False),
    ]
    assert tracking.read_track(made, over=0.1).histories[0].changes == []


def test_two_mixes_of_one_name_have_a_history_each(tmp_path: Path) -> None:
    """A file of sizes that was changed between two runs, and a mix whose name says all."""
    made = []
    for words in ("s 64:2,1400:1", "s 64:2,1400:1", "s 64:1,1400:1", "imix 18:7,524:4,1472:1"):
        plan = made_runs.layout(paths=["udp"], sizes=[words], repeats=1, messages=100, clock="icount")
        with store.Writer.create(tmp_path, plan, COUNTED) as writer:
            ns = np.full(100, 20_000, dtype=np.int64)
            writer.add_trial(
                plan.trials[0], status="ok", tally={"posted": 100, "delivered": 100, "lost": 0},
                sequence=np.arange(100, dtype=np.uint32), ns=ns, service_ns=None, extra={},
            )  # fmt: skip
        made.append(writer.path)
    found = {each.setting.rpartition("mix=")[2]: each for each in tracking.read_track(made, over=0.01).histories}
    assert sorted(len(each.points) for each in found.values()) == [1, 1, 2]
    assert "imix" in found
    assert sum(name.startswith("s~") for name in found) == 2


def test_each_kernel_has_a_history_of_its_own_unless_they_are_to_be_one(tmp_path: Path) -> None:
    made = make_history(tmp_path, [20_000], "6.1") + make_history(tmp_path, [22_000], "6.12")
    assert [each.kernel for each in tracking.read_track(made, over=0.01).histories] == ["6.1", "6.12"]
    (whole,) = tracking.read_track(made, over=0.01, across_kernels=True).histories
    assert [point.kernel for point in whole.points] == ["6.1", "6.12"]
    assert whole.changes[0].ratio == pytest.approx(1.1)


def test_cells_of_a_campaign_have_a_history_each(tmp_path: Path) -> None:
    """What tells two runs of one name apart stands in [setting], or is a CPU: no name of a row says it."""
    for warmup in (200, 400):
        make_history(tmp_path / "counted", [20_000, 20_000], setting={"warmup": warmup})
    found = tracking.read_track(tracking.runs_beneath(tmp_path / "counted"), over=0.01).histories
    assert [(each.setting.partition("event ")[2], len(each.points)) for each in found] == [
        ("warmup=200", 2),
        ("warmup=400", 2),
    ]
    for cpu in ([0, 1], [2, 3]):
        made_runs.make(tmp_path / "timed", paths=["udp"], sizes=[64], cpu=cpu)
    found = tracking.read_track(tracking.runs_beneath(tmp_path / "timed"), over=0.01).histories
    assert [each.setting.partition("event ")[2] for each in found] == ["cpu=0,1", "cpu=2,3"]


def test_the_rate_of_a_share_is_each_runs_own(tmp_path: Path) -> None:
    """Two runs that measured other capacities have one history of each share."""
    for capacity in (20_000.0, 21_000.0):
        made_runs.make(tmp_path, paths=["udp"], sizes=[64], patterns=["paced"], load=[0.2, 0.5],
                       capacity={"udp 64 B event": capacity})  # fmt: skip
    found = tracking.read_track(tracking.runs_beneath(tmp_path), over=0.01).histories
    assert sorted((each.setting, len(each.points)) for each in found) == [
        ("udp 64 B paced event load=0.2", 2),
        ("udp 64 B paced event load=0.5", 2),
    ]


def test_a_run_says_which_commit_measured_it(tmp_path: Path) -> None:
    about = {**made_runs.MANIFEST, "host": {"model": "made up", "commit": {"id": "ab" * 20, "changed": False}}}
    run = made_runs.make(tmp_path, manifest=about, paths=["udp"], sizes=[64])
    (found,) = tracking.read_track([run], over=0.01).histories
    assert found.points[0].hwrx == "ab" * 6


def test_a_history_with_a_cost_is_one_of_costs(tmp_path: Path) -> None:
    made = make_history(tmp_path, [20_000, 20_000])
    (run, *_) = [ReportedRun.open(path) for path in made]
    state = headlines_of(run.summary())[0]
    cost = {"value": 10_900.0, "more": {"cost": 10_900.0}}
    pair = [structs.replace(state, more={"cost": 10_900.0}), structs.replace(state, exact=False, **cost)]
    key = tracking._key(run, run.summary().rows[0], state, across_kernels=False)
    found = tracking._history(key, key.setting, [(run, figure) for figure in pair], 0.01, None)
    assert [point.value for point in found.points] == [10_900, 10_900] and not found.exact


def test_functions_of_a_change_are_those_of_its_own_setting(tmp_path: Path) -> None:
    for spin in (100.0, 700.0):
        plan = made_runs.layout(paths=["udp"], sizes=[64], repeats=1, messages=100, clock="icount",
                                sweep={"rest": [1, 16]})  # fmt: skip
        with store.Writer.create(tmp_path, plan, COUNTED) as writer:
            for trial in plan.trials:
                writer.add_trial(
                    trial, status="ok", tally={"posted": 100, "delivered": 100, "lost": 0},
                    sequence=np.arange(100, dtype=np.uint32), ns=np.full(100, 20_000 + 2 * int(spin), dtype=np.int64),
                    service_ns=None, extra={},
                )  # fmt: skip
            # of the other setting more functions moved than are named
            names = {1: ["mine"], 16: [f"other_{number}" for number in range(9)]}
            found = [
                dissected(trial.label, [Part(name, "vmlinux", "UDP", spin) for name in names[trial.setting.rest]])
                for trial in sorted(plan.trials, key=lambda trial: -trial.setting.rest)
            ]
            writer.add_document(model.DOCUMENT, model.to_document(found))
    histories = tracking.read_track(tracking.runs_beneath(tmp_path), over=0.01).histories
    (named,) = [each.changes[0].functions for each in histories if each.setting.endswith("rest=1")]
    assert [each.function for each in named] == ["mine"]


def test_otava_finds_where_times_changed_and_nothing_where_they_did_not(tmp_path: Path) -> None:
    made = make_timed(tmp_path / "changed", 12, slower_from=7)
    (found,) = tracking.read_track(made, over=0.01).histories
    assert [(change.run, change.worse) for change in found.changes] == [(made[7].name, True)]
    assert found.changes[0].ratio == pytest.approx(4 / 3, rel=0.05)
    assert found.changes[0].chance is not None and found.changes[0].chance < tracking.CHANCE
    (same,) = tracking.read_track(make_timed(tmp_path / "same", 12, slower_from=99), over=0.01).histories
    assert same.changes == [] and not same.not_judged


def test_without_otava_times_are_shown_and_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_timed(tmp_path, 5, slower_from=3)
    monkeypatch.setitem(sys.modules, "otava.analysis", None)
    (found,) = tracking.read_track(made, over=0.01).histories
    assert found.changes == [] and "pip install --no-deps apache-otava" in found.not_judged
    (few,) = tracking.read_track(made[:2], over=0.01).histories
    assert "2 runs are too few" in few.not_judged


def test_the_page_and_the_json_have_each_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_history(tmp_path / "runs", [20_000, 20_000, 23_000])
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/manifest.json").write_text("{")
    (tmp_path / "runs/broken/experiment.toml").touch()
    page = tmp_path / "track.html"
    assert main(["track", "--history", str(tmp_path / "runs"), "--page", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["histories"]) == 1 and len(found["left_out"]) == 1
    text = page.read_text()
    assert "1 of 1 histories that were judged changed by more than 1 %, over 3 runs" in text
    assert text.count("<svg") == 2 and 'class="worse"' in text and "+15.00 %, worse (to the digit)" in text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "<script" not in text and "http" not in text.replace("http://www.w3.org", "")


def test_words_of_a_run_are_no_markup_on_the_page(tmp_path: Path) -> None:
    made = make_history(tmp_path, [20_000], kernel="<b>6.1</b>")
    text = tracking_page.render_track(tracking.read_track(made, over=0.01), 0.01)
    assert "<b>" not in text and "&lt;b&gt;6.1" in text


def test_nothing_to_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track"]) == 2
    assert main(["track", "--history", str(tmp_path)]) == 1
    assert main(["track", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().err
    assert "no run is given" in said and "there is no run beneath" in said and "there is no run" in said
