"""Several guests on one wire, as stand-ins for hosts: every message accounted for, a guest that dies named at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwrx.campaign import measuring
from hwrx.control.guest_boot import Boot
from hwrx.control.messages import Setting
from hwrx.report import flows as flow_report
from hwrx.report.summary import summarise_runs
from hwrx.runs import experiment, fleet, reading
from hwrx.runs.guests import GuestsBed, guests_on_a_wire
from hwrx.runs.testbed import Wanted
from hwrx.wires import stations

pytestmark = pytest.mark.hwrx(needs=["root", "guest"])

NAMED_WITHIN = 2.0  # seconds from a guest's death until it is named
PATIENT: Any = {"ack_timeout": 20}  # a guest that gets no processor acknowledges nothing: 4 s each, and seven times
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
        found = agents.measure(0, Setting(path=path, pattern=pattern, flows="guest[1-3]>sink", messages=200, **PATIENT))
    told = found.between["by_flow"]
    assert {(flow["client"], flow["server"]) for flow in told} == {(f"guest{k}", "sink") for k in (1, 2, 3)}
    assert found.lost == []
    dropped = any("on_the_wire" in host for host in found.between["by_host"])
    for flow in told:
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
            found = agents.measure(0, Setting(path=path, flows=flows, messages=50, **PATIENT))
            assert found.between["flow_count"] == count
            assert all(flow["delivered"] == 166 for flow in found.between["by_flow"])


@contextlib.contextmanager
def slow_cable(bed: GuestsBed, one: str, other: str) -> Iterator[None]:
    """What one guest sends to the other takes 20 ms more."""
    address = bed.hosts[other].address
    lines = [
        "modprobe -a sch_netem sch_prio cls_u32",
        f"tc qdisc add dev {stations.NETDEV} root handle 1: prio",
        f"tc qdisc add dev {stations.NETDEV} parent 1:3 handle 30: netem delay 20ms limit 10000",
        f"tc filter add dev {stations.NETDEV} parent 1: protocol ip u32 match ip dst {address}/32 flowid 1:3",
    ]
    for line in lines:
        done = bed.guests[one].run(line.split())
        assert done.returncode == 0, done.stdout
    try:
        yield
    finally:
        bed.guests[one].run(["tc", "qdisc", "delete", "dev", stations.NETDEV, "root"])


def test_a_slow_cable_is_what_the_matrix_of_pairs_names(bed: GuestsBed, tmp_path: Path) -> None:
    asked = experiment.parse_experiment(
        'topology = "wire"\npaths = ["udp"]\nrepeats = 2\nclients = ["guest[1-3]", "sink"]\ntraffic = "pairs"\n'
        "[setting]\nmessages = 30\nwarmup = 5\n",
        source="test",
    )

    @contextlib.contextmanager
    def standing(*args: object, **more: object) -> Iterator[GuestsBed]:
        yield bed

    layout = measuring.settle_plan(asked, Wanted(), lambda stage, words: None)
    with slow_cable(bed, "guest2", "guest3"):
        outcome, path = measuring.measure_plan(layout, Wanted(), tmp_path, open_bed=standing)
    assert outcome.failed == []
    summary = summarise_runs([reading.load_run(path)])
    rows = flow_report.flow_rows(summary)
    assert len(rows) == 12
    outliers = flow_report.find_outliers(rows)
    # a ping-pong crosses it once, whichever of the two begins; a busy machine may add others, nearer to the median
    assert {(row.client, row.server) for row, _ in outliers[:2]} == {("guest2", "guest3"), ("guest3", "guest2")}
    assert all(row.figure is not None and row.figure > 10_000 for row, _ in outliers[:2])
    matrix = next(table for table in flow_report.flow_tables(summary) if table.name.startswith("pairs"))
    assert "Stand out (!): guest" in matrix.caption and "guest2 to guest3" in matrix.caption


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
        again = agents.measure(2, Setting(path="rdma-send", flows="guest[1-3]>sink", messages=20, **PATIENT))
        assert again.between["flow_count"] == 3 and again.lost == []
