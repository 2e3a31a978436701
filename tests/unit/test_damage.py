"""Damaged run directories: what is read is what was written, what is lost is named, and nothing else is lost."""

from __future__ import annotations

import json
import pathlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable

import made_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hwrx
from hwrx.cli import main
from hwrx.errors import HwrxError, StoreError
from hwrx.report import artifact, diff, diff_text
from hwrx.report.summary import summarise_runs
from hwrx.runs import schema, seal, store

ROOT = pathlib.Path(__file__).parents[2]
OLD = ROOT / "tests" / "data" / "format-1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_runs.make(tmp_path_factory.mktemp("runs"), repeats=3, messages=300)


@pytest.fixture
def run(whole: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def killed(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run that was never merged."""
    plan = made_runs.layout(messages=300)
    writer = store.Writer.create(tmp_path, plan, made_runs.MANIFEST)
    for trial in plan.trials[:4]:
        made_runs.add(writer, trial)
        writer.add_table("copies", pa.table({"trial": [trial.number] * 2, "stage": ["a", "b"]}))
    return shutil.copytree(writer.path, tmp_path / "killed")


def flip(path: pathlib.Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def group_at(path: pathlib.Path, number: int) -> int:
    """A byte near the end of a row group's `ns`."""
    column = pq.ParquetFile(path).metadata.row_group(number).column(5)
    return int(column.data_page_offset + column.total_compressed_size - 8)


# --- a wrong bit -----------------------------------------------------------------------------------------------------


def test_a_wrong_bit_in_the_samples_costs_one_trial(run: pathlib.Path, whole: pathlib.Path) -> None:
    flip(run / "samples.parquet", group_at(run / "samples.parquet", 5))
    found, before = hwrx.load(run), hwrx.load(whole)
    label = before.rows[5]["label"]
    assert found.damage == [f"the samples of 1 of 12 trials are damaged or missing: trial 5 {label}"]
    assert [row["status"] for row in found.rows] == ["damaged" if row["trial"] == 5 else "ok" for row in before.rows]
    with pytest.raises(StoreError, match="samples of trial 5 are damaged"):
        found.trial_samples(5)
    assert [row["trial"] for row, _ in found.each_trial()] == [*range(5), *range(6, 12)]
    for row, samples in found.each_trial():
        assert np.array_equal(samples.ns, before.trial_samples(row["trial"]).ns)
    assert found.samples.num_rows == 11 * 300


def test_the_loss_is_named_by_whatever_reads_the_run(
    run: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "samples.parquet", group_at(run / "samples.parquet", 5))
    found = hwrx.load(run)
    words = "the samples of 1 of 12 trials are damaged or missing: trial 5"
    assert any(words in warning for warning in found.summary().warnings)
    assert found.summary().label.endswith("DAMAGED run")
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    assert words in " ".join(capsys.readouterr().out.split())
    assert words in (tmp_path / "out" / "report.html").read_text()
    diff_text.show_diff(diff.compare_runs([hwrx.load(whole)], [found], anyway=True))
    assert "DAMAGED run" in capsys.readouterr().out
    packed = artifact.pack_artifact(found, tmp_path / "a.tar.gz")
    readme = subprocess.run(["tar", "-xzOf", packed, "run/README.txt"], capture_output=True, text=True, check=True)
    assert words in readme.stdout
    again, left = store.Writer.resume(run)
    assert [trial.number for trial in left.trials] == [5]
    with again:
        assert words in (run / "log.txt").read_text()
        made_runs.add(again, left.trials[0])
    mended = hwrx.load(run)
    assert (mended.damage, mended.status) == ([], "complete")
    assert np.array_equal(mended.trial_samples(5).ns, hwrx.load(whole).trial_samples(5).ns)


@pytest.mark.parametrize("place", [-1, -3, -6, -40, -200])
def test_a_wrong_bit_in_a_footer_costs_nothing(run: pathlib.Path, whole: pathlib.Path, place: int) -> None:
    for name in ("samples", "trials"):
        flip(run / f"{name}.parquet", place)
    found = hwrx.load(run)
    assert "samples.parquet: its footer is damaged, and was read from its copy" in found.damage
    assert found.rows == hwrx.load(whole).rows
    assert found.samples.equals(hwrx.load(whole).samples)


def test_page_checksums_are_written_for_other_readers(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for name in ("samples", "trials"):
        path = run / f"{name}.parquet"
        assert pq.read_table(path, page_checksum_verification=True).num_rows
        copy = tmp_path / "copy.parquet"
        shutil.copyfile(path, copy)
        flip(copy, group_at(path, 0))
        with pytest.raises(OSError, match=r"CRC|corrupt"):
            pq.read_table(copy, page_checksum_verification=True)


def test_a_wrong_bit_in_the_journal_costs_a_line(run: pathlib.Path, killed: pathlib.Path) -> None:
    lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    flip(run / "trials.jsonl", len(lines[0]) + 50)
    found = hwrx.load(run)
    assert "trials.jsonl: 1 of 12 lines are damaged (lines 2)" in found.damage[0]
    assert len(found.rows) == 12, "trials.parquet has them all"
    flip(killed / "trials.jsonl", 50)
    assert [row["trial"] for row in hwrx.load(killed).rows] == [1, 2, 3]
    assert "1 of 4 lines" in hwrx.load(killed).damage[0]


def test_a_wrong_bit_at_the_end_of_the_journal_costs_nothing(killed: pathlib.Path) -> None:
    flip(killed / "trials.jsonl", -1)
    assert [row["trial"] for row in hwrx.load(killed).rows] == [0, 1, 2, 3]


def test_a_wrong_bit_in_the_manifest_is_found(run: pathlib.Path) -> None:
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace("6.1.0-test", "6.2.0-test"))
    with pytest.raises(StoreError, match=r"manifest.json is damaged: it is not what was written"):
        hwrx.load(run)


def test_the_experiment_is_in_the_manifest_too(run: pathlib.Path, whole: pathlib.Path) -> None:
    (run / "experiment.toml").write_text('name = "another"\npaths = ["tcp"]\n')
    assert hwrx.load(run).experiment == hwrx.load(whole).experiment
    (words,) = hwrx.load(run).damage
    assert words.startswith("experiment.toml is not what was written")


def test_a_log_that_was_changed_is_named_and_one_that_grew_is_not(tmp_path: pathlib.Path) -> None:
    with store.Writer.create(tmp_path, made_runs.layout(), made_runs.MANIFEST) as writer:
        made_runs.add(writer, made_runs.layout().trials[0])
        writer.log("something was left out")
    log = writer.path / "log.txt"
    log.write_text(log.read_text() + "and a note of mine\n")
    assert hwrx.load(writer.path).damage == []
    log.write_text("all went well\n")
    assert hwrx.load(writer.path).damage == ["log.txt is not what was written"]


def test_single_bits_change_nothing_in_silence() -> None:
    bench = [sys.executable, str(ROOT / "lab" / "bench" / "bitflips.py"), "--flips", "150", "--json", "--seed", "11"]
    done = subprocess.run(bench, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["flips"] == 150
    assert found["SILENT"] == found["TRACEBACK"] == found["ABORT"] == 0
    assert found["named"] > 50, "the flips must hit what matters"


# --- worse -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_named(run: pathlib.Path, killed: pathlib.Path) -> None:
    (run / "trials.parquet").unlink()
    assert hwrx.load(run).damage == ["trials.parquet is missing"]
    (run / "trials.jsonl").unlink()
    with pytest.raises(StoreError, match=r"neither trials.parquet nor"):
        hwrx.load(run)
    (killed / "parts" / "copies-000004.parquet").unlink()
    assert hwrx.load(killed).damage == ["parts/: 1 parts are missing (the first: 4)"]
    (killed / "parts" / "samples-000005.parquet").unlink()
    assert "trial 2" in hwrx.load(killed).damage[0]


def test_all_samples_gone_is_an_error(run: pathlib.Path) -> None:
    (run / "samples.parquet").unlink()
    with pytest.raises(StoreError, match=r"samples of 12 of 12 trials are damaged or missing: trial 0 .*7 more"):
        hwrx.load(run)


def test_a_file_of_another_run_or_name_is_not_taken(
    run: pathlib.Path, killed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = made_runs.make(tmp_path, repeats=3, messages=300, seed=1)
    for name in ("samples.parquet", "trials.parquet", "trials.jsonl", "manifest.json"):
        copy = shutil.copytree(run, tmp_path / f"with-{name}")
        shutil.copyfile(other / name, copy / name)
        try:
            found = hwrx.load(copy)
        except StoreError:
            continue
        assert found.damage, name
        assert found.samples.equals(hwrx.load(run).samples), name
    one, two = killed / "parts" / "samples-000001.parquet", killed / "parts" / "samples-000003.parquet"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert hwrx.load(killed).contents.lost == {0, 1}


def test_a_truncated_file_keeps_what_is_before(run: pathlib.Path) -> None:
    path = run / "samples.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert hwrx.load(run).contents.lost == set()
    assert hwrx.load(run).damage == ["samples.parquet: its footer is damaged, and was read from its copy"]


def test_a_damaged_part_is_left_out_when_a_run_ends(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(messages=300)
    with store.Writer.create(tmp_path, plan, made_runs.MANIFEST) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
        part = writer.path / "parts" / "samples-000003.parquet"
        flip(part, group_at(part, 0))
    found = hwrx.load(writer.path)
    assert found.contents.lost == {2}
    assert "damaged: the samples of 1 of 12 trials" in (writer.path / "log.txt").read_text()


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(content))
    count = min(draw.choice([1, 16, 512, 4096]), len(content) - first)
    return content[:first] + bytes(count) + content[first + count :]


def repeated(content: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(content))
    return content[:first] + content[first : first + draw.choice([1, 64, 4096])] + content[first:]


def scrambled(content: bytes, draw: random.Random) -> bytes:
    first = draw.randrange(len(content))
    count = min(64, len(content) - first)
    return content[:first] + draw.randbytes(count) + content[first + count :]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


Damage = Callable[[bytes, random.Random], bytes]


@pytest.mark.parametrize("damage", [truncated, zeroed, repeated, scrambled, emptied])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_to_a_file_ends_in_data_or_a_store_error(
    whole: pathlib.Path, killed: pathlib.Path, tmp_path: pathlib.Path, damage: Damage, seed: int
) -> None:
    draw = random.Random(f"{damage.__name__} {seed}")
    for number, original in enumerate((whole, killed)):
        before = hwrx.load(original)
        copy = shutil.copytree(original, tmp_path / f"copy{number}", ignore=lambda folder, names: {".reserve"})
        path = draw.choice(sorted(file for file in copy.rglob("*") if file.is_file() and file.stat().st_size))
        path.write_bytes(damage(path.read_bytes(), draw))
        try:
            found = hwrx.load(copy)
        except StoreError:
            continue
        for row, samples in found.each_trial():
            assert np.array_equal(samples.ns, before.trial_samples(row["trial"]).ns)
        if found.samples.num_rows < before.samples.num_rows:
            assert found.damage or path.name == "trials.jsonl", "a journal cut at a line's end is one that was killed"
        summarise_runs([found])


def wrong_type(tree: object, draw: random.Random) -> object:
    """Put something of another type somewhere into a JSON value."""
    if isinstance(tree, dict) and tree and draw.random() < 0.8:
        key = draw.choice(sorted(tree))
        return {**tree, key: wrong_type(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.8:
        place = draw.randrange(len(tree))
        return [*tree[:place], wrong_type(tree[place], draw), *tree[place + 1 :]]
    return draw.choice([None, True, -1, 10**30, 1.5, "x", "", [], {}, [[]], {"a": None}])


@pytest.mark.parametrize("name", ["manifest.json", "trials.jsonl"])
@pytest.mark.parametrize("seed", range(30))
def test_wrong_types_in_a_run_without_checksums_end_in_data_or_an_error_in_words(
    tmp_path: pathlib.Path, name: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(OLD, tmp_path / "old")
    (copy / "trials.parquet").unlink()
    draw = random.Random(f"{name} {seed}")
    lines = [(copy / name).read_text()] if name == "manifest.json" else (copy / name).read_text().splitlines()
    place = draw.randrange(len(lines))
    lines[place] = json.dumps(wrong_type(json.loads(lines[place]), draw))
    (copy / name).write_text("\n".join(lines) + "\n")
    try:
        run = hwrx.load(copy)
        for _ in run.each_trial():
            pass
        summarise_runs([run])
        diff.compare_runs([run], [run], anyway=True)
    except HwrxError:
        pass


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_run_without_checksums_ends_in_data_or_a_store_error(tmp_path: pathlib.Path, seed: int) -> None:
    draw = random.Random(seed)
    copy = shutil.copytree(OLD, tmp_path / "old")
    one, two = draw.sample(sorted(copy.glob("*.parquet")), 2)
    if draw.random() < 0.5:
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    else:  # in the data: what a wrong bit in a footer does cannot be known before Arrow reads it
        end = pq.ParquetFile(one).metadata.row_group(0).column(0).data_page_offset
        one.write_bytes(one.read_bytes()[:end] + b"\xa5" * 200 + one.read_bytes()[end + 200 :])
    try:
        run = hwrx.load(copy)
        _ = run.samples
        for name in ("stages", "copies", "tracing"):
            run.table(name)
    except StoreError:
        pass


def test_a_run_of_a_newer_hwrx_is_refused(run: pathlib.Path) -> None:
    manifest = {**json.loads((run / "manifest.json").read_text()), "format": 3, "hwrx": "9.9"}
    del manifest["crc32"]
    (run / "manifest.json").write_bytes(seal.sealed_document(manifest, schema.MANIFEST))
    with pytest.raises(StoreError, match=r"written by a newer hwrx \(9\.9, format 3; this one reads up to 2\)"):
        hwrx.load(run)
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="newer hwrx"):
        hwrx.load(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is damaged"), ("[]", "not the manifest of a run"), ('{"format": 1}', "lacks status, name"),
     ('{"format": 0}', "not the manifest of a run"), ('{"format": true}', "not the manifest of a run")],
)  # fmt: skip
def test_what_is_no_manifest_is_said(run: pathlib.Path, text: str, words: str) -> None:
    (run / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=words):
        hwrx.load(run)


# --- anything at all -------------------------------------------------------------------------------------------------


def test_damaged_and_forged_runs_end_in_words() -> None:
    bench = [str(ROOT / "lab" / "bench" / "fuzz_runs"), "--variants", "60", "--json", "--seed", "3"]
    done = subprocess.run(bench, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["variants"] == 60
    assert found["named"] + found["refused"] > 20, "the changes must hit what matters"


@pytest.mark.parametrize(
    "store",
    [{"tables": ["../../etc/passwd"]}, {"tables": 3}, {"documents": ["../x"]}, {"log": {"bytes": -1}}, {"id": 3}],
)
def test_a_forged_manifest_names_nothing_outside_of_the_run(run: pathlib.Path, store: dict[str, object]) -> None:
    file = run / "manifest.json"
    manifest = seal.opened_document(file.read_bytes(), file.name)
    assert manifest is not None
    manifest["store"] |= store
    file.write_bytes(seal.sealed_document(manifest, file.name))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        hwrx.load(run)


def test_a_document_that_is_gone_is_named(tmp_path: pathlib.Path) -> None:
    with store.Writer.create(tmp_path, made_runs.layout(), made_runs.MANIFEST) as writer:
        made_runs.add(writer, made_runs.layout().trials[0])
        writer.add_document("more.json", {"a": 1})
    assert hwrx.load(writer.path).damage == []
    (writer.path / "more.json").unlink()
    assert hwrx.load(writer.path).damage == ["more.json is missing"]


@pytest.mark.parametrize("name", ["log.txt", "experiment.toml", "trials.parquet", "samples.parquet"])
def test_a_folder_in_the_place_of_a_file_is_named(run: pathlib.Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    try:
        assert hwrx.load(run).damage
    except StoreError as error:
        assert "damaged" in str(error)
