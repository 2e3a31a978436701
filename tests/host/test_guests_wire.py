"""Several guests on one wire, as stand-ins for hosts: every message accounted for, a guest that dies named at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Setting
from hwrx.runs import fleet
from hwrx.runs.guests import GuestsBed, guests_on_a_wire

pytestmark = pytest.mark.hwrx(needs=["root", "guest"])

NAMED_WITHIN = 2.0  # seconds from a guest's death until it is named
NAMES = ("guest1", "guest2", "guest3", "sink")


@pytest.fixture(scope="module")
def bed() -> Iterator[GuestsBed]:
    said: list[str] = []
    with guests_on_a_wire(NAMES, lambda stage, text: said.append(f"{stage}: {text}"), boot=Boot()) as bed:
        assert said[-1] == "guests: all 4 are up"
        yield bed


@pytest.mark.parametrize("path", ["udp", "tcp", "rdma-send"])
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
def test_every_message_of_three_that_send_to_one_is_accounted_for(bed: GuestsBed, path: str, pattern: Any) -> None:
    with fleet.Fleet(bed) as agents:
        found = agents.measure(0, Setting(path=path, pattern=pattern, flows="guest[1-3]>sink", messages=200))
    flows = found.between["by_flow"]
    assert {(flow["client"], flow["server"]) for flow in flows} == {(f"guest{k}", "sink") for k in (1, 2, 3)}
    assert found.lost == []
    dropped = sum(bed.dropped().values())
    for flow in flows:
        assert flow["posted"] == flow["expected"] == flow["delivered"] + flow["lost"] == 316
        assert flow["corrupt"] == 0
        assert flow["lost"] == 0 or dropped or flow.get("lost_at_socket")
    assert len({done.boot for done in (found.client, found.server)}) == 2 or found.client.boot == ""


@pytest.mark.parametrize(
    ("flows", "count"), [("guest1>guest2", 1), ("guest[1-3]>guest[1-3]", 6), ("guest1<>sink", 2)],
    ids=["a pair", "all to all", "both ways"],
)  # fmt: skip
def test_guests_send_to_each_other_as_hosts_do(bed: GuestsBed, flows: str, count: int) -> None:
    with fleet.Fleet(bed) as agents:
        for path in ("udp", "rdma-send"):
            found = agents.measure(0, Setting(path=path, flows=flows, messages=50))
            assert found.between["flow_count"] == count
            assert all(flow["delivered"] == 166 for flow in found.between["by_flow"])


def test_a_guest_that_is_killed_is_named_at_once_and_booted_again_for_the_next_trial(bed: GuestsBed) -> None:
    told: list[tuple[float, str]] = []
    moments: list[float] = []

    def kill() -> None:
        time.sleep(1.0)
        process = bed.guests["guest2"]._process
        assert process is not None
        moments.append(time.monotonic())
        os.kill(process.pid, signal.SIGKILL)

    with fleet.Fleet(bed) as agents:
        agents.heed(lambda words: told.append((time.monotonic(), words)))
        agents.measure(0, Setting(path="udp", flows="guest[1-3]>sink", messages=20))
        killer = threading.Thread(target=kill)
        killer.start()
        found = agents.measure(1, Setting(path="udp", flows="guest[1-3]>sink", messages=6000, limit=30.0))
        killer.join()
        when, words = told[0]
        assert when - moments[0] < NAMED_WITHIN
        assert "guest2 (client) is gone" in words and "guest is gone" in words
        flows = {flow["client"]: flow for flow in found.between["by_flow"]}
        assert "gone" in flows["guest2"]
        for name in ("guest1", "guest3"):
            assert flows[name]["posted"] == flows[name]["delivered"] + flows[name]["lost"] == 6116
        assert found.lost[-1] == "the figures are of 2 of 3 flows"
        again = agents.measure(2, Setting(path="rdma-send", flows="guest[1-3]>sink", messages=20))
        assert again.between["flow_count"] == 3 and again.lost == []
