"""Timelines of messages that do not travel in one plain IPv4 packet: IPv6, IP options, fragments, GRO."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from tracing import check, trace

from hwrx.control.environment import parse_environment
from hwrx.control.messages import ENDS, Setting
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines import join
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology
from hwrx.wires.made import Made

NOP, END = b"\x01", b"\x00"


@pytest.fixture(scope="module")
def wire() -> Iterator[Made]:
    """Two namespaces of the guest: what the tests change there concerns nobody else."""
    with topology.netns() as made:
        yield made


def ethtool(wire: Made, end: Any, *words: str) -> None:
    namespace = parse_environment(wire.peers[end]).name
    subprocess.run(
        ["ip", "netns", "exec", namespace, "ethtool", "-K", topology.LINKS[end], *words],
        check=True,
        capture_output=True,
    )


def test_with_ip_options(tracer: RunTracer) -> None:
    """UDP's header stands behind them, wherever that is."""
    from cython_ext.core.payload import make

    count = 50
    first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    second = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    posted, delivered = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    with first, second:
        for sock, end in ((first, "client"), (second, "server")):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, topology.LINKS[end].encode())  # type: ignore[index]
            sock.bind((topology.ADDRESSES[end], 0))  # type: ignore[index]
            sock.settimeout(10)
        first.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, NOP * 11 + END)
        first.connect(second.getsockname())
        tracer.begin(9, 200)
        for number in range(count):
            message = make(200, number, trial=9)
            posted[number] = time.monotonic_ns()
            first.send(message)
            assert second.recv(200) == message
            delivered[number] = time.monotonic_ns()
    _, events = tracer.end()
    timelines = join.join_events(events, join.Ends(posted, delivered), "udp", available=tracer.available)
    check(timelines, count)


@pytest.mark.parametrize(("path", "size"), [("udp", 64), ("udp", 20_000), ("tcp", 1400), ("tcp", 65536)])
def test_over_ipv6(wire: Made, tracer: RunTracer, path: str, size: int) -> None:
    """Also where a datagram is cut into fragments, whose extension header stands before UDP's."""
    places = {
        end: msgspec.structs.replace(place, address=topology.ADDRESSES_V6[end]) for end, place in wire.places.items()
    }
    with Pair(Bed(places, wire.peers, {})) as pair:
        found = trace(tracer, pair, 1, Setting(path=path, size=size, messages=100, warmup=10, window=4, limit=60.0))
    for timelines in found.timelines.values():
        check(timelines, 100)
    assert found.ledger.receiver == pytest.approx(1.0, abs=5e-3)
    assert found.ledger.sender == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize(("path", "size"), [("udp", 1400), ("tcp", 1400), ("tcp", 40_000)])
def test_through_gro(wire: Made, tracer: RunTracer, path: str, size: int) -> None:
    """A veth whose GRO is on polls with NAPI, and merges the segments that a sender without offloads cuts."""
    for end in ENDS:
        ethtool(wire, end, "gro", "on", "tso", "off", "gso", "off")
    try:
        with Pair(Bed(wire.places, wire.peers, {})) as pair:
            found = trace(tracer, pair, 2, Setting(path=path, size=size, messages=100, warmup=10, limit=60.0))
    finally:
        for end in ENDS:
            ethtool(wire, end, "gro", "off", "tso", "on", "gso", "on")
    for timelines in found.timelines.values():
        check(timelines, 100)
        column = [stage.name for stage in timelines.stages].index("napi_gro_receive")
        assert (timelines.stamps[:, column] > 0).all()
    assert found.ledger.receiver == pytest.approx(1.0, abs=5e-3)
