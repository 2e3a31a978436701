"""The fixtures of the plug-in in a guest: a lab there is the wire that the guest was booted with, and boots nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest_ends import Places

from hwrx.errors import UsageError
from hwrx.scripting.lab import Lab
from hwrx.testing.comparing import Comparison

pytestmark = pytest.mark.hwrx(topology="pair", clock="wall", needs=["root", "verbs"])


def test_paths_are_compared_on_the_wire_that_stands(hwrx_compare: Comparison, hwrx_lab: Lab, pair: Places) -> None:
    assert dict(hwrx_lab.places) == dict(pair)
    run = hwrx_compare(paths=["udp", "rdma-send"], sizes=[64], messages=100, repeats=2)
    assert run.paths == ["udp", "rdma-send"]
    for found in run:
        assert found.tally["delivered"] == found.tally["expected"] > 0
        assert found.tally["lost"] == found.tally["corrupt"] == 0
        assert found.p50 > 0
    assert run.manifest["wire"].startswith("a veth pair with a SoftRoCE device")


def test_a_command_runs_here(hwrx_lab: Lab) -> None:
    assert hwrx_lab.guest is None
    assert hwrx_lab.run(["uname", "-r"]).stdout == Path("/proc/sys/kernel/osrelease").read_text()


def test_a_guest_boots_no_guest(hwrx_lab: Lab) -> None:
    with pytest.raises(UsageError, match="this lab's kernel is not chosen"):
        hwrx_lab.compare(paths=["udp"], kernel="6.1")
    with pytest.raises(UsageError, match="the clock icount counts a guest's instructions"), Lab("pair", clock="icount"):
        pass
