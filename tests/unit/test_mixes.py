"""Distributions of message sizes: what a user may write, what is drawn, and what is refused in words."""

from __future__ import annotations

import itertools
import pathlib

import made_runs
import msgspec
import numpy as np
import pytest

import hwrx
from cython_ext.core.lengths import MOST_ENTRIES, read_entries
from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from hwrx import paths
from hwrx.cli import main
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.errors import UsageError
from hwrx.paths import mixes
from hwrx.report import by_size
from hwrx.report.tables import report_tables
from hwrx.report.words import answer_words
from hwrx.runs import experiment, planning
from hwrx.runs.overrides import setting_of

IMIX = "imix 18:7,524:4,1472:1"


def setting(path: str = "udp", mix: str = IMIX, **fields: object) -> Setting:
    size = mixes.read_mix(mix).sizes[-1]
    return msgspec.convert({"path": path, "mix": mix, "size": size, "messages": 20_000, **fields}, Setting)


# --- what a user may write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("imix", IMIX),
        ("1500:1,64:7,570:4", "64:7,570:4,1500:1"),
        ("64:14, 64:2".replace(" ", ""), "64:1"),
        ("64:2,100:4", "64:1,100:2"),
        (IMIX, IMIX),
    ],
)
def test_a_mix_has_one_form_however_it_is_written(words: str, form: str) -> None:
    assert mixes.parse_mix(words).words == form
    assert mixes.read_mix(form).words == form


def test_a_lognormal_has_its_median_and_ends_at_its_largest() -> None:
    mix = mixes.parse_mix("lognormal( 500, 1 , 1400 )")
    assert mix.name == "lognormal(500,1,1400)"
    drawn = mixes.draw_sizes(setting(mix=mix.words), 0, 5, fetched=False)
    assert float(np.median(drawn)) == pytest.approx(500, rel=0.03)
    assert drawn.max() == 1400
    assert drawn.min() >= 8
    # ln of it is normal: a sigma below the median lies 15.9 % of it
    assert float(np.mean(drawn < 500 / np.e)) == pytest.approx(0.159, abs=0.01)


def test_a_file_says_how_often_each_size_comes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my trace.txt").write_text("# of a link\n100\n\n100  # again\n9000\n")
    mix = mixes.parse_mix("file:my trace.txt", tmp_path)
    assert mix.words == "my_trace.txt 100:2,9000:1"
    assert mix.mean == pytest.approx(9200 / 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("imux", "nor a distribution of sizes"),
        ("64:0", "a weight is a whole number"),
        ("4:1", "8 to 1073741824 bytes"),
        ("64:1,2000000000:1", "8 to 1073741824 bytes"),
        ("64:-1", "nor a distribution"),
        ("64:1.5", "nor a distribution"),
        ("lognormal(500)", "nor a distribution"),
        ("lognormal(500,0)", "sigma is above 0"),
        ("lognormal(2,1)", "the median"),
        ("lognormal(1.2.3,1)", "nor a distribution"),
        ("file:nowhere", "cannot be read: No such file"),
        ("file:.", "cannot be read: Is a directory"),
        (",".join(f"{size}:1" for size in range(8, 5000)), "at most 4096"),
        ("\x1b[2J", "nor a distribution"),
    ],
)
def test_what_is_no_mix_is_refused_in_words(words: str, said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        mixes.parse_mix(words, tmp_path)
    assert caught.value.remedy
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [("64\nabc\n", "line 2: 'abc'"), ("\n", "has none"), ("5\n", "8 to ")])
def test_a_file_that_is_none_of_sizes_is_refused_with_the_line(tmp_path: pathlib.Path, text: str, said: str) -> None:
    (tmp_path / "sizes").write_text(text)
    with pytest.raises(UsageError, match=said):
        mixes.parse_mix("file:sizes", tmp_path)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_draws_belong_to_the_seed_and_the_repeat_and_not_to_the_path() -> None:
    one = mixes.draw_sizes(setting(), 1, 7, fetched=False)
    assert np.array_equal(one, mixes.draw_sizes(setting("rdma-send"), 1, 7, fetched=False))
    assert not np.array_equal(one, mixes.draw_sizes(setting(), 2, 7, fetched=False))
    assert not np.array_equal(one, mixes.draw_sizes(setting(), 1, 8, fetched=False))
    counts = {size: int(np.sum(one == size)) for size in (18, 524, 1472)}
    assert counts[18] / len(one) == pytest.approx(7 / 12, abs=0.01)
    assert counts[1472] / len(one) == pytest.approx(1 / 12, abs=0.01)


def test_the_generator_is_the_one_that_old_runs_were_made_with() -> None:
    """A report finds the sizes again; another sequence would make old runs mean something else."""
    assert mixes.draw_sizes(setting(), 0, 1, fetched=False)[:8].tolist() == [18, 524, 18, 524, 18, 18, 18, 524]


def test_a_table_is_bounded_and_a_slot_that_is_read_keeps_its_size() -> None:
    assert mixes.table_entries(setting(messages=10**9), fetched=False) == mixes.ENTRIES
    reads = mixes.draw_sizes(setting("rdma-read"), 1, 7, fetched=True)
    assert len(reads) == read_entries(1472) == MOST_ENTRIES
    assert np.array_equal(reads, mixes.draw_sizes(setting(), 1, 7, fetched=False)[:MOST_ENTRIES])
    assert read_entries(1 << 30) == 2


def test_recorded_messages_count_from_the_end_of_the_warmup() -> None:
    table = mixes.draw_sizes(setting(warmup=5), 0, 3, fetched=False)
    found = mixes.sizes_of(setting(warmup=5), 0, 3, np.array([0, 2, len(table)], np.uint32), fetched=False)
    assert found.tolist() == [table[5], table[7], table[5]]


def test_classes_hold_all_sizes_once() -> None:
    assert mixes.size_classes(mixes.read_mix(IMIX)) == [(18, 18), (524, 524), (1472, 1472)]
    classes = mixes.size_classes(mixes.parse_mix("lognormal(500,1)"))
    assert 4 <= len(classes) <= mixes.CLASSES
    assert all(before[1] < after[0] for before, after in itertools.pairwise(classes))


# --- in a setting, an experiment, a command --------------------------------------------------------------------------


def test_a_mix_is_of_messages_up_to_the_size() -> None:
    with pytest.raises(UsageError, match="longest message of the mix has 1472 bytes, and the size is 64"):
        paths.check_setting(Setting(path="udp", mix=IMIX, size=64))


def test_an_experiment_keeps_the_weights_and_not_the_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "trace").write_text("100\n200\n")
    file = tmp_path / "a.toml"
    file.write_text('paths = ["udp", "rdma-fetch-add"]\nsizes = [64, "file:trace"]\nrepeats = 1\n')
    found = experiment.load_experiment(file)
    assert found.sizes == (64, "trace 100:1,200:1")
    again = experiment.parse_experiment(experiment.dump_experiment(found), source="the run")
    assert again.sizes == found.sizes
    plan = planning.plan_run(found)
    assert {(each.path, each.size, each.mix) for each in plan.settings} >= {
        ("udp", 64, ""), ("udp", 200, "trace 100:1,200:1"),
    }  # fmt: skip
    assert "udp trace pingpong event" in [trial.label for trial in plan.trials]
    refused = [skip for skip in plan.skipped if skip.label == "rdma-fetch-add trace pingpong event"]
    assert "does not read mix" in refused[0].reason


def test_two_mixes_of_one_name_are_told_apart(tmp_path: pathlib.Path) -> None:
    for folder, sizes in (("a", "100\n200\n"), ("b", "100\n100\n100\n200\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.txt").write_text(sizes)
    file = tmp_path / "a.toml"
    file.write_text(
        'paths = ["udp"]\nsizes = [64, "imix", "file:a/s.txt", "file:b/s.txt"]\npatterns = ["paced"]\nload = [0.5]'
    )
    found = experiment.load_experiment(file)
    plan = planning.plan_run(found)
    labels = {trial.setting.mix: trial.label.split()[1] for trial in plan.trials}
    assert len(set(labels.values())) == 4
    assert labels["imix " + mixes.NAMED["imix"]] == "imix"
    assert all(label.startswith("s.txt~") for words, label in labels.items() if words.startswith("s.txt"))
    assert len(planning.uncalibrated_settings(plan)) == 4


def test_a_capacity_that_was_kept_by_the_label_of_a_mix_is_known() -> None:
    text = (
        'paths = ["udp"]\nsizes = ["imix"]\npatterns = ["paced"]\nload = [0.5]\n[capacity]\n"udp imix event" = 1000.0'
    )
    plan = planning.plan_run(experiment.parse_experiment(text, source="test"))
    assert planning.uncalibrated_settings(plan) == []
    assert plan.settings[0].rate == 500.0


def test_each_mix_has_a_row_of_its_own_whatever_it_is_called(tmp_path: pathlib.Path) -> None:
    sizes = ["s.txt 100:1,200:1", "s.txt 100:3,200:1"]
    run = hwrx.load(made_runs.make(tmp_path, paths=["udp"], sizes=sizes, patterns=["stream"], repeats=2))
    rows = run.summary().rows
    assert [(len(row.repeats), row.setting["mix"]) for row in rows] == [(2, size) for size in sizes]
    assert len({row.label for row in rows}) == 2


def test_the_largest_size_of_a_mix_is_not_said_to_be_that_of_all(tmp_path: pathlib.Path) -> None:
    run = hwrx.load(made_runs.make(tmp_path, paths=["udp"], sizes=["100:1,200:1"], patterns=["stream"], repeats=2))
    assert "messages of up to 200 B a second" in run.summary().answer
    tables = report_tables(run.summary())
    (throughput,) = [table for table in tables if table.name == "throughput"]
    assert {cells[0][0] for _, cells in throughput.rows} == {"up to 200 B"}
    assert "; up to 200 B; 2 repeats" in throughput.caption


def test_a_wrong_size_of_an_experiment_is_named() -> None:
    with pytest.raises(UsageError, match=r"sizes\[1\]: 'imux' is neither a whole number of bytes nor a distribution"):
        experiment.parse_experiment('paths = ["udp"]\nsizes = [64, "imux"]', source="test")


def test_pages_that_are_mapped_hold_no_mix() -> None:
    with pytest.raises(UsageError, match="zerocopy_receive maps whole pages"):
        paths.check_setting(Setting(path="tcp", mix="4096:1,8192:1", size=8192, zerocopy_receive=True))


@pytest.mark.parametrize(
    ("option", "labels"),
    [
        ("64,imix", ["udp 64 B", "udp imix"]),
        ("64:7,570:4,1500:1,100", ["udp 100 B", "udp 64:7,570:4,1500:1"]),
        ("lognormal(500, 1),8", ["udp 8 B", "udp lognormal(500,1)"]),
        ("64:7, 570:4 , 1500:1, 8", ["2 trials", "udp 64:7,570:4,1500:1 pingpong", "udp 8 B"]),
    ],
)
def test_the_option_tells_sizes_and_mixes_apart(
    option: str, labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--paths", "udp", "--size", option, "--repeats", "1", "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for label in labels:
        assert label in shown


def test_a_file_may_have_any_name_without_a_comma(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sizes (1).txt").write_text("64\n1400\n")
    size = f"8, file:{tmp_path}/sizes (1).txt"
    assert main(["compare", "--paths", "udp", "--size", size, "--repeats", "1", "--dry-run"]) == 0
    assert "udp sizes__1_.txt pingpong" in capsys.readouterr().out


def test_a_file_that_never_ends_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero is larger than"):
        mixes.parse_mix("file:/dev/zero")


@pytest.mark.parametrize("option", ["64,-5", ",", "imux", "64:x"])
def test_a_wrong_option_is_told(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--paths", "udp", "--size", option, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "lognormal(MEDIAN,SIGMA)" in " ".join(told.split()) or "names nothing" in told


@pytest.mark.parametrize("sizes", [[], [8, 16, 32], [7, 64], [64, 65]])
def test_a_table_that_is_none_is_refused(sizes: list[int]) -> None:
    table = np.array(sizes, np.uint32)
    with pytest.raises(ValueError, match=r"power of two|are within 8 and"):
        Trial(messages=4, size=64, sizes=table)
    prepare = Prepare(trial=0, role="client", setting=Setting(path="udp"), here=Place(), there=Place())
    with paths.open_endpoint(prepare) as endpoint, pytest.raises(ValueError, match=r"power of two|are within 8 and"):
        endpoint.vary(table)


def test_a_loop_wants_the_same_table_of_both() -> None:
    prepare = Prepare(trial=0, role="client", setting=Setting(path="udp"), here=Place(), there=Place())
    trial = Trial(messages=4, size=64, sizes=np.array([8, 64], np.uint32))
    with paths.open_endpoint(prepare) as endpoint, pytest.raises(ValueError, match="different tables of sizes"):
        loop.run(trial, endpoint, "pingpong", "client")


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_report_tells_each_class_of_sizes_as_it_was_drawn(tmp_path: pathlib.Path) -> None:
    run = hwrx.load(made_runs.make(tmp_path, paths=["udp", "rdma-send"], sizes=["imix"], repeats=2, messages=6000))
    summary = run.summary()
    (table,) = by_size.size_tables(summary)
    told = {(cells[0][0], cells[3][0]): [text for text, _ in cells[4:7]] for _, cells in table.rows}
    for path in ("udp", "rdma-send"):
        drawn = np.concatenate([
            mixes.draw_sizes(setting_of(row), row["repeat"], 1, fetched=False)[row["warmup"] :][: row["messages"]]
            for row in run.rows if row["path"] == path
        ])  # fmt: skip
        for size in (18, 524, 1472):
            count = int(np.sum(drawn == size))
            shares = [f"{100 * count / len(drawn):.1f} %", f"{100 * count * size / drawn.sum():.1f} %"]
            assert told[path, f"{size:,} B"] == [f"{count:,}", *shares]
    assert answer_words(summary.rows, "udp").startswith("At sizes up to 1,472 B, half a round trip over udp")
