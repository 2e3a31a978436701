"""Kernels against each other, in guests: a planted change is found, named, and traced to its commit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hwrx.lab import build_tree, initramfs, kernel

LIMIT = 600.0  # seconds, against hanging
EXPERIMENT = """
# Does udp cost more?
paths = ["udp"]
topology = "netns"
clock = "icount"
sizes = [64]
repeats = 1
seed = 7
[setting]
messages = 40
warmup = 12
"""
HWRX = [sys.executable, "-m", "hwrx"]
# what takes the place of `make` copies the files of a package into the tree
BUILD = """
import pathlib, shutil
made = pathlib.Path({made!r}) / pathlib.Path("which").read_text().strip()
shutil.copytree(made, ".", dirs_exist_ok=True)
"""


@pytest.fixture(autouse=True)
def _needs(needs: Callable[..., None]) -> None:
    needs("guest")


def as_built(wanted: str, folder: Path) -> None:
    """Lay a packaged kernel out as `make bzImage modules` leaves one, with the modules that a guest needs."""
    packaged = kernel.find_kernel(wanted)
    image = folder / build_tree.IMAGE
    image.parent.mkdir(parents=True)
    image.write_bytes(packaged.image.read_bytes())
    (folder / ".config").write_bytes((packaged.base / "boot" / f"config-{packaged.version}").read_bytes())
    modules = packaged.base / "lib/modules" / packaged.version
    names = []
    for file in initramfs.module_files(packaged.base, packaged.version, [*initramfs.MODULES, "veth"]):
        name = file.relative_to(modules / "kernel").with_name(f"{file.name.partition('.')[0]}.ko")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(initramfs.unpacked_modules(file))
        names.append(str(name.with_suffix(".o")))
    (folder / "modules.order").write_text("\n".join(names) + "\n")
    (folder / "modules.builtin").write_bytes((modules / "modules.builtin").read_bytes())


def test_git_bisect_finds_the_commit_whose_kernel_costs_more(tmp_path: Path) -> None:
    for wanted in ("6.1", "6.12"):
        as_built(wanted, tmp_path / "made" / wanted)
    (tmp_path / "udp.toml").write_text(EXPERIMENT)
    (tmp_path / "build.py").write_text(BUILD.format(made=str(tmp_path / "made")))
    tree = tmp_path / "linux"
    tree.mkdir()

    def git(*words: str) -> str:
        identity = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        done = subprocess.run(
            ["git", *words], cwd=tree, capture_output=True, text=True, env=os.environ | identity, timeout=LIMIT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    git("init", "-q", "-b", "main")
    for number, which in enumerate(["6.1", "6.1", "6.12", "6.12"]):
        (tree / "which").write_text(f"{which}\n")
        (tree / "commit").write_text(f"{number}\n")
        git("add", "which", "commit")
        git("commit", "-q", "-m", f"commit {number} of {which}")
    git("bisect", "start", "HEAD", "HEAD~3")
    build = shlex.join([sys.executable, str(tmp_path / "build.py")])
    said = git(
        "bisect", "run", *HWRX, "bisect", str(tmp_path / "udp.toml"), "--build", build, "--out", str(tmp_path / "runs"),
        "--test", "udp@64 > 13400 instructions",
    )  # fmt: skip
    assert "is the first bad commit" in said and "commit 2 of 6.12" in said
    assert "good: udp@64" in said and "bad: udp@64" in said
    git("bisect", "reset")


def test_a_matrix_names_the_function_that_a_planted_change_adds(tmp_path: Path) -> None:
    (tmp_path / "udp.toml").write_text(f"anatomy = true\n{EXPERIMENT}")
    kernels = "6.1 init_on_alloc=0,6.1 init_on_alloc=1,6.1-cloud"
    command = [*HWRX, "matrix", "udp.toml", "--kernels", kernels, "--out", "out", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    # a cloud's kernel has no 9p: known before it boots if it is in the cache, and else when it does
    assert [line["state"] for line in found["lines"][:2]] == ["done", "done"]
    assert found["lines"][2]["state"] in ("left out", "failed") and "CONFIG_9P_FS" in found["lines"][2]["reason"]
    assert all(figure["exact"] for line in found["lines"] for figure in line["figures"].values())
    (step,) = found["moved"]
    assert step["worse"] and 1.03 < step["ratio"] < 1.2
    # what fills each allocated object with zeros
    assert step["functions"][0]["function"].startswith("memset") and step["functions"][0]["after"] > 500

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert json.loads(again.stdout) == found  # nothing is run again
