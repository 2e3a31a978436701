"""Campaigns on this machine: cells that fail, drivers that are killed, and what is left afterwards: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hwrx.campaign import inside
from hwrx.campaign.book import Book

LIMIT = 120.0  # seconds, against hanging
HEAD = """
paths = ["udp"]
topology = "here"
repeats = 1
[setting]
messages = 40
"""


def start(file: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwrx", "campaign", "run", str(file), "--out", str(file.with_suffix("")), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=file.parent
    )


def campaign(folder: Path, table: str) -> Path:
    file = folder / "cells.toml"
    file.write_text(f"{HEAD}\n[campaign.settings]\n{table}\n")
    return file


def left_of(folder: Path) -> list[int]:
    """The processes that carry out a cell of this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hwrx.campaign.inside" in words and any(word.startswith(bytes(folder)) for word in words):
            found.append(int(process.name))
    return found


def wait_for(what: str, check: Any) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def states(folder: Path) -> list[str]:
    return [each.state for each in Book.open(folder).content.cells] if (folder / "campaign.json").exists() else []


def test_a_cell_that_fails_is_a_cell_and_one_that_cannot_run_is_left_out(tmp_path: Path) -> None:
    # no machine has that CPU; and a datagram holds no 100,000 bytes
    file = campaign(tmp_path, 'cpu = ["any", [8000]]\nsizes = [[64], [100000]]')
    ended = start(file, "--json")
    said, errors = ended.communicate(timeout=LIMIT)
    assert ended.returncode == 1, errors
    lines = json.loads(said)["lines"]
    assert [line["state"] for line in lines] == ["done", "left out", "failed", "left out"]
    assert lines[0]["figures"]["udp 64 B pingpong event"]["value"] > 0
    assert "8000" in lines[2]["reason"] and lines[2]["attempts"] == 1  # it would fail again
    assert "100000" in lines[1]["reason"].replace(",", "")
    assert "1 of 4 cells failed, the first, cpu [8000], sizes [64]" in errors

    # once more: nothing is attempted, and the table is the same to the digit
    again = start(file, "--json")
    repeated, _ = again.communicate(timeout=LIMIT)
    assert (again.returncode, json.loads(repeated)) == (1, json.loads(said))
    shown = subprocess.run(
        [sys.executable, "-m", "hwrx", "campaign", "show", str(tmp_path / "cells")], capture_output=True, text=True
    )
    assert shown.returncode == 0 and "4 cells: 1 done, 2 left out, 1 failed" in shown.stdout


def test_a_driver_that_is_killed_leaves_no_cell_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = campaign(tmp_path, "messages = [41, 42, 43]\n")
    folder = tmp_path / "cells"
    driver = start(file)
    wait_for("a cell is done and another one runs", lambda: {"done", "running"} <= set(states(folder)))
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    wait_for("its cells have ended", lambda: not left_of(folder))
    before = [len(each.attempts) for each in Book.open(folder).content.cells]
    driver = start(file)
    _, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, errors
    cells = Book.open(folder).content.cells
    assert [each.state for each in cells] == ["done"] * 3
    assert len(cells[0].attempts) == before[0] == 1  # what was done was not done again
    assert sum(len(each.attempts) for each in cells) <= 4


def test_ctrl_c_ends_the_cells_and_says_what_is_left_to_do(tmp_path: Path) -> None:
    file = campaign(tmp_path, "messages = [2000000, 42]\n")
    folder = tmp_path / "cells"
    driver = start(file)
    wait_for("a cell runs", lambda: left_of(folder))
    os.kill(driver.pid, signal.SIGINT)
    driver.communicate(timeout=LIMIT)
    assert driver.returncode == 130
    assert left_of(folder) == []
    assert states(folder) == ["planned", "planned"]
    assert [attempt.error for attempt in Book.open(folder).content.cells[0].attempts] == ["interrupted"]


def test_a_cell_whose_process_is_killed_is_attempted_again(tmp_path: Path) -> None:
    file = campaign(tmp_path, "messages = [100000]\n")
    folder = tmp_path / "cells"
    driver = start(file, "--json")
    os.kill(wait_for("the cell runs", lambda: left_of(folder))[0], signal.SIGKILL)
    said, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, errors
    assert json.loads(said)["lines"][0]["attempts"] == 2
    assert "ended without a result" in Book.open(folder).content.cells[0].attempts[0].error


def test_two_drivers_of_one_campaign_are_refused_and_so_is_another_campaign_in_its_folder(tmp_path: Path) -> None:
    file = campaign(tmp_path, "messages = [2000000]\n")
    first = start(file)
    wait_for("a cell runs", lambda: left_of(tmp_path / "cells"))
    second = start(file)
    _, errors = second.communicate(timeout=LIMIT)
    assert second.returncode == 1 and "process" in errors
    os.kill(first.pid, signal.SIGTERM)
    first.communicate(timeout=LIMIT)
    other = start(campaign(tmp_path, "messages = [41]\n"))
    _, errors = other.communicate(timeout=LIMIT)
    assert other.returncode == 2 and "holds another campaign" in errors
    assert left_of(tmp_path / "cells") == []


def test_cells_that_measure_time_do_not_run_side_by_side(tmp_path: Path) -> None:
    refused = start(campaign(tmp_path, "messages = [41, 42]\n"), "--jobs", "2")
    _, errors = refused.communicate(timeout=LIMIT)
    assert refused.returncode == 2 and "in each other's figures" in errors


def test_an_attempt_that_has_its_result_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = tmp_path / "001"
    cell.mkdir()
    (cell / "experiment.toml").write_text(HEAD)
    assert inside.attempt_cell(cell / "attempt-1") == 0
    runs = sorted((cell / "attempt-1").iterdir())
    assert inside.attempt_cell(cell / "attempt-1") == 0  # as a scheduler that queues a job again would
    assert sorted((cell / "attempt-1").iterdir()) == runs
    (cell / "experiment.toml").write_text("paths = ['udp']\nkernel = '/nowhere'\ntopology = 'netns'")
    assert inside.attempt_cell(cell / "attempt-2") == 1
    assert "there is no kernel image /nowhere" in capsys.readouterr().out
