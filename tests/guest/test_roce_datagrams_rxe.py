"""hwrx's own unreliable datagrams against the kernel's rxe, both ways, over a packet ring on the wire of `pair`."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_ends import Places, ip
from rxe_peer import LIMIT, QKEY, RxePeer

from cython_ext.frames.packet_ring import PacketRing
from cython_ext.roce.datagram_pair import GRH, DatagramPair
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector

MAC, ADDRESS = "02:68:77:72:78:70", "198.18.77.70"
GID = f"0000:0000:0000:0000:0000:ffff:{socket.inet_aton(ADDRESS).hex(':', 2)}"
QPN = 0x4321
ROOM = 1 << 15
SIZES = (0, 1, 2, 3, 64, 1000, 1024)
SUCCESS = "IBV_WC_SUCCESS"


class Met:
    def __init__(self, pair: Places, stack: contextlib.ExitStack) -> None:
        there = pair["server"]
        self.memory = bytearray(ROOM)
        self.domain = ProtectionDomain()
        self.region = self.domain.register(self.memory)
        self.ring = stack.enter_context(PacketRing(str(pair["client"].netdev), MAC, only_port=4791, poll=True))
        self.pair = stack.enter_context(
            DatagramPair(self.ring, self.domain, address=ADDRESS, qpn=QPN, qkey=QKEY, mtu=1024)
        )
        ip("neigh", "replace", ADDRESS, "lladdr", MAC, "dev", str(there.netdev), "nud", "permanent")
        stack.callback(ip, "neigh", "del", ADDRESS, "dev", str(there.netdev))
        self.rxe = RxePeer(str(there.verbs), str(there.address), size=ROOM, datagram=True)
        stack.callback(self.rxe.close)
        self.rxe.connect(GID, QPN)
        mac = Path(f"/sys/class/net/{there.netdev}/address").read_text().strip()
        self.way = address_vector(MAC, mac, ADDRESS, str(there.address))

    def until(self, found: Callable):
        deadline = time.monotonic() + LIMIT
        while (value := found()) is None:
            assert time.monotonic() < deadline, self.pair.counters
            if not self.pair.progress():
                time.sleep(0.0005)
        return value


@pytest.fixture
def met(pair: Places, needs: Callable[..., None]) -> Iterator[Met]:
    needs("pyverbs")
    with contextlib.ExitStack() as stack:
        yield Met(pair, stack)


@pytest.mark.parametrize("immediate", [None, 0x01020304])
def test_what_we_send_rxe_receives(met: Met, immediate: int | None) -> None:
    for size in SIZES:
        body = bytes((size + k) % 251 for k in range(size))
        met.memory[:size] = body
        met.rxe.post_receive(0, ROOM, wr_id=size)
        met.pair.post_send(met.way, met.rxe.number, met.region, 0, size, qkey=QKEY, immediate=immediate)
        found = met.until(lambda: met.rxe.poll("receive"))
        assert (found.status, found.byte_len, found.wr_id, found.src_qp) == (0, GRH + size, size, QPN)
        assert met.rxe.read(size, GRH) == body
        assert immediate is None or int(found.imm_data) == 0x04030201
        assert [each.status for each in met.pair.poll_sends()] == [SUCCESS]


@pytest.mark.parametrize("immediate", [False, True])
def test_what_rxe_sends_we_receive(met: Met, immediate: bool) -> None:
    e = met.rxe.e
    for size in SIZES:
        body = bytes((size + k) % 251 for k in range(size))
        met.rxe.write(body, 0)
        met.memory[:] = bytes(ROOM)
        met.pair.post_receive(met.region, wr_id=size)
        opcode = e.IBV_WR_SEND_WITH_IMM if immediate else e.IBV_WR_SEND
        met.rxe.post(opcode, 0, size, immediate=0x0A0B0C0D, number=QPN)
        found = met.until(lambda: next(iter(met.pair.poll_receives(1)), None))
        assert found == (size, SUCCESS, GRH + size, met.rxe.number, 0x0A0B0C0D if immediate else None)
        assert met.memory[GRH : GRH + size] == body and not any(met.memory[GRH + size :])
        assert met.memory[20] == 0x45 and met.memory[32:36] != bytes(4)  # an IPv4 header
        assert socket.inet_ntoa(bytes(met.memory[36:40])) == ADDRESS
        assert met.until(lambda: met.rxe.poll("send")).status == e.IBV_WC_SUCCESS


def test_a_wrong_qkey_is_met_by_silence_on_either_side(met: Met) -> None:
    met.rxe.post_receive(0, ROOM, wr_id=5)
    met.pair.post_send(met.way, met.rxe.number, met.region, 0, 8, qkey=QKEY ^ 1)
    met.pair.post_send(met.way, met.rxe.number, met.region, 0, 9, qkey=QKEY)
    assert met.until(lambda: met.rxe.poll("receive")).byte_len == GRH + 9
    met.pair.close()
    with DatagramPair(met.ring, met.domain, address=ADDRESS, qpn=QPN, qkey=QKEY ^ 1) as other:
        other.post_receive(met.region)
        met.rxe.post(met.rxe.e.IBV_WR_SEND, 0, 8, number=QPN)
        deadline = time.monotonic() + LIMIT
        while not other.counters["wrong_qkey"]:
            assert time.monotonic() < deadline
            other.progress()
        assert other.poll_receives() == []
