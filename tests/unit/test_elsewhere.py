"""The tests' own plugin: a second pytest beside this one, whose reports are as if they were made here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from elsewhere import Lane

HERE = Path(__file__).parents[1]
MADE = """
import os, pytest

pytestmark = pytest.mark.beside

def test_good(): assert os.environ["HWRX_TEST_LANE"] == "beside"
def test_bad(): assert 1 + 1 == 3
def test_gone(): os._exit(7)
def test_after(): pass
"""


def run_pytest(folder: Path, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("HWRX_IN_GUEST", "HWRX_TEST_LANE")}
    environment["PYTHONPATH"] = str(HERE)
    words = [sys.executable, "-m", "pytest", "-p", "elsewhere", "-p", "no:cacheprovider", "-v", *options]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ("elsewhere",)\n')
    for name, text in {"unit/test_here.py": "def test_here(): pass\n", "host/test_made.py": MADE}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_the_other_pytest_says_is_reported_here_in_order(tree: Path) -> None:
    said = run_pytest(tree, "-k", "here or good or bad")
    lines = [line.split()[:2] for line in said.splitlines() if "%]" in line]
    assert lines == [
        ["unit/test_here.py::test_here", "PASSED"],
        ["host/test_made.py::test_good", "PASSED"],
        ["host/test_made.py::test_bad", "FAILED"],
    ]
    assert "assert (1 + 1) == 3" in said


def test_what_a_pytest_that_has_ended_did_not_report_has_failed(tree: Path) -> None:
    said = run_pytest(tree)
    assert "2 passed, 1 failed" in said or "1 failed, 2 passed" in said, said
    assert "2 errors" in said, "the test that ended it, and the one after it"
    assert "ended before this test, with exit code 7" in said


class Silent(Lane):
    """Says that the first test has finished, and then nothing; the second one finishes whatever it is given."""

    revivals = 1

    def __init__(self, config: pytest.Config, *, deaf: bool = False) -> None:
        super().__init__(config)
        self.started: list[list[str]] = []
        self.deaf = deaf
        self.pieces: list[bytes] = []

    def _start(self, wanted: list[str]) -> bool:
        self.started.append(wanted)
        finished = wanted[:1] if len(self.started) == 1 else [] if self.deaf else wanted
        self.pieces = [b'{"finished": "%s"}\n' % name.encode() for name in finished]
        return True

    def _receive(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if len(self.started) == 1 or self.deaf:
            raise TimeoutError
        return b""

    def _failure(self, why: str) -> str:
        return why

    def _end(self) -> None:
        pass

    def _leave(self) -> None:
        pass


class Item:
    def __init__(self, name: str) -> None:
        self.nodeid, self.path, self.location = name, Path(name), (name, 0, name)


@pytest.mark.parametrize("deaf", [False, True])
def test_the_rest_of_a_lane_that_falls_silent_is_run_once_more(request: pytest.FixtureRequest, deaf: bool) -> None:
    lane = Silent(request.config, deaf=deaf)
    items: list[Any] = [Item(name) for name in ("a", "b", "c")]
    lane.begin([item.nodeid for item in items])
    reports = [[*lane.reports(item)] for item in items]
    assert lane.started == [["a", "b", "c"], ["b", "c"]]
    outcomes = [[(each.outcome, each.longrepr) for each in of] for of in reports]
    assert outcomes == ([[], *[[("failed", "said nothing for 600 s")]] * 2] if deaf else [[], [], []])
