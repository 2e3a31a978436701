"""Threaded NAPI on the kernel's 82574L: the thread that polls is there for a trial, and does the device's work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_ends import ROLES, Ends

from hwrx.control.messages import Setting, Start
from hwrx.wires import guest_nics, topology
from hwrx.wires.made import Made

PATHS = ("udp", "tcp")


@pytest.fixture(scope="module")
def wire() -> Iterator[Made]:
    with topology.build_topology("nic") as made:
        yield made


@pytest.fixture
def ends(wire: Made) -> Iterator[Ends]:
    """Agents on both NICs; afterwards these are polled as they were."""
    before = state()
    ends = Ends(wire.places)
    try:
        yield ends
    finally:
        ends.close()
    assert state() == before


def state() -> list[str]:
    return [Path(f"/sys/class/net/{guest_nics.NICS[role]}/threaded").read_text().strip() for role in ROLES]


def switches() -> dict[str, int]:
    """How often each thread that polls one of our NICs got a processor: they are called napi/DEVICE-NUMBER."""
    found = {}
    for task in Path("/proc").glob("[0-9]*"):
        name = (task / "comm").read_text().strip()
        if any(name.startswith(f"napi/{netdev}"[:15]) for netdev in guest_nics.NICS.values()):
            found[name] = int((task / "schedstat").read_text().split()[2])
    return found


@pytest.mark.parametrize("path", PATHS)
def test_a_thread_polls_the_nic_for_the_trial(ends: Ends, path: str) -> None:
    asked = Setting(path=path, messages=100, warmup=5, cooldown=3, limit=20.0, threaded_napi=True)
    try:
        prepared = ends.prepare(asked)
        assert {prepared[role].chosen["napi"]["threaded"] for role in ROLES} == {1}
        assert state() == ["1", "1"]
        ends.connect(prepared)
        before = switches()
        assert len(before) == 2
        for role in ("server", "client"):
            ends.peers[role].send(Start())  # type: ignore[index]
        done = ends.finish()
        after = switches()
    finally:
        ends.release()
    assert (done["client"].ended, done["client"].error) == ("complete", "")
    # at least one poll for each message that arrived, on either side
    assert all(after[name] - before[name] > 50 for name in before), (before, after)
