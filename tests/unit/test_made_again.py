"""All that a report consists of is made from the run directory alone, the same to the byte wherever and whenever."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import made_runs
import pytest

FORMATS = ("html", "pdf", "svg", "latex", "csv", "json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return made_runs.make(
        tmp_path_factory.mktemp("runs"),
        patterns=["pingpong", "stream", "paced"],
        rate=1000.0,
        sweep={"netem": ["", "loss 1%"]},
        topology="pair",
        question="Is it so?\nIn a few words more.",
    )


def report(run: pathlib.Path, out: pathlib.Path, **environment: str) -> dict[str, bytes]:
    """Make everything in a new process; what it wrote, by name."""
    wanted = [word for kind in FORMATS for word in ("--to", kind)]
    subprocess.run(
        [sys.executable, "-m", "hwrx", "report", str(run), *wanted, "--out", str(out)],
        env={**os.environ, **environment},
        cwd=out.parent,
        check=True,
        capture_output=True,
    )
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}


def test_a_copy_of_the_run_elsewhere_gives_the_same_bytes(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "far" / "away" / run.name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "parts", ignore_errors=True)
    for there in ("one", "two"):
        (tmp_path / there).mkdir()
    here = report(run, tmp_path / "one" / "out", PYTHONHASHSEED="1", TZ="Asia/Tokyo", LC_ALL="C")
    again = report(copy, tmp_path / "two" / "out", PYTHONHASHSEED="2", TZ="America/Lima", LC_ALL="C.UTF-8")
    assert {name.split("/")[0] for name in here} == {"report.html", "figures", "tables", "summary.csv", "summary.json"}
    assert {"figures/conditions.pdf", "figures/conditions.svg", "tables/load.tex"} <= here.keys()
    assert here.keys() == again.keys()
    assert [name for name in here if here[name] != again[name]] == []


def test_nothing_of_the_machine_that_makes_it_is_in_it(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").mkdir()
    made = report(run, tmp_path / "here" / "out")
    for name, content in made.items():
        assert str(tmp_path).encode() not in content, name
        assert str(run.parent).encode() not in content, name
