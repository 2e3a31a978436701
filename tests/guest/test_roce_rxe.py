"""hwrx's own reliable connection against the kernel's rxe, both ways, over a packet ring on the wire of `pair`.

Ours stands on the client's network device, with an address and a hardware address of its own: the kernel leaves its
frames alone, and so does the rxe on that device. rxe's end stands on the server's.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_ends import Places, ip
from rxe_peer import LIMIT, TIMEOUT, RxePeer

from cython_ext.frames.packet_ring import PacketRing
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import RoceQueuePair, WorkCompletion

MAC, ADDRESS = "02:68:77:72:78:70", "198.18.77.70"
GID = f"0000:0000:0000:0000:0000:ffff:{socket.inet_aton(ADDRESS).hex(':', 2)}"  # ADDRESS, mapped into IPv6
QPN = 0x1234
OURS, THEIRS = 0xFFFFF0, 77  # where the numbers begin: ours pass 2^24
ROOM = 1 << 17
SIZES = (0, 1, 1023, 1024, 1025, 65536)
SUCCESS = "IBV_WC_SUCCESS"


class Meeting:
    """Our queue pair and rxe's, connected; one thread drives ours while it waits for either."""

    def __init__(self, pair: Places, stack: contextlib.ExitStack, **options: Any) -> None:
        self.memory = bytearray(ROOM)
        self.domain = ProtectionDomain()
        self.region = self.domain.register(self.memory)
        netdev, there = str(pair["client"].netdev), pair["server"]
        largest = 4300 if options.get("mtu") else 1514
        self.ring = stack.enter_context(PacketRing(netdev, MAC, only_port=4791, poll=True, largest=largest))
        self.qp = stack.enter_context(RoceQueuePair(self.ring, self.domain, qpn=QPN))
        ip("neigh", "replace", ADDRESS, "lladdr", MAC, "dev", str(there.netdev), "nud", "permanent")
        stack.callback(ip, "neigh", "del", ADDRESS, "dev", str(there.netdev))
        self.rxe = RxePeer(str(there.verbs), str(there.address), size=ROOM)
        stack.callback(self.rxe.close)
        self.rxe.connect(GID, QPN, expects=OURS, begins=THEIRS, **options)
        mac = Path(f"/sys/class/net/{there.netdev}/address").read_text().strip()
        way = address_vector(MAC, mac, ADDRESS, str(there.address))
        self.qp.connect(way, self.rxe.number, expects=THEIRS, begins=OURS, timeout=TIMEOUT, **options)

    def until(self, what: str, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            came = self.qp.progress()
            if (value := found()) is not None:
                return value
            if not came:
                time.sleep(0.0005)  # rxe works on the same CPUs
        raise AssertionError(f"no {what}: ours counted {self.qp.counters}")

    def rxe_completion(self, queue: str) -> Any:
        return self.until(f"{queue} of rxe", lambda: self.rxe.poll(queue))

    def our_completion(self, queue: str) -> WorkCompletion:
        poll = self.qp.poll_sends if queue == "send" else self.qp.poll_receives
        return self.until(f"{queue} of ours", lambda: next(iter(poll(1)), None))  # type: ignore[no-any-return]

    @property
    def at_rxe(self) -> dict[str, int]:
        return {"key": self.rxe.key, "address": self.rxe.address}

    @property
    def at_ours(self) -> dict[str, int]:
        return {"key": self.region.key, "address": self.region.address}


@pytest.fixture
def meeting(pair: Places, needs: Callable[..., None], request: pytest.FixtureRequest) -> Iterator[Meeting]:
    needs("pyverbs")
    with contextlib.ExitStack() as stack:
        yield Meeting(pair, stack, **getattr(request, "param", {}))


@pytest.fixture
def long_meeting(pair: Places, needs: Callable[..., None]) -> Iterator[Meeting]:
    """At RoCE's largest MTU, over a wire whose frames are long enough."""
    needs("pyverbs")
    wire = [str(place.netdev) for place in pair.values()]
    with contextlib.ExitStack() as stack:
        for netdev in wire:
            was = Path(f"/sys/class/net/{netdev}/mtu").read_text().strip()
            stack.callback(ip, "link", "set", netdev, "mtu", was)
            ip("link", "set", netdev, "mtu", "4200")
        yield Meeting(pair, stack, mtu=4096)


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("verb", ["send", "send-imm"])
def test_what_we_send_rxe_receives(meeting: Meeting, verb: str) -> None:
    for size in SIZES:
        body = pattern(size)
        meeting.memory[:size] = body
        meeting.rxe.write(bytes(size), 0)
        meeting.rxe.post_receive(0, ROOM, wr_id=size)
        meeting.qp.post_send(verb, meeting.region, 0, size, immediate=0x01020304)
        found = meeting.rxe_completion("receive")
        assert (found.status, found.byte_len, found.wr_id) == (0, size, size)
        assert meeting.rxe.read(size, 0) == body
        assert int(found.imm_data) == (0x04030201 if verb == "send-imm" else found.imm_data)
        assert meeting.our_completion("send").status == SUCCESS


@pytest.mark.parametrize("immediate", [False, True])
def test_what_rxe_sends_we_receive(meeting: Meeting, immediate: bool) -> None:
    e = meeting.rxe.e
    for size in SIZES:
        body = pattern(size)
        meeting.rxe.write(body, 0)
        meeting.memory[:] = bytes(ROOM)
        meeting.qp.post_receive(meeting.region, wr_id=size)
        meeting.rxe.post(e.IBV_WR_SEND_WITH_IMM if immediate else e.IBV_WR_SEND, 0, size, immediate=0x0A0B0C0D)
        found = meeting.our_completion("receive")
        assert found == (size, SUCCESS, "IBV_WC_RECV", size, 0x0A0B0C0D if immediate else None)
        assert meeting.memory == body + bytes(ROOM - size)
        assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS


def test_what_we_write_stands_at_rxe(meeting: Meeting) -> None:
    for size in SIZES:
        body = pattern(size)
        meeting.memory[:size] = body
        meeting.rxe.write(bytes(size + 8), 0)
        meeting.qp.post_send("write", meeting.region, 0, size, **meeting.at_rxe)
        assert meeting.our_completion("send").status == SUCCESS
        assert meeting.rxe.read(size + 8, 0) == body + bytes(8)
    meeting.rxe.post_receive(0, 0, wr_id=5)
    meeting.qp.post_send("write-imm", meeting.region, 0, 3000, immediate=0x01020304, **meeting.at_rxe)
    found = meeting.rxe_completion("receive")
    assert (found.status, found.wr_id, found.imm_data) == (0, 5, 0x04030201)


def test_what_rxe_writes_stands_here(meeting: Meeting) -> None:
    e = meeting.rxe.e
    for size in SIZES:
        body = pattern(size)
        meeting.rxe.write(body, 0)
        meeting.memory[:] = bytes(ROOM)
        meeting.rxe.post(e.IBV_WR_RDMA_WRITE, 0, size, **meeting.at_ours)
        assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS
        assert meeting.memory == body + bytes(ROOM - size)
    meeting.qp.post_receive(meeting.region, 0, 0, wr_id=6)
    meeting.rxe.post(e.IBV_WR_RDMA_WRITE_WITH_IMM, 0, 3000, immediate=0x0A0B0C0D, **meeting.at_ours)
    assert meeting.our_completion("receive") == (6, SUCCESS, "IBV_WC_RECV_RDMA_WITH_IMM", 3000, 0x0A0B0C0D)


def test_what_we_read_is_what_rxe_has(meeting: Meeting) -> None:
    for size in SIZES:
        body = pattern(size)
        meeting.rxe.write(body, 0)
        meeting.memory[:] = bytes(ROOM)
        meeting.qp.post_send("read", meeting.region, 0, size, **meeting.at_rxe)
        assert meeting.our_completion("send").status == SUCCESS
        assert meeting.memory == body + bytes(ROOM - size)


def test_what_rxe_reads_is_what_we_have(meeting: Meeting) -> None:
    e = meeting.rxe.e
    for size in SIZES:
        body = pattern(size)
        meeting.memory[:size] = body
        meeting.rxe.write(bytes(size + 8), 0)
        meeting.rxe.post(e.IBV_WR_RDMA_READ, 0, size, **meeting.at_ours)
        assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS
        assert meeting.rxe.read(size + 8, 0) == body + bytes(8)


@pytest.mark.parametrize("verb", ["send", "write", "read"])
def test_packets_of_4096_bytes_go_either_way(long_meeting: Meeting, verb: str) -> None:
    meeting, e = long_meeting, long_meeting.rxe.e
    theirs = {"send": e.IBV_WR_SEND, "write": e.IBV_WR_RDMA_WRITE, "read": e.IBV_WR_RDMA_READ}[verb]
    reads, sends = verb == "read", verb == "send"
    packets = 0
    for size in (1, 1024, 4095, 4096, 4097, 65536):
        for ours in (True, False):
            body = pattern(size)
            if ours == reads:
                meeting.rxe.write(body, 0)
                meeting.memory[:size] = bytes(size)
            else:
                meeting.memory[:size] = body
                meeting.rxe.write(bytes(size), 0)
            if ours:
                if sends:
                    meeting.rxe.post_receive(0, ROOM)
                meeting.qp.post_send(verb, meeting.region, 0, size, **({} if sends else meeting.at_rxe))
                assert meeting.our_completion("send").status == SUCCESS
                if sends:
                    assert meeting.rxe_completion("receive").byte_len == size
            else:
                if sends:
                    meeting.qp.post_receive(meeting.region)
                meeting.rxe.post(theirs, 0, size, **({} if sends else meeting.at_ours))
                assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS
                if sends:
                    assert meeting.our_completion("receive").size == size
            assert meeting.rxe.read(size, 0) == bytes(meeting.memory[:size]) == body
            packets += -(-size // 4096)
    # as many as messages of that MTU have, and an answer or request for each: of 1,024 bytes there would be four times
    assert meeting.qp.counters["sent"] <= packets + 12


def test_atomics_are_executed_by_either_end(meeting: Meeting) -> None:
    e = meeting.rxe.e
    meeting.rxe.write((5).to_bytes(8, "little"), 0)
    meeting.qp.post_send("fetch-add", meeting.region, 8, 8, swap=3, **meeting.at_rxe)
    meeting.qp.post_send("compare-swap", meeting.region, 16, 8, compare=8, swap=100, **meeting.at_rxe)
    assert [meeting.our_completion("send").status for _ in range(2)] == [SUCCESS] * 2
    assert [int.from_bytes(meeting.memory[at : at + 8], "little") for at in (8, 16)] == [5, 8]
    assert meeting.rxe.read(8, 0) == (100).to_bytes(8, "little")
    meeting.memory[:8] = (50).to_bytes(8, "little")
    meeting.rxe.post(e.IBV_WR_ATOMIC_FETCH_AND_ADD, 8, 8, compare=4, **meeting.at_ours)
    assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS
    meeting.rxe.post(e.IBV_WR_ATOMIC_CMP_AND_SWP, 16, 8, compare=54, swap=1, **meeting.at_ours)
    assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS
    assert [int.from_bytes(meeting.rxe.read(8, at), "little") for at in (8, 16)] == [50, 54]
    assert meeting.memory[:8] == (1).to_bytes(8, "little")


def test_many_outstanding_messages_both_ways_at_once(meeting: Meeting) -> None:
    e, count, size = meeting.rxe.e, 24, 5000
    for number in range(count):
        meeting.qp.post_receive(meeting.region, 0, size, wr_id=number)
        meeting.rxe.post_receive(0, size, wr_id=number)
    for number in range(count):
        meeting.qp.post_send("send", meeting.region, 60_000, size, wr_id=number)
        meeting.rxe.post(e.IBV_WR_SEND, 60_000, size)
    assert [meeting.our_completion("receive").wr_id for _ in range(count)] == list(range(count))
    assert [meeting.our_completion("send").wr_id for _ in range(count)] == list(range(count))
    assert [meeting.rxe_completion("receive").wr_id for _ in range(count)] == list(range(count))
    assert [meeting.rxe_completion("send").status for _ in range(count)] == [0] * count


@pytest.mark.parametrize("verb", ["write", "read", "fetch-add"])
def test_rxe_refuses_a_wrong_key(meeting: Meeting, verb: str) -> None:
    meeting.qp.post_send(verb, meeting.region, 0, 8, key=meeting.rxe.key ^ 0x100, address=meeting.rxe.address)
    assert meeting.our_completion("send").status == "IBV_WC_REM_ACCESS_ERR"


@pytest.mark.parametrize("verb", ["IBV_WR_RDMA_WRITE", "IBV_WR_RDMA_READ", "IBV_WR_ATOMIC_FETCH_AND_ADD"])
def test_we_refuse_rxe_a_wrong_key(meeting: Meeting, verb: str) -> None:
    e = meeting.rxe.e
    meeting.rxe.write(b"\xff" * 8, 0)
    meeting.rxe.post(getattr(e, verb), 0, 8, key=meeting.region.key ^ 1, address=meeting.region.address)
    assert meeting.rxe_completion("send").status == e.IBV_WC_REM_ACCESS_ERR
    assert not any(meeting.memory)


def test_each_waits_for_the_others_receive_request(meeting: Meeting) -> None:
    e = meeting.rxe.e
    meeting.qp.post_send("send", meeting.region, 0, 3000)
    meeting.until("RNR NAK", lambda: meeting.qp.counters["rnr_naks"] or None)
    meeting.rxe.post_receive(0, 3000)
    assert meeting.our_completion("send").status == SUCCESS
    meeting.rxe.post(e.IBV_WR_SEND, 0, 3000)
    meeting.until("RNR NAK of ours", lambda: meeting.qp.counters["rnr_naks_sent"] or None)
    meeting.qp.post_receive(meeting.region)
    assert meeting.our_completion("receive").status == SUCCESS
    assert meeting.rxe_completion("send").status == e.IBV_WC_SUCCESS


@pytest.mark.parametrize("meeting", [{"rnr_retry": 1}], indirect=True)
def test_each_gives_up_a_receiver_that_is_never_ready(meeting: Meeting) -> None:
    meeting.qp.post_send("send", meeting.region, 0, 64)
    assert meeting.our_completion("send").status == "IBV_WC_RNR_RETRY_EXC_ERR"


@pytest.mark.parametrize("meeting", [{"rnr_retry": 1}], indirect=True)
def test_rxe_gives_us_up_too(meeting: Meeting) -> None:
    meeting.rxe.post(meeting.rxe.e.IBV_WR_SEND, 0, 64)
    assert meeting.rxe_completion("send").status == meeting.rxe.e.IBV_WC_RNR_RETRY_EXC_ERR


def test_rxe_is_told_of_a_message_that_does_not_fit(meeting: Meeting) -> None:
    meeting.qp.post_receive(meeting.region, 0, 2000)
    meeting.rxe.post(meeting.rxe.e.IBV_WR_SEND, 0, 2001)
    assert meeting.rxe_completion("send").status == meeting.rxe.e.IBV_WC_REM_INV_REQ_ERR
    assert meeting.our_completion("receive").status == "IBV_WC_LOC_LEN_ERR"
