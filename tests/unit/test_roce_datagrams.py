"""Unreliable datagrams in memory: who is heard, what is dropped and counted, and the 40 bytes in front of a message."""

from __future__ import annotations

import ipaddress

import pytest

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.datagram_pair import GRH, DatagramPair
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx.errors import PathError, UsageError

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
SUCCESS = "IBV_WC_SUCCESS"
QKEY = 0x11111111


class End:
    def __init__(self, side: int, version: int = 4, **options) -> None:
        self.link = HandedLink(MACS[side], slots=options.pop("slots", 64), largest=options.pop("largest", 4400))
        self.domain = ProtectionDomain()
        self.memory = bytearray(1 << 15)
        self.region = self.domain.register(self.memory)
        here, there = ADDRESSES[version] if side == 0 else ADDRESSES[version][::-1]
        self.way = address_vector(MACS[side], MACS[1 - side], here, there)
        self.pair = DatagramPair(self.link, self.domain, address=here, qpn=0x10 + side, **options)


def carry(one: End, other: End) -> list[bytes]:
    one.pair.progress()
    frames = one.link.take_out()
    for frame in frames:
        other.link.hand_in(frame)
    other.pair.progress()
    return frames


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 3, 64, 1023, 1024])
@pytest.mark.parametrize("immediate", [None, 0, 0xFEDCBA98])
def test_a_message_arrives_behind_its_network_header(version: int, size: int, immediate: int | None) -> None:
    us, them = End(0, version), End(1, version)
    body = bytes(range(1, 256)) * 5
    us.memory[: len(body)] = body
    them.pair.post_receive(them.region, 100, GRH + size, wr_id=7)
    us.pair.post_send(us.way, 0x11, us.region, 0, size, immediate=immediate, wr_id=8)
    (frame,) = carry(us, them)
    assert us.pair.poll_sends() == [(8, SUCCESS, size, 0, None)]
    assert them.pair.poll_receives() == [(7, SUCCESS, GRH + size, 0x10, immediate)]
    assert them.memory[140 : 140 + size] == body[:size]
    assert not any(them.memory[:100]) and not any(them.memory[140 + size :])
    if version == 6:
        assert them.memory[100:140] == frame[14:54]
    else:
        assert them.memory[100:120] == bytes(20) and them.memory[120:140] == frame[14:34]
    found = dissect_roce(frame)
    assert (found["icrc"], found["qpn"], found["qkey"], found["source_qpn"]) == (True, 0x11, QKEY, 0x10)
    assert found["opcode"] == ("UD_SEND_ONLY" if immediate is None else "UD_SEND_ONLY_WITH_IMMEDIATE")


def test_the_network_header_tells_who_to_answer() -> None:
    us, them = End(0, 6), End(1, 6)
    them.pair.post_receive(them.region)
    us.pair.post_send(us.way, 0x11)
    carry(us, them)
    assert str(ipaddress.IPv6Address(bytes(them.memory[8:24]))) == ADDRESSES[6][0]


def test_numbers_grow_and_messages_go_in_order_as_far_as_the_link_has_room() -> None:
    us, them = End(0, slots=4), End(1)
    for number in range(6):
        them.pair.post_receive(them.region, number * 100, 100, wr_id=number)
        us.pair.post_send(us.way, 0x11, us.region, 0, number, wr_id=number)
    frames = carry(us, them)
    assert [each.wr_id for each in us.pair.poll_sends()] == [0, 1, 2, 3]
    frames += carry(us, them)
    assert [dissect_roce(frame)["psn"] for frame in frames] == list(range(6))
    assert [(each.wr_id, each.size) for each in them.pair.poll_receives()] == [(n, GRH + n) for n in range(6)]


def test_what_is_not_for_us_is_dropped_counted_and_takes_no_request() -> None:
    them = End(1)
    way = End(0).way
    away = address_vector(MACS[0], MACS[1], "192.0.2.1", "192.0.2.99")
    good = {"qpn": 0x11, "psn": 0, "qkey": QKEY, "source_qpn": 9, "payload": b"x" * 8}

    def tell(opcode: str = "UD_SEND_ONLY", headers: bytes = way, **changed) -> dict[str, int]:
        before = them.pair.counters
        them.link.hand_in(build_packet(headers, opcode, **{**good, **changed}))
        them.pair.progress()
        return {name: value - before[name] for name, value in them.pair.counters.items() if value != before[name]}

    assert tell() == {"no_receive": 1}
    them.pair.post_receive(them.region, 0, GRH + 8, wr_id=1)
    assert tell(qpn=0x12) == {"strangers": 1}
    assert tell(headers=away) == {"strangers": 1}
    assert tell(qkey=QKEY ^ 1) == {"wrong_qkey": 1}
    assert tell(spoil=True) == {"wrong_icrc": 1}
    assert tell("RC_SEND_ONLY") == {"malformed": 1}
    assert tell(payload=b"x" * 9) == {"too_long": 1}
    assert them.pair.poll_receives() == [] and not any(them.memory)
    assert tell() == {"packets": 1, "copied": 28}
    assert them.pair.poll_receives() == [(1, SUCCESS, GRH + 8, 9, None)]


def test_a_message_longer_than_the_mtu_is_dropped() -> None:
    them = End(1, mtu=256)
    them.pair.post_receive(them.region)
    them.link.hand_in(build_packet(End(0).way, "UD_SEND_ONLY", qpn=0x11, psn=0, qkey=QKEY, payload=bytes(257)))
    them.pair.progress()
    assert them.pair.counters["too_long"] == 1


def test_memory_that_is_gone_ends_its_own_request_alone() -> None:
    us, them = End(0), End(1)
    gone = us.domain.register(bytearray(8))
    us.pair.post_send(us.way, 0x11, gone, wr_id=1)
    us.pair.post_send(us.way, 0x11, us.region, 0, 8, wr_id=2)
    gone.close()
    lost = them.domain.register(bytearray(100))
    them.pair.post_receive(lost, wr_id=3)
    them.pair.post_receive(them.region, wr_id=4)
    lost.close()
    us.pair.post_send(us.way, 0x11, us.region, 0, 8, wr_id=5)
    carry(us, them)
    assert [(each.wr_id, each.status) for each in us.pair.poll_sends()] == [
        (1, "IBV_WC_LOC_PROT_ERR"), (2, SUCCESS), (5, SUCCESS),
    ]  # fmt: skip
    assert [(each.wr_id, each.status) for each in them.pair.poll_receives()] == [
        (3, "IBV_WC_LOC_PROT_ERR"),
        (4, SUCCESS),
    ]


def test_a_controlled_key_stands_for_the_pairs_own() -> None:
    us, them = End(0, qkey=0x22222222), End(1, qkey=0x22222222)
    them.pair.post_receive(them.region)
    us.pair.post_send(us.way, 0x11, qkey=0x80000000)
    carry(us, them)
    assert them.pair.counters["packets"] == 1


def test_what_is_posted_is_flushed() -> None:
    us = End(0)
    us.pair.post_send(us.way, 0x11, wr_id=1)
    us.pair.post_receive(us.region, wr_id=2)
    us.pair.close()
    us.pair.close()
    for found, number in ((us.pair.poll_sends(), 1), (us.pair.poll_receives(), 2)):
        assert [(each.wr_id, each.status) for each in found] == [(number, "IBV_WC_WR_FLUSH_ERR")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"qpn": 1}, "number is between 2"), ({"qkey": 1 << 32}, "a Q_Key is between"), ({"mtu": 1500}, "no path MTU"),
        ({"address": "here"}, "not an IP address"), ({"send_depth": 0}, "send_depth is between"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_is_refused(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DatagramPair(HandedLink(), ProtectionDomain(), **{"address": "192.0.2.1", "qpn": 17, **options})


def test_what_cannot_be_posted_is_refused() -> None:
    us = End(0, send_depth=2, receive_depth=2)
    other = ProtectionDomain().register(bytearray(100))
    for call, words in (
        (lambda: us.pair.post_send(us.way, 0x11, us.region, 0, 1025), "at most 1024 bytes, not 1025"),
        (lambda: us.pair.post_send(us.way, 1 << 24), "queue pair is between"),
        (lambda: us.pair.post_send(us.way, 0x11, immediate=1 << 32), "immediate is between"),
        (lambda: us.pair.post_send(us.way, 0x11, us.region, 1 << 15, 1), "not within a region"),
        (lambda: us.pair.post_send(us.way, 0x11, other), "another protection domain"),
        (lambda: us.pair.post_send(b"", 0x11), "42 bytes"),
        (lambda: us.pair.post_receive(us.region, 0, 39), "no room for the 40"),
        (lambda: us.pair.post_receive(other), "another protection domain"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
    for _ in range(2):
        us.pair.post_send(us.way, 0x11)
        us.pair.post_receive(us.region)
    with pytest.raises(UsageError, match="2 send requests are posted"):
        us.pair.post_send(us.way, 0x11)
    with pytest.raises(UsageError, match="2 receive requests are posted"):
        us.pair.post_receive(us.region)
    small = End(0, largest=1000)
    with pytest.raises(UsageError, match="does not fit a frame"):
        small.pair.post_send(small.way, 0x11)
    us.link.close()
    with pytest.raises(PathError, match="the link of this queue pair failed"):
        us.pair.progress()
