"""Real verbs NICs: two of this machine on one network, or one here and one at a peer.

`./lab/test tests/hil` runs them. HWRX_HIL_DEVICE names the device here, or both (`mlx5_0,mlx5_1`); otherwise the
first two with a PCI device beneath are taken. Where the other end is on another machine, HWRX_HIL_PEER (`ssh:HOST`),
HWRX_HIL_PEER_DEVICE and HWRX_HIL_PEER_ADDRESS name it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

HWRX = [sys.executable, "-m", "hwrx"]
PATHS = ["udp", "tcp", "rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud"]


@pytest.fixture
def ends(needs: Callable[..., None]) -> list[str]:
    """The options that name both ends."""
    named = os.environ.get("HWRX_HIL_DEVICE", "")
    found = sorted(entry.parent.name for entry in Path("/sys/class/infiniband").glob("*/device"))
    peer = os.environ.get("HWRX_HIL_PEER")
    if peer:
        return [
            "--device", named or found[0], "--peer", peer, "--peer-device", os.environ["HWRX_HIL_PEER_DEVICE"],
            "--peer-address", os.environ["HWRX_HIL_PEER_ADDRESS"],
        ]  # fmt: skip
    if not named and len(found) < 2:
        needs("a second verbs NIC, or HWRX_HIL_PEER")
    return ["--device", named or ",".join(found[:2])]


def summary(tmp_path: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [*HWRX, "compare", "--messages", "2000", "--repeats", "1", "--runs", str(tmp_path), "--json", *options],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def carried(found: dict[str, Any], paths: Collection[str]) -> None:
    """Every path has its rows, every trial ended well, and every message arrived once and whole."""
    assert {row["path"] for row in found["rows"]} == set(paths)
    assert [run["status"] for run in found["runs"]] == ["complete"]
    for row in found["rows"]:
        assert not row["failed"], row
        assert row["delivered"] == row["expected"] > 0, row
        assert row["checked"] > 0, row
        assert not any(row[oddity] for oddity in ("lost", "duplicated", "reordered", "corrupt", "wrong_size")), row


@pytest.mark.parametrize("wait", ["poll", "event"])
def test_every_path_carries_every_message(tmp_path: Path, ends: list[str], wait: str) -> None:
    # the receiver of a WRITE can only poll
    paths = [path for path in PATHS if wait == "poll" or path != "rdma-write"]
    options = ["--paths", ",".join(paths), "--size", "64,1024", "--check-every", "1", "--wait", wait]
    found = summary(tmp_path, *options, *ends)
    carried(found, paths)
    assert not found["runs"][0]["manifest"]["emulated"]


def test_streams_carry_every_message(tmp_path: Path, ends: list[str]) -> None:
    paths = [path for path in PATHS if path != "rdma-ud"]
    options = ["--paths", ",".join(paths), "--size", "65000", "--pattern", "stream", "--check-every", "1"]
    carried(summary(tmp_path, *options, *ends), paths)


def test_the_device_is_listed_as_hardware() -> None:
    done = subprocess.run([*HWRX, "devices", "--json"], capture_output=True, text=True, check=True, timeout=60)
    listed = {device["name"]: device for device in json.loads(done.stdout)}
    for entry in Path("/sys/class/infiniband").glob("*/device"):
        assert not listed[entry.parent.name]["software"]
