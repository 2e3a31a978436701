"""A campaign on a real Slurm, which the test starts on this machine: three nodes, of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import LIMIT, PROGRAMS, Cluster, slurm_cluster, wait_for

from hwrx.campaign.book import Book

CELLS = """
paths = ["udp"]
topology = "here"
repeats = 1
[setting]
messages = 40
[campaign.settings]
messages = {messages}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, needs: Callable[..., None]) -> Iterator[Cluster]:
    needs(*PROGRAMS)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def start(cluster: Cluster, file: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hwrx", "campaign", "run", file, "--slurm", "--out", file.with_suffix(""), *words]
    return subprocess.Popen(
        list(map(str, command)), env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_ctrl_c_takes_the_cells_out_of_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "long.toml"
    file.write_text(CELLS.format(messages=[2_000_001, 2_000_002, 2_000_003, 2_000_004]))
    driver = start(cluster, file)
    wait_for("cells run", lambda: cluster.processes_of())
    os.kill(driver.pid, signal.SIGINT)
    driver.communicate(timeout=LIMIT)
    assert driver.returncode == 130
    wait_for("the queue is empty", lambda: not cluster.ask("squeue", "-h").strip())
    assert [each.state for each in Book.open(tmp_path / "long").content.cells] == ["planned"] * 4

    # what Slurm does not take it says in its own words
    refused = start(cluster, file, "--sbatch=--partition=nowhere")
    _, errors = refused.communicate(timeout=LIMIT)
    assert refused.returncode == 3 and "invalid partition" in errors.lower()


def test_twenty_cells_are_done_though_a_node_and_the_driver_are_killed(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "cells.toml"
    file.write_text(CELLS.format(messages=list(range(41, 61))))
    folder = tmp_path / "cells"

    def cells() -> list[Any]:
        return list(Book.open(folder).content.cells) if (folder / "campaign.json").exists() else []

    driver = start(cluster, file)
    on_two = wait_for(
        "a cell runs on n2 and another one is done",
        lambda: [
            each.cell.number
            for each in cells()
            if each.state == "running"
            and each.attempts[-1].where == "n2"
            and any(other.state == "done" for other in cells())
            and cluster.processes_of("n2")
        ],
    )
    cluster.kill_node("n2")
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    driver = start(cluster, file, "--json")
    said, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, errors
    lines = json.loads(said)["lines"]
    assert [line["state"] for line in lines] == ["done"] * 20
    assert all(line["figures"] for line in lines)
    # what ran on the dead node was carried out by another one
    assert all(cells()[number - 1].attempts[-1].where != "n2" for number in on_two)
