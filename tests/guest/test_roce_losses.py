"""Our queue pair and rxe over a wire that loses, doubles and reorders what either sends: every byte arrives, once."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from guest_ends import Places, ip
from rxe_peer import LIMIT, RxePeer

from cython_ext.frames.packet_ring import PacketRing
from hwrx import roce
from hwrx.host import tools
from hwrx.roce.parameters import gid_of
from hwrx.wires import impair, topology

MAC, ADDRESS = "02:68:77:72:78:70", "198.18.77.70"
GID = f"0000:0000:0000:0000:0000:ffff:{socket.inet_aton(ADDRESS).hex(':', 2)}"
ROOM = 1 << 16
MESSAGES = 120
LONGEST = 12_000
ROUNDS = 60
SUCCESS = "IBV_WC_SUCCESS"
BAD = ("loss 1% delay 200us", "duplicate 5% delay 200us", "reorder 25% delay 1ms",
       "loss 1% duplicate 1% reorder 25% delay 1ms")  # fmt: skip


class Met:
    """An endpoint whose frames pass the queueing discipline, as rxe's do, and a queue pair of rxe."""

    def __init__(self, pair: Places, stack: contextlib.ExitStack) -> None:
        there = pair["server"]
        ring = stack.enter_context(PacketRing(str(pair["client"].netdev), MAC, only_port=4791, bypass=False))
        self.qp = stack.enter_context(roce.endpoint(ring, ADDRESS))
        self.memory = bytearray(ROOM)
        self.region = self.qp.register(self.memory)
        ip("neigh", "replace", ADDRESS, "lladdr", MAC, "dev", str(there.netdev), "nud", "permanent")
        stack.callback(ip, "neigh", "del", ADDRESS, "dev", str(there.netdev))
        self.rxe = RxePeer(str(there.verbs), str(there.address), size=ROOM)
        stack.callback(self.rxe.close)
        own = self.qp.parameters
        self.rxe.connect(GID, own.qpn, expects=own.psn, begins=7)
        self.qp.connect(
            roce.Parameters(gid=gid_of(str(there.address)), qpn=self.rxe.number, psn=7), timeout=16, patience=LIMIT
        )

    def until(self, found: Callable):
        deadline = time.monotonic() + LIMIT
        while (value := found()) is None:
            assert time.monotonic() < deadline, self.qp.queue_pair.counters
            self.qp.drive(0.001)
        return value

    def rxe_done(self, queue: str):
        return self.until(lambda: self.rxe.poll(queue))

    def ours_done(self, queue: str):
        pair = self.qp.queue_pair
        poll = pair.poll_sends if queue == "send" else pair.poll_receives
        return self.until(lambda: next(iter(poll(1)), None))


@pytest.fixture
def met(pair: Places, needs: Callable[..., None]) -> Iterator[Met]:
    needs("pyverbs")
    with contextlib.ExitStack() as stack:
        made = Met(pair, stack)
        yield made


@pytest.fixture(params=BAD)
def bad_wire(met: Met, request: pytest.FixtureRequest) -> Iterator[Met]:
    tools.run_tool("modprobe", "sch_netem")
    try:
        for link in topology.LINKS.values():
            impair.spoil_wire(link, request.param)
        yield met
    finally:
        for link in topology.LINKS.values():
            impair.mend_wire(link)


def test_every_byte_arrives_once_over_a_bad_wire(bad_wire: Met) -> None:
    """Each verb, each way, one message at a time in random sizes: what is there is compared after each."""
    met, e, draw = bad_wire, bad_wire.rxe.e, random.Random(5)
    at_rxe = {"key": met.rxe.key, "address": met.rxe.address}
    at_ours = {"key": met.region.key, "address": met.region.address}
    for number in range(MESSAGES):
        size = draw.choice((1, 1000, 1024, 1025, draw.randrange(LONGEST)))
        body, verb, ours = draw.randbytes(size), ("send", "write", "read")[number % 3], number // 3 % 2 == 0
        # whoever has the bytes; the other end's memory says nothing yet
        if ours == (verb != "read"):
            met.memory[:size] = body
            met.rxe.write(bytes(size), 0)
        else:
            met.rxe.write(body, 0)
            met.memory[:size] = bytes(size)
        if ours:
            if verb == "send":
                met.rxe.post_receive(0, ROOM, wr_id=number)
            met.qp.post_send(verb, met.region, 0, size, wr_id=number, **({} if verb == "send" else at_rxe))
            assert met.ours_done("send")[:2] == (number, SUCCESS)
            if verb == "send":
                found = met.rxe_done("receive")
                assert (found.status, found.byte_len, found.wr_id) == (0, size, number)
        else:
            opcode = {"send": e.IBV_WR_SEND, "write": e.IBV_WR_RDMA_WRITE, "read": e.IBV_WR_RDMA_READ}[verb]
            if verb == "send":
                met.qp.post_receive(met.region, wr_id=number)
            met.rxe.post(opcode, 0, size, **({} if verb == "send" else at_ours))
            assert met.rxe_done("send").status == e.IBV_WC_SUCCESS
            if verb == "send":
                assert met.ours_done("receive") == (number, SUCCESS, "IBV_WC_RECV", size, None)
        assert met.rxe.read(size, 0) == body == met.memory[:size]
    assert met.rxe.poll("receive") is None and met.qp.queue_pair.poll_receives() == []


def test_a_bad_wire_is_one(bad_wire: Met) -> None:
    """Without repairs there would be nothing to see in the test above."""
    met = bad_wire

    def repaired() -> int:
        counted = met.qp.queue_pair.counters
        return sum(counted[name] for name in ("sent_again", "duplicates", "out_of_order", "stale"))

    # of a hundred packets one is lost, if chance will: all 70 of a round are spared in one of two
    for number in range(ROUNDS):
        if repaired():
            break
        met.rxe.post_receive(0, ROOM)
        met.qp.post_send("send", met.region, 0, 60_000, wr_id=number)
        assert met.ours_done("send").status == SUCCESS
        met.qp.post_receive(met.region)
        # rxe gives up after six NAKs without an ACK between them, which a long message over such a wire brings
        met.rxe.post(met.rxe.e.IBV_WR_SEND, 0, LONGEST)
        assert met.rxe_done("send").status == met.rxe.e.IBV_WC_SUCCESS
    assert repaired() > 0
