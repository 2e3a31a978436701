"""The paths over our own queue pair in a guest of a newer kernel: VFIO, interrupts and AF_XDP are that kernel's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hwrx

pytestmark = pytest.mark.beside

KERNEL = "6.12"
PATHS = ("roce-send", "roce-write", "roce-write-imm", "roce-read")


@pytest.fixture(autouse=True, scope="module")
def _needs(needs: Callable[..., None]) -> None:
    needs("guest")


@pytest.mark.parametrize(
    ("link", "paths", "sizes"), [("nic", (*PATHS, "udp"), "64,4096"), ("xdp", ("roce-send",), "64")]
)
def test_every_verb_on_a_newer_kernel(tmp_path: Path, link: str, paths: tuple[str, ...], sizes: str) -> None:
    words = [
        sys.executable, "-m", "hwrx", "compare", "--paths", ",".join(paths), "--size", sizes, "--link", link,
        "--kernel", KERNEL, "--topology", "nic", "--clock", "icount", "--messages", "40", "--repeats", "1",
        "--check-every", "8", "--runs", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    run = hwrx.load(tmp_path / "latest")
    assert run.manifest["machine"]["kernel"]["release"].startswith(f"{KERNEL}.")
    assert {(row["path"], row["size"]) for row in run.rows} == {
        (path, int(size)) for path in paths for size in sizes.split(",")
    }
    assert {row["status"] for row in run.rows} == {"ok"}
    assert all(row["lost"] == row["corrupt"] == row["duplicated"] == row["stale"] == 0 for row in run.rows)
