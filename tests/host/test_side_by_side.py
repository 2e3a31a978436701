"""Two guests of one run at the same time, one for each price of a copy: ended whole, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hwrx

pytestmark = pytest.mark.beside

EXPERIMENT = """
name = "prices"
topology = "pair"
clock = "icount"
boot = ["init_on_alloc=0"]
paths = ["udp"]
patterns = ["pingpong", "stream"]
repeats = 3
trace = true
[setting]
messages = 50
warmup = 10
[pattern.stream]
settle = 5_000_000
[sweep]
copies_priced = ["byte", "word"]
"""
LONGEST = 600.0


def guests_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The pids of QEMU whose parent the process is."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            name, _, fields = stat.rpartition(")")
            if "qemu" in name and int(fields.split()[1]) == process.pid:
                found.append(int(folder.name))
    return found


def started(*words: str) -> subprocess.Popen[bytes]:
    # a process in the background may have been told to ignore Ctrl-C
    return subprocess.Popen(
        [sys.executable, "-m", "hwrx", "compare", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.fixture(autouse=True)
def _needs(needs: Callable[..., None]) -> None:
    needs("guest", "two guests")


def test_both_guests_end_with_an_interrupted_run_and_what_it_lacks_is_measured_later(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(EXPERIMENT)
    running = started(str(file), "--runs", str(tmp_path / "runs"))
    try:
        deadline = time.monotonic() + LONGEST
        journal = tmp_path / "runs/latest/trials.jsonl"
        while not (journal.exists() and journal.stat().st_size):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        both = guests_of(running)
        assert len(both) == 2
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    finally:
        running.kill()
        running.wait()
    assert not [pid for pid in both if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110
    run = hwrx.load(tmp_path / "runs/latest")
    assert run.status == "interrupted"
    assert 0 < len(run.rows) < 12
    assert {row["status"] for row in run.rows} == {"ok"}, "no trial is to blame for the user's interrupt"
    again = started("--resume", str(run.path))
    assert again.wait(LONGEST) == 0
    run = hwrx.load(run.path)
    assert (run.status, run.damage) == ("complete", [])
    assert sorted(row["trial"] for row in run.rows) == list(range(12))
    assert {row["copies_priced"] for row in run.rows} == {"byte", "word"}
    for guest in ("guest", "guest, copies priced by the word"):
        assert run.manifest[guest]["append"] == ["init_on_alloc=0"]
    # each of both tells what the other does not have to tell again
    price_of = {row["trial"]: row["copies_priced"] for row in run.rows}
    for table, price in (("actors", "byte"), ("stages", "word"), ("copies", "word")):
        rows = run.table(table)
        assert rows is not None, table
        assert {price_of[trial] for trial in rows["trial"].to_pylist()} == {price}, table
    assert run.manifest["tracing"]["available"]
