"""Every experiment that is shipped can be read, asks a question, and makes trials."""

from __future__ import annotations

import pathlib
import subprocess

import msgspec
import pytest

from hwrx.runs import estimate, experiment, planning, testbed
from hwrx.runs.testbed import Wanted

FOLDER = pathlib.Path(__file__).parents[2] / "lab" / "experiments"
SHIPPED = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_experiment_is_whole(file: pathlib.Path) -> None:
    read = experiment.load_experiment(file)
    assert read.name == file.stem
    assert read.question.splitlines()[0].endswith("?")
    layout = planning.plan_run(read, lambda setting: None)
    assert layout.trials
    assert (
        experiment.parse_experiment(experiment.dump_experiment(layout.experiment), source="again") == layout.experiment
    )


def test_first_experiment_counts_every_path_over_the_same_nics() -> None:
    read = experiment.load_experiment(FOLDER / "first.toml")
    assert (read.topology, read.clock, read.trace) == ("nic", "auto", True)
    counted = msgspec.structs.replace(read, clock="icount")
    layout = planning.plan_run(counted, testbed.setting_checker(counted, Wanted()))
    assert {s.path for s in layout.settings} == {
        "udp", "tcp", "rdma-send", "rdma-write", "rdma-write-imm", "nic-ring", "roce-send",
        "roce-write",
    }  # fmt: skip
    for setting in layout.settings:
        assert setting.wait == "event"
        assert setting.size in (64, 1400, 4096)
    # what cannot be had is said, not left away
    assert {skip.label.split(" event")[0].split(" poll")[0] for skip in layout.skipped} == {
        *(f"rdma-write {size} B pingpong" for size in (64, 1400, 4096)),
        *(f"nic-ring 4096 B {pattern}" for pattern in ("pingpong", "stream")),
    }
    assert all(skip.reason for skip in layout.skipped)


def test_the_experiment_in_wall_clock_time_is_short_and_has_a_p99() -> None:
    layout = planning.plan_run(experiment.load_experiment(FOLDER / "verbs-sockets.toml"), lambda setting: None)
    assert len(layout.trials) < 110
    assert all(trial.setting.messages >= 1000 for trial in layout.trials)
    assert {t.setting.wait for t in layout.trials if t.setting.path == "rdma-write"} == {"poll", "event"}
    assert estimate.estimate_run(layout).seconds < 180


def test_what_instructions_say_of_copies_is_asked_at_both_prices() -> None:
    for name in ("first", "copy-cost"):
        layout = planning.plan_run(experiment.load_experiment(FOLDER / f"{name}.toml"), lambda setting: None)
        assert sorted(boot.copies_priced for boot in planning.boots_of(layout)) == ["byte", "word"], name


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ([], "first"),
        (["--device", "mlx5_0,mlx5_1"], "first"),
        (["--clock", "icount"], "first"),
        (["--clock", "wall"], "verbs-sockets"),
        (["--clock=wall", "--repeats", "1"], "verbs-sockets"),
        (["--here"], "verbs-sockets"),
    ],
)
def test_lab_run_chooses_the_experiment_by_its_options(tmp_path: pathlib.Path, words: list[str], file: str) -> None:
    """The script itself, with a set-up that does nothing and a command that says what it was told."""
    lab, bin_ = tmp_path / "lab", tmp_path / ".venv/bin"
    lab.mkdir()
    bin_.mkdir(parents=True)
    (lab / "run").write_text((FOLDER.parent / "run").read_text())
    (lab / "setup.sh").write_text(f'root="{tmp_path}"\nsetup() {{ cd "$root"; }}\n')
    (bin_ / "hwrx").write_text('#!/bin/sh\necho "$@"\n')
    (bin_ / "hwrx").chmod(0o755)
    done = subprocess.run(["bash", str(lab / "run"), *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["compare", f"lab/experiments/{file}.toml", *words]
