"""Sending and receiving without copies where functions can be probed: what the kernel did is counted, and balances."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tracing import check, trace
from zerocopy import MIB, MTU, row, setting, sound

from hwrx.runs.schedule import Pair
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology


def mtu_is(mtu: int) -> None:
    for link in topology.LINKS.values():
        subprocess.run(["ip", "link", "set", link, "mtu", str(mtu)], check=True)


@pytest.fixture(scope="module", autouse=True)
def large_packets() -> Iterator[None]:
    mtu_is(MTU)
    yield
    mtu_is(1500)


@pytest.mark.parametrize(("path", "size"), [("udp", 3000), ("tcp", 65536)])
def test_the_copy_that_the_wire_forces_is_found(traced_pair: Pair, tracer: RunTracer, path: str, size: int) -> None:
    found = trace(tracer, traced_pair, 1, setting(path, size, zerocopy_send=True))
    sound(found.measured, checked=0)
    assert found.ledger.balanced
    assert row(found, "skb_zerocopy_iter").per_byte == pytest.approx(1.0)
    # what a probe counts and what the kernel's notifications say are the same bytes, but for TCP's retransmissions
    told = found.measured.tally["zerocopy_copied_bytes"]
    assert told <= row(found, "skb_copy_ubufs").bytes <= told * (1.02 if path == "tcp" else 1)
    for timelines in found.timelines.values():
        check(timelines, 60)
        assert "skb_zerocopy_iter" in {stage.name for stage in timelines.stages}


def test_a_datagram_of_many_fragments_is_copied_at_once(traced_pair: Pair, tracer: RunTracer) -> None:
    found = trace(tracer, traced_pair, 2, setting("udp", 60_000, window=1, zerocopy_send=True))
    sound(found.measured, checked=0)
    assert row(found, "skb_zerocopy_iter").bytes == 0
    assert row(found, "ip_generic_getfrag").per_byte == pytest.approx(1.0)
    assert found.measured.tally["zerocopy_copied_bytes"] == found.measured.tally["zerocopy_bytes"]


def test_mapped_pages_are_not_copied(traced_pair: Pair, tracer: RunTracer) -> None:
    found = trace(tracer, traced_pair, 3, setting("tcp", MIB, zerocopy_send=True, zerocopy_receive=True))
    sound(found.measured, checked=0)
    assert found.ledger.balanced
    assert found.ledger.receiver < 0.1
    assert row(found, "tcp_zerocopy_receive").bytes == found.measured.tally["mapped_bytes"]
    for timelines in found.timelines.values():
        check(timelines, 60)
