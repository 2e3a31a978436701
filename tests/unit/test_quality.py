"""The tree is as its tools want it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "tool",
    [
        ["-m", "ruff", "check", "--no-cache", "."],
        ["-m", "ruff", "format", "--no-cache", "--check", "."],
        ["-m", "mypy"],
        ["-c", "from cython_lint.cython_lint import main; raise SystemExit(main(['cython_ext']))"],
    ],
    ids=["ruff check", "ruff format", "mypy", "cython-lint"],
)
def test_the_tree_is_clean(tool: list[str]) -> None:
    # cython-lint calls pycodestyle, which stands beside it
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, *tool], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_extension_has_a_stub_and_a_place_in_the_build() -> None:
    import tomllib

    built = {
        entry["name"]
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    }
    sources = {f"cython_ext.{path.stem}" for path in (ROOT / "cython_ext").glob("*.pyx")}
    stubs = {f"cython_ext.{path.stem}" for path in (ROOT / "cython_ext").glob("*.pyi")}
    assert sources == built
    assert sources - stubs == set()


def test_the_shell_scripts_parse_and_can_be_run() -> None:
    for name in ("lab/run", "lab/test", "lab/setup.sh", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    for name in ("lab/run", "lab/test"):
        assert (ROOT / name).stat().st_mode & 0o111
