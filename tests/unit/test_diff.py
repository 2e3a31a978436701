"""Runs held against each other: as runs, as single ones, and to the digit."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import made_runs
import numpy as np
import pytest
import scipy.stats

import hwrx
from hwrx import stats
from hwrx.cli import main
from hwrx.errors import StoreError, UsageError
from hwrx.report import baselines, diff, diff_text
from hwrx.runs.planning import capacity_key

Runs = list[pathlib.Path]


@pytest.fixture
def pair(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The second is 20 % slower over rdma-send alone."""
    options: dict[str, Any] = {"repeats": 5, "patterns": ["pingpong", "stream"], "sizes": [64]}
    before = made_runs.make(tmp_path, seed=1, **options)
    monkeypatch.setitem(made_runs.SPEED, "rdma-send", made_runs.SPEED["rdma-send"] * 6 // 5)
    around = {"governor": "powersave", "guest": {"boot_s": 97.6}, "warnings": ["other load: 14.9 threads"]}
    after = made_runs.make(tmp_path, seed=2, manifest={**made_runs.MANIFEST, **around}, **options)
    return [before, after]


@pytest.fixture
def make_side(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    """Make so many runs, each slower or faster than another by `spread`, all by a factor."""
    times = made_runs.times

    def make(count: int, seed: int, factor: float = 1.0, spread: float = 0.02, **options: Any) -> Runs:
        made = []
        for number in range(count):
            of_run = factor * math.exp(np.random.default_rng([seed, number]).normal(0, spread))
            monkeypatch.setattr(
                made_runs,
                "times",
                lambda setting, draw, block=0.0, of_run=of_run: times(setting, draw, block + math.log(of_run)),
            )
            chosen = {"paths": ["udp"], "sizes": [64], "repeats": 2, **options}
            made.append(made_runs.make(tmp_path, seed=1000 * seed + number, **chosen))
        return made

    return make


def load(runs: Runs) -> list[Any]:
    return [hwrx.load(run) for run in runs]


def strings(runs: Runs) -> list[str]:
    return [str(run) for run in runs]


def test_several_runs_a_side_are_compared_by_runs(make_side: Callable[..., Runs]) -> None:
    before, after = make_side(4, 1), make_side(4, 2, factor=1.2)
    found = diff.compare_runs(load(before), load(after))
    assert found.sampled
    median = next(change for change in found.changes if change.figure == "p50 µs")
    assert median.ratio.trials == 4
    assert 15 < median.percent < 25
    assert median.told_apart
    assert median.holm >= median.chance
    assert median in found.failures(0.1)
    assert found.failures(0.3) == []
    assert "all runs of one side were made before the other's" in " ".join(found.notes)


def test_repeats_of_one_run_do_not_stand_for_runs(make_side: Callable[..., Runs]) -> None:
    """Runs that differ by a third among themselves: two single ones seem to differ, three a side do not."""
    before, after = make_side(3, 1, spread=0.3, repeats=5), make_side(3, 5, spread=0.3, repeats=5)
    several = diff.compare_runs(load(before), load(after))
    assert not any(change.told_apart for change in several.changes)
    single = [diff.compare_runs(load([a]), load([b])) for a in before for b in after]
    assert sum(any(change.chance <= 0.05 for change in found.changes) for found in single) >= 7
    assert not any(change.told_apart for found in single for change in found.changes)
    assert all(found.failures(0.0) == [] for found in single)
    assert all("was not sampled" in " ".join(found.notes) for found in single)


def test_whether_runs_were_sampled_is_asked_of_each_row(
    make_side: Callable[..., Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of the older runs alone has the size of 128 bytes, and its repeats differ little."""
    many: dict[str, Any] = {"sizes": [64, 128], "repeats": 5}
    before = [*make_side(1, 1, repeats=5), *make_side(1, 2, **many)]
    after = make_side(1, 3, factor=1.5, **many)
    found = diff.compare_runs(load(before), load(after))
    assert found.sampled
    of_both, of_one = "udp 64 B pingpong event", "udp 128 B pingpong event"
    assert {change.row: change.sampled for change in found.changes} == {of_both: True, of_one: False}
    assert not any(change.told_apart for change in found.changes if change.row == of_one)
    assert f"one run on either side has {of_one}" in " ".join(found.notes)
    assert "judged by runs" in " ".join(diff_text.to_text(found).split())
    main(["diff", *strings(before), "--", *strings(after), "--fail-over", "10%"])
    assert f"not judged: one run on either side has {of_one} " in capsys.readouterr().err
    assert "key" not in json.loads(diff.to_json(found))["changes"][0]


def test_one_run_is_asked_whether_it_belongs_to_the_others(make_side: Callable[..., Runs]) -> None:
    base = make_side(5, 1, spread=0.05)
    for factor, told in ((1.0, False), (1.5, True)):
        found = diff.compare_runs(load(base), load(make_side(1, 9, factor=factor, spread=0.0)))
        assert [change.told_apart for change in found.changes if change.figure == "p50 µs"] == [told]
        assert found.sampled
        assert "whether it belongs to the others" in " ".join(found.notes)


def test_single_runs_fail_nothing_unless_asked(pair: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = strings(pair)
    assert main(["diff", before, after]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "rdma-send 64 B pingpong" in out
    assert "how much two runs differ anyway was not sampled" in out
    assert main(["diff", before, after, "--fail-over", "10%"]) == 0
    assert "not judged: one run on either side" in capsys.readouterr().err
    assert main(["diff", before, after, "--fail-over", "10%", "--single"]) == 1
    assert "worse: rdma-send 64 B pingpong event p50 µs: +" in capsys.readouterr().err
    assert main(["diff", before, after, "--fail-over", "0.5", "--single"]) == 0
    capsys.readouterr()
    assert main(["diff", before, after, "--fail-over", "much"]) == 2
    assert "give it as 5% or 0.05" in capsys.readouterr().err


def test_what_changed_is_found_and_what_did_not_is_not(pair: Runs) -> None:
    found = diff.compare_runs(*([run] for run in load(pair)), single=True)
    slower = [change for change in found.failures(0.1) if change.row.startswith("rdma-send")]
    assert {change.figure for change in slower} >= {"p50 µs", "p90 µs", "messages/s"}
    assert not [change for change in found.failures(0.1) if change.row.startswith("udp")]
    assert found.environment == [("governor", "–", "powersave")]
    assert [change for change in found.changes if math.isclose(change.holm, 1.0)]


def test_getting_better_is_no_failure(pair: Runs) -> None:
    found = diff.compare_runs(*([run] for run in reversed(load(pair))), single=True)
    assert [change for change in found.changes if change.told_apart and change.row.startswith("rdma-send")]
    assert found.failures(0.1) == []


def test_a_run_against_itself_changed_nothing(pair: Runs) -> None:
    found = diff.compare_runs(load(pair[:1]), load(pair[:1]))
    assert not any(change.told_apart for change in found.changes)
    assert found.environment == []
    words = " ".join(diff_text.to_text(found).split())
    assert "0 of 8 figures changed beyond chance at 5 % each" in words
    assert "about 0.4 would seem to" in words


def test_two_sides_on_the_command_line_and_options_behind_them(
    make_side: Callable[..., Runs], capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = strings(make_side(3, 1)), strings(make_side(3, 2, factor=1.3))
    assert main(["diff", *before, "--", *after, "--fail-over", "5%", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [len(content[side]) for side in "ab"] == [3, 3]
    assert content["sampled"]
    assert content["expected_by_chance"] == pytest.approx(0.05 * len(content["changes"]))
    assert main(["diff", *before, "--", *after]) == 0
    assert "Holm" in capsys.readouterr().out
    for wrong, words in (
        ([*before, *after], "6 names do not say which is which"),
        ([*before, "--"], "no run on one side of --"),
        ([before[0], before[0], "--", *after], "is given twice on one side"),
        ([before[0], "nowhere"], "neither a run directory nor a baseline"),
        ([before[0], "/nowhere/at-all"], "there is no run"),
    ):
        assert main(["diff", *wrong]) == 2
        assert words in capsys.readouterr().err


def test_a_baseline_stands_for_its_runs(
    make_side: Callable[..., Runs],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before, after = make_side(3, 1), make_side(3, 2, factor=1.3)
    assert main(["diff", "--save-baseline", "v1", *strings(before)]) == 0
    assert str(tmp_path / "state" / "hwrx" / "baselines" / "v1.json") in capsys.readouterr().out
    assert main(["diff", "v1", "--", *strings(after), "--fail-over", "10%"]) == 1
    capsys.readouterr()
    assert main(["diff", "--baselines"]) == 0
    assert capsys.readouterr().out.startswith(f"v1: {before[0]}")
    assert main(["diff", "v2", "--", *strings(after)]) == 2
    assert "v2 is neither a run directory nor a baseline (v1)" in capsys.readouterr().err
    assert main(["diff", "--save-baseline", "../v1", str(before[0])]) == 2
    assert "not a valid name" in capsys.readouterr().err
    assert main(["diff", "--save-baseline", "v3"]) == 2
    assert "no run is given" in capsys.readouterr().err
    shutil.rmtree(before[1])
    assert main(["diff", "v1", "--", *strings(after)]) == 2
    assert "1 of the 3 runs of the baseline v1 are gone" in capsys.readouterr().err
    (baselines.baselines_folder() / "v1.json").write_text("{}")
    assert main(["diff", "v1", "--", *strings(after)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_place_that_takes_no_baseline_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot keep the baseline in"):
        baselines.save_baseline("v1", [])


# --- exact figures -------------------------------------------------------------------------------------------------


def exact_run(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, values: list[int], shares: list[float]) -> Any:
    def made(setting: Any, draw: np.random.Generator, block: float = 0.0) -> Any:
        return draw.choice(np.array(values), setting.messages, p=shares)

    monkeypatch.setattr(made_runs, "times", made)
    return hwrx.load(made_runs.make(root, paths=["udp"], sizes=[64], clock="icount", repeats=2))


def test_counted_instructions_are_equal_whatever_the_share_of_their_states(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = exact_run(tmp_path, monkeypatch, [23_650, 26_114], [0.6, 0.4])
    b = exact_run(tmp_path, monkeypatch, [23_650, 26_114], [0.2, 0.8])
    found = diff.compare_runs([a], [b])
    assert [(change.figure, change.told_apart) for change in found.changes] == [
        ("state 1 of 2, exact µs", False),
        ("state 2 of 2, exact µs", False),
    ]
    assert found.notes == []
    assert "2 of 2 exact figures are equal to the digit" in diff_text.to_text(found)


def test_one_instruction_more_is_a_difference_and_no_run_more_is_needed_to_fail(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = exact_run(tmp_path, monkeypatch, [23_650, 26_114], [0.6, 0.4])
    b = exact_run(tmp_path, monkeypatch, [23_650, 26_116], [0.6, 0.4])
    found = diff.compare_runs([a], [b])
    assert [change.told_apart for change in found.changes] == [False, True]
    assert "+1.0 ns" in diff_text.to_text(found)
    assert found.failures(0.05) == []
    assert len(found.failures(0.0)) == 1
    content = json.loads(diff.to_json(found))
    assert content["changes"][1]["ratio"]["low"] is None
    assert content["changes"][1]["chance"] is None


def test_a_state_of_one_side_alone_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = exact_run(tmp_path, monkeypatch, [23_650, 26_114], [0.6, 0.4])
    b = exact_run(tmp_path, monkeypatch, [23_700], [1.0])
    found = diff.compare_runs([a], [b])
    assert [change.figure for change in found.changes] == [
        "state 1 of 2, exact µs",
        "state 2 of 2, exact µs (on one side only)",
    ]
    assert math.isnan(found.changes[1].after)
    assert "NaN" not in diff.to_json(found)
    assert found.failures(0.01) == []
    assert len(diff.compare_runs([b], [a]).changes) == 2


@pytest.mark.parametrize(
    ("values", "shares", "percent"),
    [
        ([20_000, 30_000], [0.1, 0.9], 50.0),  # most messages are slower than any was
        ([19_000, 22_000], [0.1, 0.9], 10.0),  # also if some are faster than any was
        ([20_000, 30_000], [0.9, 0.1], None),  # a few come and go by chance
        ([10_000, 20_000], [0.9, 0.1], None),
    ],
)
def test_a_new_state_that_is_slower_than_all_is_worse_if_it_has_the_median(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[int],
    shares: list[float],
    percent: float | None,
) -> None:
    before = exact_run(tmp_path, monkeypatch, [20_000], [1.0])
    after = exact_run(tmp_path, monkeypatch, values, shares)
    found = diff.compare_runs([before], [after])
    worse = found.failures(0.01)
    assert [change.percent for change in worse] == ([] if percent is None else [pytest.approx(percent)])
    assert (after["udp"] <= 1.01 * hwrx.Baseline(before)) is (percent is None)
    if worse:
        (sentence,) = (1.01 * hwrx.Baseline(before)).judge(after["udp"], "<=").sentences()
        assert "state 2 of 2, exact figure (on one side only; against the slowest state)" in sentence
    assert not diff.compare_runs([after], [before]).failures(0.1)


# --- what belongs together -----------------------------------------------------------------------------------------


def test_loads_are_compared_with_the_same_load(tmp_path: pathlib.Path) -> None:
    layout = made_runs.layout(paths=["udp"], sizes=[64], patterns=["paced"], rate=100.0)
    key = capacity_key(layout.settings[0], layout.experiment)
    options: dict[str, Any] = {"paths": ["udp"], "sizes": [64], "patterns": ["paced"]}
    runs = [
        hwrx.load(made_runs.make(tmp_path, load=load, capacity={key: rate}, **options))
        for load, rate in (((0.1, 1.1), 1000.0), ((1.1, 0.1), 1500.0))
    ]
    found = diff.compare_runs(runs[:1], runs[1:])
    assert found.only == []
    assert {change.row for change in found.changes} == {
        "udp at 10 % load 64 B paced event",
        "udp at 110 % load 64 B paced event",
    }
    assert all(abs(change.percent) < 20 for change in found.changes if change.figure == "p50 µs")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": 1300}, "messages 1300 against 1200"),
        ({"setting": {"window": 8}}, "window"),
        ({"setting": {"netem": "loss 1%"}}, "netem"),
    ],
)
def test_another_setting_is_another_row(tmp_path: pathlib.Path, options: dict[str, Any], words: str) -> None:
    base = {"paths": ["udp"], "sizes": [64], "patterns": ["stream"], "repeats": 2}
    a = hwrx.load(made_runs.make(tmp_path, **base))
    b = hwrx.load(made_runs.make(tmp_path, **base, **options))
    with pytest.raises(UsageError, match=f"no setting in common.*{words}"):
        diff.compare_runs([b], [a])
    if "messages" in options:
        assert diff.compare_runs([b], [a], anyway=True).changes


def test_trials_of_two_durations_are_compared_anyway(tmp_path: pathlib.Path) -> None:
    base = {"paths": ["udp"], "sizes": [64], "patterns": ["pingpong"], "repeats": 2}
    a, b, counted = (
        hwrx.load(made_runs.make(tmp_path, **base, messages=1200, **more))
        for more in ({"setting": {"duration": 1.0}}, {"setting": {"duration": 2.0}}, {})
    )
    with pytest.raises(UsageError, match=r"no setting in common.*duration 2.0 against 1.0"):
        diff.compare_runs([a], [b])
    assert diff.compare_runs([a], [b], anyway=True).changes
    assert diff.compare_runs([counted], [b], anyway=True).changes


@pytest.mark.parametrize(
    ("manifest", "options", "words"),
    [
        ({"emulated": False}, {}, r"on an emulated machine, .* on a real one"),
        ({"machine": {"kernel": {"release": "6.12"}}}, {}, r"their kernels differ \(6.1.0-test, 6.12\)"),
        ({}, {"clock": "icount", "setting": {"schedule": "normal"}}, r"one counts wall time, the other icount time"),
        ({}, {"topology": "pair"}, r"their topologies differ \(netns, pair\)"),
        ({}, {"trace": True}, r"one was traced"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(
    tmp_path: pathlib.Path, manifest: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    a = hwrx.load(made_runs.make(tmp_path))
    b = hwrx.load(made_runs.make(tmp_path, manifest={**made_runs.MANIFEST, **manifest}, **options))
    with pytest.raises(UsageError, match=words + r"[^\n]*\n.*--anyway"):
        diff.compare_runs([a], [b])
    with pytest.raises(UsageError, match=words):
        diff.compare_runs([a, b], [a])
    assert diff.compare_runs([a], [b], anyway=True).changes


def test_what_has_no_setting_in_common_is_told_a_way_that_was_not_tried(tmp_path: pathlib.Path) -> None:
    a = hwrx.load(made_runs.make(tmp_path, paths=["udp"]))
    b = hwrx.load(made_runs.make(tmp_path, paths=["tcp"]))
    with pytest.raises(UsageError, match="no setting in common") as caught:
        diff.compare_runs([a], [b])
    assert "--anyway" in caught.value.remedy
    with pytest.raises(UsageError, match="no setting in common") as caught:
        diff.compare_runs([a], [b], anyway=True)
    assert not caught.value.remedy


def test_settings_of_one_run_alone_are_named_and_none_in_common_is_an_error(tmp_path: pathlib.Path) -> None:
    a, b, c = (
        hwrx.load(made_runs.make(tmp_path, paths=["udp", *more], sizes=sizes, repeats=2))
        for more, sizes in (([], [64]), (["tcp"], [64]), ([], [128]))
    )
    assert diff.compare_runs([a], [b]).only == [("b", "tcp 64 B pingpong event")]
    assert diff.compare_runs([b], [a]).only == [("a", "tcp 64 B pingpong event")]
    with pytest.raises(UsageError, match="no setting in common"):
        diff.compare_runs([a], [c])


def test_settings_without_a_figure_are_named(tmp_path: pathlib.Path) -> None:
    few, many = (hwrx.load(made_runs.make(tmp_path, paths=["udp"], sizes=[64], messages=15)) for _ in range(2))
    with pytest.raises(UsageError, match="no figure in common: udp 64 B pingpong event has no figure in all runs"):
        diff.compare_runs([few], [many])


def test_a_damaged_part_is_named_and_the_rest_compared(tmp_path: pathlib.Path) -> None:
    runs = [made_runs.make(tmp_path, seed=seed, paths=["udp"], sizes=[64, 128], repeats=4) for seed in (1, 2)]
    samples = runs[1] / "samples.parquet"
    content = bytearray(samples.read_bytes())
    content[len(content) // 3] ^= 1
    samples.write_bytes(content)
    found = diff.compare_runs(*([run] for run in load(runs)))
    assert {change.row for change in found.changes} == {"udp 64 B pingpong event", "udp 128 B pingpong event"}
    (lost,) = found.lost
    assert lost.startswith(f"{runs[1].name}: ")
    assert "lost: " in diff_text.to_text(found)
    assert json.loads(diff.to_json(found))["lost"] == [lost]


def test_one_repeat_a_side_cannot_be_judged_and_is_null_in_json(tmp_path: pathlib.Path) -> None:
    runs = [hwrx.load(made_runs.make(tmp_path, seed=seed, repeats=1)) for seed in (1, 2)]
    found = diff.compare_runs(runs[:1], runs[1:])
    assert not any(change.told_apart for change in found.changes)
    assert "NaN" not in diff.to_json(found)
    assert all(change["ratio"]["low"] is None for change in json.loads(diff.to_json(found))["changes"])
    assert "cannot be judged" in diff_text.to_text(found)


# --- the test itself -----------------------------------------------------------------------------------------------


def test_groups_are_compared_by_welch() -> None:
    a, b = [100.0, 130.0, 95.0, 111.0], [50.0, 66.0, 47.0]
    ours = stats.compare_groups(b, a)
    theirs = scipy.stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    interval = theirs.confidence_interval()
    assert (ours.ratio.low, ours.ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert ours.chance == pytest.approx(theirs.pvalue)


def test_one_against_many_has_their_spread() -> None:
    """The prediction interval of one more value."""
    base = [100.0, 104.0, 97.0, 101.0, 99.0]
    found = stats.compare_groups(base, [110.0])
    logs = np.log(base)
    error = scipy.stats.t.ppf(0.975, 4) * logs.std(ddof=1) * math.sqrt(1 + 1 / 5)
    assert math.log(found.ratio.high / found.ratio.value) == pytest.approx(error)
    assert math.isnan(stats.compare_groups([1.0], [2.0]).chance)


def test_equal_figures_are_equal_and_unequal_ones_of_no_spread_are_not() -> None:
    assert stats.compare_groups([5.0, 5.0], [5.0, 5.0]).chance == 1.0
    assert stats.compare_groups([5.0, 5.0], [6.0, 6.0]).chance == 0.0
    assert stats.compare_groups([5.0, 5.0], [6.0, 6.0], step=0.21).chance == 1.0


def test_holms_correction() -> None:
    assert stats.holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm_adjusted([]) == []
    assert stats.holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
