"""What a campaign makes of a Slurm that refuses or does not answer, by commands that stand in for Slurm's own.

A real slurmctld that goes away at the right moment cannot be had; `tests/host/test_campaign_slurm.py` has all else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hwrx.campaign import book, driving, slurm
from hwrx.campaign.cells import Axes, plan_cells
from hwrx.campaign.engines import UnansweredError, Work
from hwrx.commands.shared import campaigns
from hwrx.errors import MachineError
from hwrx.runs import experiment as experiments

SBATCH = """#!/bin/sh
cat > /dev/null
echo "$@" >> {folder}/submitted
case "$*" in *nodde2*) echo "invalid node name specified" >&2; exit 1;; esac
echo 41
"""
SILENT = """#!/bin/sh
echo "Unable to contact slurm controller" >&2
exit 1
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do echo "[$job]" >> {folder}/cancelled; done
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ahead of all others on the PATH, with a Slurm that takes all jobs and then does not answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm.Slurm, "looks_every", 0.01)
    put(folder, sbatch=SBATCH, squeue=SILENT, scancel=SILENT)
    return folder


def put(folder: Path, **scripts: str) -> None:
    for name, text in scripts.items():
        (folder / name).write_text(text.replace("{folder}", str(folder)))
        (folder / name).chmod(0o755)


def campaign(folder: Path, **axes: object) -> book.Book:
    asked = experiments.from_options(name="n", paths=["udp"], topology="here")
    wanted = Axes(**axes)  # type: ignore[arg-type]
    return book.Book.create(
        folder / "c", name="n", question="", asked="", axes=wanted.names, anatomy=False,
        cells=plan_cells(asked, wanted),
    )  # fmt: skip


def drive(made: book.Book) -> None:
    driving.drive_campaign(made, slurm.Slurm(made.path), lambda done, total, line: None)


def standing(made: book.Book) -> list[tuple[str, list[str]]]:
    return [
        (each.state, [attempt.job for attempt in each.attempts]) for each in book.Book.open(made.path).content.cells
    ]


def test_cells_of_a_slurm_that_does_not_answer_go_on_and_are_not_measured_twice(commands: Path, tmp_path: Path) -> None:
    made = campaign(tmp_path, settings={"messages": [41, 42]})
    with pytest.raises(UnansweredError, match="Unable to contact"):
        drive(made)
    assert standing(made) == [("running", ["41_0"]), ("running", ["41_1"])]
    # it answers again: both are still there, then have their results, and nothing was submitted a second time
    put(commands, squeue="#!/bin/sh\necho '41_0|RUNNING|n1'\necho '41_1|PENDING|'\n")
    again = book.Book.open(made.path)
    for each in again.content.cells:
        again.attempt_folder(each).mkdir(exist_ok=True)
        book.write_result(again.attempt_folder(each), book.Result(state="done"))
    drive(again)
    assert standing(made) == [("done", ["41_0"]), ("done", ["41_1"])]
    assert len((commands / "submitted").read_text().splitlines()) == 1


def test_cells_that_cannot_be_cancelled_are_still_running(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = campaign(tmp_path, settings={"messages": [41]})
    put(commands, squeue="#!/bin/sh\necho '41_0|RUNNING|n1'\n")

    def interrupted(done: int, total: int, line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driving.drive_campaign(made, slurm.Slurm(made.path), interrupted)
    assert standing(made) == [("running", ["41_0"])]
    put(commands, scancel=SCANCEL)
    with pytest.raises(KeyboardInterrupt):
        driving.drive_campaign(made, slurm.Slurm(made.path), interrupted)
    assert standing(made) == [("planned", ["41_0"])]


def test_an_array_that_was_taken_is_cancelled_if_the_next_one_is_refused(commands: Path, tmp_path: Path) -> None:
    made = campaign(tmp_path, hosts=("node1", "nodde2"))
    put(commands, scancel=SCANCEL)
    with pytest.raises(MachineError, match="invalid node name"):
        drive(made)
    assert (commands / "cancelled").read_text().split() == ["[41]"]
    assert [state for state, _ in standing(made)] == ["planned", "planned"]
    put(commands, scancel=SILENT)
    with pytest.raises(MachineError, match="could not be cancelled") as caught:
        drive(book.Book.open(made.path))
    assert "scancel 41" in caught.value.remedy


def test_a_cell_that_measures_time_has_its_node_for_itself(commands: Path, tmp_path: Path) -> None:
    made = campaign(tmp_path, settings={"messages": [41]})
    way = campaigns.Way(
        out=None, jobs=None, slurm=True, sbatch=("--partition=lab",), attempts=1, retry=False, over=0.01,
        dry_run=False, as_json=False,
    )  # fmt: skip
    for counted in (False, True):
        engine = campaigns._engine(made, way, [driving.Able(guests=1, counted=counted)])
        engine.start([Work(cell=tmp_path / "cell", attempt=1)])
    timed, exact = (commands / "submitted").read_text().splitlines()
    assert timed.endswith("--exclusive --partition=lab") and "--exclusive" not in exact


def test_jobs_without_a_number_ask_slurm_nothing(commands: Path, tmp_path: Path) -> None:
    put(commands, squeue="#!/bin/sh\ntouch {folder}/asked\n")
    assert slurm.Slurm(tmp_path).standing([""]) == {}
    assert not (commands / "asked").exists()
