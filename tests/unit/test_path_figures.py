"""What a program reads of a run: figures by path and size, ratios, and a run held against others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_runs
import numpy as np
import pytest
from test_anatomies import copies, made, run_with

import hwrx
from hwrx.control.messages import Setting
from hwrx.errors import UnavailableError, UsageError
from hwrx.report import tables
from hwrx.report.diff_text import to_text
from hwrx.report.reported import ReportedRun
from hwrx.runs import store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ReportedRun:
    root = tmp_path_factory.mktemp("runs")
    return hwrx.load(made_runs.make(root, patterns=["pingpong", "stream"], setting={"check_every": 0}))


def test_figures_are_those_of_the_commands_json_to_the_digit(run: ReportedRun) -> None:
    rows = json.loads(tables.to_json(run.summary()))["rows"]
    told = {(row["path"], row["size"], row["pattern"]): row for row in rows}
    seen = 0
    for found in run:
        row = told[found.row.path, found.row.size, found.row.pattern]
        if found.row.pattern == "pingpong":
            seen += 1
            assert found.p50 == row["p50_us"] * 1000
            assert found.interval == (row["p50_us_low"] * 1000, row["p50_us_high"] * 1000)
            assert (found.p90, found.p99) == (row["p90_us"] * 1000, row["p99_us"] * 1000)
            assert (found.unit, found.measures) == ("ns", "half round trip")
    assert seen == 4


def test_a_path_and_a_size_are_a_key_and_what_is_ambiguous_lists_what_there_is(run: ReportedRun) -> None:
    assert run.cell("udp", 64, pattern="pingpong").row.path == "udp"
    with pytest.raises(UsageError, match=r"2 rows .* 'udp', size=64.*\n.*pattern='pingpong' or 'stream'"):
        run["udp", 64]
    with pytest.raises(UsageError, match=r"no 'udp', size=65.*\n.*'udp', 64"):
        run["udp", 65]
    with pytest.raises(UsageError, match="no 'upd'"):
        run["upd"]
    with pytest.raises(UsageError, match="no row has a 'colour'"):
        run.cell("udp", 64, colour="red")
    assert len({found.name for found in run}) == 8


def test_what_could_not_be_had_says_why(run: ReportedRun) -> None:
    found = run.cell("udp", 64, pattern="pingpong")
    for figure, words in {
        "copies": "no copies: nothing counted them",
        "anatomy": "no anatomy: no message of it was taken apart",
        "cost": "no cost: the run counted no instructions",
        "p999": "no p99.9: fewer than 10 of 1200 messages",
    }.items():
        with pytest.raises(UnavailableError, match=words):
            getattr(found, figure)
    with pytest.raises(UnavailableError, match="batching"):
        _ = run.cell("udp", 64, pattern="stream").p50
    for p in (0, 1, 50, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            found.quantile(p)


def test_one_repeat_has_no_interval(tmp_path: Path) -> None:
    found = hwrx.load(made_runs.make(tmp_path, paths=["udp"], sizes=[64], repeats=1))["udp"]
    assert found.p50 > 0
    with pytest.raises(UnavailableError, match="no interval: there is one repeat"):
        _ = found.interval


def test_samples_are_half_of_what_was_timed_in_the_order_of_recording(run: ReportedRun) -> None:
    found = run.cell("udp", 64, pattern="pingpong")
    first = run.trial_samples(found.row.trials[0]).ns
    assert np.array_equal(found.samples[: len(first)], first / 2)
    assert (
        len(found.samples) == found.row.samples == sum(len(run.trial_samples(trial).ns) for trial in found.row.trials)
    )
    full = hwrx.load(run.path).cell("rdma-send", 64, pattern="stream")
    assert len(full.samples)


def test_a_ratio_is_the_reports_and_to_another_path_its_inverse(run: ReportedRun) -> None:
    row = run.cell("rdma-send", 64, pattern="pingpong").row
    assert run.ratio("rdma-send", to="udp", size=64, pattern="pingpong") == row.ratio
    back = run.ratio("udp", to="rdma-send", size=64, pattern="pingpong")
    assert row.ratio is not None
    assert back.value == pytest.approx(1 / row.ratio.value)  # type: ignore[union-attr]
    by_size = run.ratio("rdma-send", to="udp", pattern="pingpong")
    assert list(by_size) == [64, 1024]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no path 'tcp'"):
        run.ratio("udp", to="tcp")
    with pytest.raises(UnavailableError, match="is udp itself"):
        run.ratio("udp", to="udp", size=64, pattern="pingpong")


def test_copies_come_from_probes_else_from_addresses(tmp_path: Path) -> None:
    def interval(setting: Setting, direction: str, stage: str) -> int:
        return 100

    traced = hwrx.load(made_runs.make_traced(tmp_path / "traced", interval, lambda setting: 2, sizes=[64]))["udp"]
    assert (str(traced.copies), traced.copies.total, traced.copies.counted_by) == ("1+2", 3.0, "probes")
    apart = hwrx.load(run_with(tmp_path / "apart", made(copies=copies(sender=2.0))))["udp"]
    assert (str(apart.copies), apart.copies.counted_by) == ("2+1", "addresses")
    assert apart.anatomy.instructions == 1000.0
    assert apart.unit == "instructions"


def test_a_run_has_the_commands_text_and_its_tables_still_have_names(run: ReportedRun) -> None:
    text = run.table()
    assert "rdma-send" in text
    assert max(map(len, text.splitlines())) <= 200
    assert run.table("stages") is None
    assert run.figure_names
    assert run.figure(run.figure_names[0], width=5.0).get_figwidth() == 5.0


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_a_table_whose_words_are_escaped_and_whose_ink_is_its_own(tmp_path: Path) -> None:
    manifest = {**made_runs.MANIFEST, "warnings": ["<script>alert(1)</script>"]}
    page = hwrx.load(made_runs.make(tmp_path, manifest=manifest))._repr_html_()
    seen = Seen()
    seen.feed(page)
    assert "table" in seen.tags
    assert "script" not in seen.tags
    assert "alert(1)" in seen.text
    assert "rdma-send" in seen.text
    assert "#" not in page.partition("</style>")[0]  # no colour of its own


# --- held against others --------------------------------------------------------------------------------------------


def counted(root: Path, shift: int = 0, **options: Any) -> ReportedRun:
    """A run of udp whose round trips take 20,000 instructions and `shift`, every one."""
    fields = {"paths": ["udp"], "sizes": [64], "repeats": 3, "clock": "icount", "messages": 60}
    plan = made_runs.layout(**{**fields, **options})
    with store.Writer.create(root, plan, {**made_runs.MANIFEST, "clock": "icount"}) as writer:
        for trial in plan.trials:
            ns = np.full(trial.setting.messages, 20_000 + shift, np.int64)
            count = len(ns)
            writer.add_trial(
                trial,
                status="ok",
                tally={"posted": count, "delivered": count, "bytes": count * 64, "lost": 0},
                sequence=np.arange(count, dtype=np.uint32),
                ns=ns,
                service_ns=None,
                extra={},
            )
    return hwrx.load(writer.path)


def test_counted_figures_are_held_against_one_run_and_two_hundred_instructions_are_told(tmp_path: Path) -> None:
    baseline = hwrx.Baseline(counted(tmp_path / "before"))
    same, worse = counted(tmp_path / "same")["udp"], counted(tmp_path / "after", shift=400)["udp"]
    assert same <= baseline
    assert same <= 1.01 * baseline
    assert not worse <= 1.01 * baseline
    assert worse <= 1.03 * baseline
    (sentence,) = (1.01 * baseline).judge(worse, "<=").sentences()
    assert sentence == "exact figure: 10,200.0 instructions against 10,000.0, +2.00 %: beyond 1.01 times the baseline"


def test_times_of_one_run_on_either_side_are_not_judged_and_of_several_they_are(tmp_path: Path) -> None:
    options: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "repeats": 3}
    before = [hwrx.load(made_runs.make(tmp_path / str(seed), seed, **options)) for seed in range(4)]
    after = hwrx.load(made_runs.make(tmp_path / "after", 9, **options))
    with pytest.raises(UnavailableError, match=r"one run on either side.*\n.*several runs"):
        _ = after["udp"] <= 1.05 * hwrx.Baseline(before[0])
    assert after["udp"] <= 1.2 * hwrx.Baseline(*before)


def slower(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda factor: monkeypatch.setitem(made_runs.SPEED, "udp", int(made_runs.SPEED["udp"] * factor))


def test_times_that_are_worse_than_runs_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "repeats": 3}
    before = [hwrx.load(made_runs.make(tmp_path / str(seed), seed, **options)) for seed in range(4)]
    slower(monkeypatch)(1.3)
    after = hwrx.load(made_runs.make(tmp_path / "after", 9, **options))["udp"]
    verdict = (1.05 * hwrx.Baseline(*before)).judge(after, "<=")
    assert not verdict.holds
    assert any(sentence.startswith("p50 µs: ") and "95 % interval" in sentence for sentence in verdict.sentences())
    assert "p50" in to_text(verdict.diff)


def test_a_row_that_one_of_the_baselines_runs_has_is_not_judged_by_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_of(seed: int, messages: int, repeats: int) -> ReportedRun:
        options: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "messages": messages, "repeats": repeats}
        return hwrx.load(made_runs.make(tmp_path / f"{seed}-{messages}-{repeats}", seed, **options))

    for repeats in (1, 3):
        edited = hwrx.Baseline(made_of(1, 300, repeats), made_of(2, 600, repeats))
        with monkeypatch.context() as patch:
            slower(patch)(2.0)
            after = made_of(3, 600, repeats)["udp"]
        with pytest.raises(UnavailableError, match=r"one run on either side that has it.*\n.*several runs"):
            _ = after <= 1.02 * edited
        assert not after <= 1.02 * hwrx.Baseline(made_of(1, 300, repeats), made_of(2, 600, repeats), made_of(4, 600, 2))


def test_a_row_is_held_against_its_own_setting_whatever_else_was_swept(tmp_path: Path) -> None:
    delayed = [
        hwrx.load(made_runs.make(tmp_path / str(seed), seed, paths=["udp"], sizes=[64], setting={"netem": "delay 1ms"}))
        for seed in range(3)
    ]
    sweep = {"netem": ["", "delay 1ms"]}
    both = hwrx.load(made_runs.make(tmp_path / "both", 9, paths=["udp"], sizes=[64], sweep=sweep))
    assert both.cell("udp", 64, netem="delay 1ms") <= 1.2 * hwrx.Baseline(*delayed)
    with pytest.raises(UnavailableError, match="it has no udp"):
        _ = both.cell("udp", 64, netem="") <= 1.2 * hwrx.Baseline(*delayed)


def test_an_open_loop_that_no_longer_keeps_up_holds_for_no_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_of(seed: int, late: float) -> ReportedRun:
        """Each answer comes so much later than the one before, ns; one message is due in 1 ms."""
        times = made_runs.times
        options: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "patterns": ["paced"], "rate": 1000.0}
        with monkeypatch.context() as patch:
            patch.setattr(
                made_runs,
                "times",
                lambda setting, draw, block=0.0: (
                    times(setting, draw, block) + (late * np.arange(setting.messages)).astype(np.int64)
                ),
            )
            return hwrx.load(made_runs.make(tmp_path / f"{seed}", seed, **options))

    kept_up, saturated = [made_of(seed, 0) for seed in range(3)], [made_of(seed, 670_000) for seed in range(3, 6)]
    baseline = hwrx.Baseline(*kept_up[:2])
    assert kept_up[2]["udp"] <= 1.2 * baseline
    verdict = (1000 * baseline).judge(saturated[0]["udp"], "<=")
    assert not verdict.holds
    assert "60 % of the rate offered is answered" in verdict.sentences()[0]
    for after in (saturated[0], kept_up[0]):
        with pytest.raises(UnavailableError, match=r"offered more than it answered there.*\n.*a lower rate"):
            _ = after["udp"] <= 2 * hwrx.Baseline(kept_up[1], *saturated[1:])


def test_the_functions_that_grew_are_named(tmp_path: Path) -> None:
    before = hwrx.load(run_with(tmp_path / "before", made(receive=700.0)))
    after = hwrx.load(run_with(tmp_path / "after", made(receive=910.0)))
    verdict = (1.0 * hwrx.Baseline(before, before)).judge(after["udp"], "<=")
    assert verdict.moved_functions() == ["udp_rcv +210 instructions"]


def test_what_cannot_be_held_against_a_baseline_is_said(tmp_path: Path, run: ReportedRun) -> None:
    baseline = hwrx.Baseline(run)
    found, stream = run.cell("udp", 64, pattern="pingpong"), run.cell("udp", 64, pattern="stream")
    with pytest.raises(UsageError, match="a factor of at least 1"):
        _ = found <= 0.9 * baseline
    for factor in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(UsageError, match=r"times a baseline is no measure.*\n.*1\.02"):
            _ = found <= factor * baseline
    with pytest.raises(UsageError, match="by <=: a time is better if it is less"):
        _ = found >= baseline
    with pytest.raises(UsageError, match="by >=: a rate is better if it is more"):
        _ = stream <= baseline
    with pytest.raises(UsageError, match="no runs"):
        _ = found <= hwrx.Baseline()
    other = hwrx.load(
        made_runs.make(tmp_path, manifest={**made_runs.MANIFEST, "machine": {"kernel": "6.12.0", "accelerator": "tcg"}})
    )
    with pytest.raises(UsageError, match=r"their kernels differ \(6.1.0-test, 6.12.0\)\n.*hwrx.Baseline\("):
        _ = other["udp", 64] <= baseline
    alone = counted(tmp_path / "alone", sizes=[1400])
    with pytest.raises(UnavailableError, match="cannot be held"):
        both = counted(tmp_path / "both", sizes=[64, 1400])
        _ = both["udp", 64] <= hwrx.Baseline(alone)
