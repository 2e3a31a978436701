"""Who writes into a run: one process at a time, any of its threads, and whoever goes on with it."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import threading

import made_runs
import numpy as np
import pyarrow as pa
import pytest

import hwrx
from hwrx.errors import StoreError
from hwrx.host import disk
from hwrx.runs import experiment, planning, reading, schema, seal, store


def stopped(root: pathlib.Path, trials: int = 3) -> pathlib.Path:
    """A run that was stopped after some trials."""
    plan = made_runs.layout()
    with pytest.raises(KeyboardInterrupt), store.Writer.create(root, plan, {}) as writer:
        for trial in plan.trials[:trials]:
            made_runs.add(writer, trial)
        raise KeyboardInterrupt
    return writer.path


def test_a_run_has_one_writer(tmp_path: pathlib.Path) -> None:
    path = stopped(tmp_path)
    one, left = store.Writer.resume(path)
    with pytest.raises(StoreError, match="still being written by"):
        store.Writer.resume(path)
    with disk.locked_directory(path.parent):  # the lock is the run's own
        pass
    with one:
        for trial in left.trials[:2]:
            made_runs.add(one, trial)
    two, left = store.Writer.resume(path)
    assert len(left.trials) == 7
    two.finish("partial")


def test_a_lock_that_somebody_else_holds_is_in_the_way_whatever_the_manifest_says(tmp_path: pathlib.Path) -> None:
    path = stopped(tmp_path)
    hold = f"import fcntl, os; fcntl.flock(os.open({str(path)!r}, 0), 2); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StoreError, match="still being written by another process"):
            store.Writer.resume(path)
        other.communicate(b"\n")
    again, _ = store.Writer.resume(path)
    again.finish("partial")


def test_a_process_number_that_came_again_is_no_writer(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    writer = store.Writer.create(tmp_path, plan, {})
    assert hwrx.load(writer.path).status == "running"
    mine = writer.manifest["process"]
    for other in ({**mine, "began": mine["began"] - 1}, {**mine, "boot": "another"}, {"pid": mine["pid"], "host": "x"}):
        writer.note(process=other)
        assert hwrx.load(writer.path).status == "partial"
    writer.finish("partial")


def test_a_run_that_was_killed_after_its_last_trial_can_end(tmp_path: pathlib.Path) -> None:
    from hwrx.commands.shared.display import Display

    plan = made_runs.layout()
    killed = store.Writer.create(tmp_path, plan, {})
    for trial in plan.trials:
        made_runs.add(killed, trial)
    path = shutil.copytree(killed.path, tmp_path / "copy")
    manifest = {**killed.manifest, "process": {"pid": 1, "boot": "before", "began": 1}}
    (path / schema.MANIFEST).write_bytes(seal.sealed_document(manifest, schema.MANIFEST))
    again, left = store.Writer.resume(path)
    assert left.trials == []
    with again, Display() as display:
        display.trial(0, 0, "")
    assert hwrx.load(path).status == "complete"
    assert hwrx.load(path).samples.num_rows == 12 * 1200
    killed.finish("partial")


def test_parts_that_are_merged_already_do_not_count_twice(tmp_path: pathlib.Path) -> None:
    plan = made_runs.layout()
    with store.Writer.create(tmp_path, plan, {}) as writer:
        for trial in plan.trials:
            made_runs.add(writer, trial)
            for way in ("there", "back"):
                writer.add_table("copies", pa.table({"trial": [trial.number], "way": [way]}))
        parts = shutil.copytree(writer.path / "parts", tmp_path / "parts")
    shutil.copytree(parts, writer.path / "parts")  # as if it had been killed before they were removed
    run = hwrx.load(writer.path)
    assert run.samples.num_rows == 12 * 1200
    copies = run.table("copies")
    assert copies is not None
    assert copies["way"].to_pylist() == ["there", "back"] * 12
    assert run.damage == []


def test_several_threads_may_add_trials_and_tables(tmp_path: pathlib.Path) -> None:
    plan = planning.plan_run(experiment.from_options(paths=["udp", "tcp"], topology="here", repeats=40, seed=1))
    together = threading.Barrier(4)
    with store.Writer.create(tmp_path, plan, {}) as writer:

        def add(share: int) -> None:
            together.wait(60)
            for trial in plan.trials[share::4]:
                count = 1 + trial.number
                writer.add_trial(
                    trial, status="ok", sequence=np.arange(count, dtype=np.uint32), ns=np.full(count, trial.number)
                )
                writer.add_table("drops", pa.table({"trial": pa.array([trial.number], pa.int32())}))
                writer.note(**{f"of {share}": trial.number})
                writer.log(f"trial {trial.number}")

        threads = [threading.Thread(target=add, args=(share,)) for share in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = reading.load_run(writer.path)
    assert (run.status, run.damage) == ("complete", [])
    samples = run.samples.to_pydict()
    for trial in plan.trials:
        assert samples["trial"].count(trial.number) == 1 + trial.number
    assert sorted(run.table("drops")["trial"].to_pylist()) == [trial.number for trial in plan.trials]
    log = (writer.path / "log.txt").read_text().splitlines()
    assert sorted(line.split(maxsplit=1)[1] for line in log) == sorted(f"trial {t.number}" for t in plan.trials)
