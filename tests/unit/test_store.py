"""The run directory: what is written is read back, whatever became of the writer."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import made_runs
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hwrx
from hwrx.control.messages import Done
from hwrx.errors import StoreError, UsageError
from hwrx.host import disk
from hwrx.runs import experiment, planning, schema, store
from hwrx.runs.schedule import Measured, Outcome, write_trial


def test_a_complete_run_reads_back(tmp_path: pathlib.Path) -> None:
    path = made_runs.make(tmp_path, patterns=["pingpong", "stream"])
    run = hwrx.load(path)
    assert run.status == "complete"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "experiment.toml",
        "log.txt",
        "manifest.json",
        "samples.parquet",
        "trials.jsonl",
        "trials.parquet",
    ]
    assert run.experiment.seed == 1
    assert run.trials.num_rows == 24
    assert run.samples.num_rows == 24 * 1200
    row, samples = next(run.each_trial())
    trial = made_runs.layout(patterns=["pingpong", "stream"]).trials[0]
    assert row["label"] == trial.label
    assert (row["path"], row["size"], row["messages"]) == (trial.setting.path, trial.setting.size, 1200)
    assert row["part"] == 1
    assert (row["delivered"], row["cpu_client_thread"], row["resident_server"]) == (1200, 7_200_000, 31 << 20)
    assert json.loads(row["chosen"])["client"] == {"mtu": 1024}
    block = float(np.random.default_rng([0, 1000]).normal(0, 0.02))
    expected = made_runs.times(trial.setting, np.random.default_rng([0, 0]), block)
    assert np.array_equal(samples.ns, expected)
    assert np.array_equal(samples.sequence, np.arange(1200))
    assert samples.service_ns is None


def test_samples_have_compact_types_and_few_bytes(tmp_path: pathlib.Path) -> None:
    path = made_runs.make(tmp_path, messages=50_000, repeats=1)
    file = pq.ParquetFile(path / "samples.parquet")
    assert file.schema_arrow.equals(schema.SAMPLES)
    assert file.num_row_groups == 4
    assert (path / "samples.parquet").stat().st_size < 4 * file.metadata.num_rows


def test_paced_trials_keep_service_time_beside_response_time(tmp_path: pathlib.Path) -> None:
    run = hwrx.load(made_runs.make(tmp_path, patterns=["paced"], rate=1000.0))
    _, samples = next(run.each_trial())
    assert samples.service_ns is not None
    assert np.array_equal(samples.service_ns, samples.ns // 2)


def test_latest_points_to_the_newest(tmp_path: pathlib.Path) -> None:
    first, second = made_runs.make(tmp_path, repeats=1), made_runs.make(tmp_path, repeats=1)
    assert first != second
    assert (tmp_path / "latest").resolve() == second.resolve()
    assert hwrx.load(tmp_path / "latest").path == second.resolve()


def test_something_else_named_latest_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "latest").mkdir()
    made_runs.make(tmp_path, repeats=1)
    assert not (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(KeyboardInterrupt(), "interrupted", "by the user"), (StoreError("the cable is out"), "partial", "cable is out")],
)
def test_what_breaks_a_run_off_is_in_its_manifest(
    tmp_path: pathlib.Path, error: BaseException, status: str, reason: str
) -> None:
    plan = made_runs.layout()
    with pytest.raises(type(error)), store.Writer.create(tmp_path, plan, {}) as writer:
        made_runs.add(writer, plan.trials[0])
        raise error
    run = hwrx.load(writer.path)
    assert run.status == status
    assert reason in run.reason
    assert [row["trial"] for row, _ in run.each_trial()] == [0]


def test_fewer_trials_than_planned_are_never_complete(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        made_runs.add(writer, plan.trials[0])
    run = hwrx.load(writer.path)
    assert (run.status, run.reason) == ("partial", "1 of 12 trials were run")


def test_a_run_in_progress_can_be_read_and_says_so(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        assert hwrx.load(writer.path).status == "running"
        assert hwrx.load(writer.path).samples.num_rows == 0
        made_runs.add(writer, plan.trials[0])
        assert hwrx.load(writer.path).samples.num_rows == 1200


WRITE_FOR_EVER = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
import made_runs
from hwrx.runs import store
plan = made_runs.layout(repeats=2000, messages=300)
with store.Writer.create(pathlib.Path(sys.argv[1]), plan, {}) as writer:
    for trial in plan.trials:
        made_runs.add(writer, trial)
        if trial.number == int(sys.argv[3]):
            print("now", flush=True)
        if len(sys.argv) > 4 and trial.number == int(sys.argv[4]):
            break
"""


@pytest.mark.parametrize(("trial", "after"), [(0, 0.0), (3, 0.0031), (5, 0.0117), (8, 0.0173), (20, 0.0009)])
def test_a_killed_run_is_readable_up_to_the_trial(tmp_path: pathlib.Path, trial: int, after: float) -> None:
    here = str(pathlib.Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), here, str(trial)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "partial"
    assert run.reason == "the process that wrote it was killed"
    got = [row["trial"] for row, samples in run.each_trial() if len(samples.ns) == 300]
    assert got == list(range(len(got)))
    assert len(got) > trial


@pytest.mark.parametrize("after", [0.001, 0.004, 0.016, 0.05])
def test_a_run_killed_while_it_merges_is_readable(tmp_path: pathlib.Path, after: float) -> None:
    here = str(pathlib.Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), here, "60", "60"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "partial"
    assert [row["trial"] for row, samples in run.each_trial() if len(samples.ns) == 300] == list(range(61))


def test_a_torn_last_line_of_the_journal_is_left_out(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        made_runs.add(writer, plan.trials[0])
        with (writer.path / "trials.jsonl").open("a") as file:
            file.write('{"trial": 1, "rep')
        assert [row["trial"] for row in hwrx.load(writer.path).rows] == [0]


def test_samples_that_the_journal_does_not_know_are_not_shown(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        made_runs.add(writer, plan.trials[0])
        made_runs.add(writer, plan.trials[1])
        journal = writer.path / "trials.jsonl"
        journal.write_text(journal.read_text().splitlines(keepends=True)[0])
        assert hwrx.load(writer.path).samples.num_rows == 1200
        writer.finish("partial")
    assert hwrx.load(writer.path).samples.num_rows == 1200


FILL = """
import sys, pathlib, resource
sys.path.insert(0, sys.argv[2])
import made_runs
from hwrx.runs import store
from hwrx.errors import StoreError
plan = made_runs.layout(messages=100_000)
small = made_runs.layout(messages=2_000)
try:
    with store.Writer.create(pathlib.Path(sys.argv[1]), plan, {}) as writer:
        made_runs.add(writer, small.trials[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        made_runs.add(writer, plan.trials[1])
except StoreError as error:
    print(error)
"""


def test_no_room_is_said_in_words_and_what_was_there_stays(tmp_path: pathlib.Path) -> None:
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path), here], capture_output=True, text=True, check=True)
    assert "cannot write the run in" in done.stdout
    assert "limit on the size of a file (ulimit -f) is reached" in done.stdout
    assert "remedy: make room" in done.stdout
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "partial"
    assert "limit on the size of a file" in run.reason
    assert run.samples.num_rows == 2000
    assert not list(run.path.glob("**/.*"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write the run in .*file"):
        store.Writer.create(tmp_path / "file", made_runs.layout(), {})


def test_resume_runs_what_is_missing_and_what_failed(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with pytest.raises(KeyboardInterrupt), store.Writer.create(tmp_path, plan, {"kernel": "6.1"}) as writer:
        for trial in plan.trials[:3]:
            made_runs.add(writer, trial)
        writer.add_trial(plan.trials[3], status="failed", error="cable out", sequence=np.zeros(5, np.uint32),
                         ns=np.ones(5, np.int64))  # fmt: skip
        raise KeyboardInterrupt
    again, left = store.Writer.resume(writer.path, {"kernel": "6.12"})
    assert [trial.number for trial in left.trials] == list(range(3, 12))
    with again:
        for trial in left.trials:
            made_runs.add(again, trial)
    run = hwrx.load(writer.path)
    assert run.status == "complete"
    assert run.samples.num_rows == 12 * 1200
    assert sorted(row["trial"] for row in run.rows) == list(range(12))
    assert {row["status"] for row in run.rows} == {"ok"}
    assert run.manifest["resumed"][0]["changed"] == {"kernel": "6.12"}
    whole = hwrx.load(made_runs.make(tmp_path / "whole"))
    key = [("trial", "ascending"), ("sequence", "ascending")]
    assert (
        run.samples.sort_by(key)
        .drop_columns(["path", "pattern"])
        .equals(whole.samples.sort_by(key).drop_columns(["path", "pattern"]))
    )


def test_resume_refuses_a_run_that_is_complete_or_still_going(tmp_path: pathlib.Path) -> None:
    path = made_runs.make(tmp_path)
    with pytest.raises(StoreError, match="complete: there is nothing to resume"):
        store.Writer.resume(path)
    with store.Writer.create(tmp_path, made_runs.layout(), {}) as writer:
        with pytest.raises(StoreError, match=f"still being written by process {os.getpid()}"):
            store.Writer.resume(writer.path)
        made_runs.add(writer, made_runs.layout().trials[0])


def test_resume_leaves_out_what_was_skipped(tmp_path: pathlib.Path) -> None:
    def no_udp(setting: made_runs.Setting) -> None:
        if setting.path == "udp":
            raise experiment.UsageError("no")

    asked = experiment.from_options(paths=["udp", "tcp"], messages=1200, seed=3, name="made")
    plan = planning.plan_run(asked, no_udp)
    with pytest.raises(KeyboardInterrupt), store.Writer.create(tmp_path, plan, {}) as writer:
        raise KeyboardInterrupt
    again, left = store.Writer.resume(writer.path)
    assert left.trials == plan.trials
    again.finish("partial")


def test_extra_tables_are_merged_too(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        for trial in (0, 1):
            made_runs.add(writer, plan.trials[trial])
            writer.add_table("stages", pa.table({"trial": [trial] * 3, "stage": ["a", "b", "c"], "ns": [1, 2, 3]}))
        stages = hwrx.load(writer.path).table("stages")
        assert stages is not None
        assert stages.num_rows == 6
    run = hwrx.load(writer.path)
    merged = run.table("stages")
    assert merged is not None
    assert merged.to_pydict() == stages.to_pydict()
    assert run.table("copies") is None


def test_what_is_no_run_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StoreError, match=r"no run .*latest \(no run has been made here\)"):
        hwrx.load(tmp_path / "latest")
    with pytest.raises(StoreError, match="it has no manifest"):
        hwrx.load(tmp_path)


def test_the_store_keeps_its_own_keys(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="status"):
        store.Writer.create(tmp_path, made_runs.layout(), {"status": "complete"})
    assert not list(tmp_path.iterdir())


def test_log_lines_carry_the_time(tmp_path: pathlib.Path) -> None:
    with store.Writer.create(tmp_path, made_runs.layout(), {}) as writer:
        writer.log("one\ntwo")
    lines = (writer.path / "log.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["one", "two"]


def test_late_answers_are_samples_that_say_so(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(repeats=1)
    numbers, ns, late = np.arange(3, dtype=np.uint32), np.array([5, 6, 700]), np.array([False, False, True])
    with store.Writer.create(tmp_path, plan, {}) as writer:
        writer.add_trial(plan.trials[0], status="ok", sequence=numbers, ns=ns, late=late)
        made_runs.add(writer, plan.trials[1])
        with pytest.raises(ValueError, match="late"):
            writer.add_trial(plan.trials[2], status="ok", sequence=numbers, ns=ns, late=late[:1])
    run = hwrx.load(writer.path)
    assert run.trial_samples(0).late.tolist() == [False, False, True]
    assert not run.trial_samples(1).late.any()


def test_what_could_not_be_read_again_is_not_begun(tmp_path: pathlib.Path) -> None:
    asked = experiment.from_options(paths=["udp"], name="made")
    endless = msgspec.structs.replace(asked, budget=float("inf"))
    with pytest.raises(UsageError):
        store.Writer.create(tmp_path, endless, {})
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links_costs_latest_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: pathlib.Path, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "symlink_to", refuse)  # no such file system can be mounted everywhere
    path = made_runs.make(tmp_path, repeats=1)
    assert hwrx.load(path).status == "complete"
    assert "latest does not point to this run: no symbolic link can be made here" in (path / "log.txt").read_text()


def test_room_is_looked_for_before_anything_is_measured(tmp_path: pathlib.Path) -> None:
    disk.check_place(tmp_path / "new" / "runs", 4096)
    assert list((tmp_path / "new" / "runs").iterdir()) == []
    with pytest.raises(StoreError, match=r"it will take about 1000000000000.0 MB, and [0-9.]+ MB are free"):
        disk.check_place(tmp_path, 10**18)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write the run in"):
        disk.check_place(tmp_path / "file", 0)


def test_an_older_run_is_read_and_not_gone_on_with(tmp_path: pathlib.Path) -> None:
    old = shutil.copytree(pathlib.Path(__file__).parents[1] / "data" / "format-1", tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps({**manifest, "status": "partial"}))
    with pytest.raises(StoreError, match=r"whose format can be read only\n.*hwrx compare .*experiment.toml"):
        store.Writer.resume(old)


def test_a_trial_has_the_fields_that_its_path_reads(tmp_path: pathlib.Path) -> None:
    run = hwrx.load(made_runs.make(tmp_path, repeats=1, sizes=[64]))
    by_path = {line["setting"]["path"]: line["setting"] for line in run.journal}
    assert "signal_every" in by_path["rdma-send"]
    assert "signal_every" not in by_path["udp"]
    assert "socket_buffer" in by_path["udp"]
    assert "socket_buffer" not in by_path["rdma-send"]
    assert {row.path: row.setting["signal_every"] for row in run.summary().rows} == {"udp": 16, "rdma-send": 16}


def test_names_that_are_no_text_are_kept_as_they_were(tmp_path: pathlib.Path) -> None:
    strange = os.fsdecode(b"caf\xe9")
    with store.Writer.create(tmp_path / strange, made_runs.layout(), {"command": ["hwrx", strange]}) as writer:
        made_runs.add(writer, made_runs.layout().trials[0])
        writer.log(f"left out: {strange}")
    assert hwrx.load(writer.path).manifest["command"] == ["hwrx", strange]
    assert hwrx.load(writer.path).damage == []


def test_whatever_the_file_system_refuses_is_a_store_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StoreError, match="file name too long"):
        store.Writer.create(tmp_path / ("x" * 300), made_runs.layout(), {})
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError, match=r"cannot write the run in .*loop"):
        store.Writer.create(tmp_path / "loop", made_runs.layout(), {})


def test_runs_that_begin_in_one_second_have_names_of_their_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = made_runs.make(tmp_path, repeats=1)
    hidden = tmp_path / ".hidden"
    (hidden / "parts").mkdir(parents=True)
    seen = pathlib.Path.exists
    monkeypatch.setattr(pathlib.Path, "exists", lambda path: path != taken and seen(path))  # as if it came just then
    assert store._settle(hidden, taken).name == f"{taken.name}-2"


def test_which_answers_were_late_goes_from_the_trial_into_the_run(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout(repeats=1)
    done = Done(tally={}, ended="complete")
    measured = Measured(
        np.arange(2, dtype=np.uint32), np.array([5, 900]), None, {}, done, done, {}, late=np.array([False, True])
    )
    with store.Writer.create(tmp_path, plan, {}) as writer:
        write_trial(plan.trials[0], measured, writer, Outcome())
    assert hwrx.load(writer.path).trial_samples(0).late.tolist() == [False, True]
