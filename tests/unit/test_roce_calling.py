"""The active side of RDMA-CM in memory: it calls our own passive side, and listeners that refuse, wait, are silent."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx import roce
from hwrx.errors import PeerError
from hwrx.roce import calling
from hwrx.roce.calling import Caller
from hwrx.roce.connecting import Manager
from hwrx.roce.management import (
    DREP,
    DREQ,
    GSI_QKEY,
    MRA,
    REJ,
    REP,
    REQ,
    RTU,
    Request,
    build_request,
    read_management,
    read_request,
)
from hwrx.roce.rping import make_text
from hwrx.roce.talking import Slots

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
OURS, THEIRS = "192.0.2.1", "192.0.2.2"
PORT = 7174
BACK = address_vector(MACS[1], MACS[0], THEIRS, OURS)
SUCCESS = "IBV_WC_SUCCESS"


class Clock:
    """Time goes on by a hundredth of a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(calling, "time", made)
    return made


class Side:
    """An endpoint on a link in memory. `other` is asked whenever this one has nothing to do."""

    def __init__(self, side: int, **options: Any) -> None:
        self.link = HandedLink(MACS[side])
        self.qp = roce.endpoint(self.link, (OURS, THEIRS)[side], qpn=0x11 + side, psn=(0x777, 0x999)[side], **options)
        self.told: list[int] = []  # attributes of the messages that it sent
        self.answer: Callable[[bytes], list[bytes]] = lambda frame: []
        idle = self.qp.idle

        def exchange(seconds: float = 0.0) -> None:
            for frame in self.link.take_out():
                found = read_management(frame)
                self.told += [found.attribute] if found else []
                for reply in self.answer(frame):
                    self.link.hand_in(reply)
            idle(0.0)

        self.qp.idle = exchange  # type: ignore[method-assign]


class Listener:
    """Our own passive side, as what answers."""

    def __init__(self, lost: dict[int, int] | None = None, **options: Any) -> None:
        self.side = Side(1, **options)
        self.manager = Manager(self.side.qp, PORT)
        self.side.qp.management = self.manager.take
        self.lost = dict(lost or {})

    def __call__(self, frame: bytes) -> list[bytes]:
        if not self._loses(frame):
            self.side.link.hand_in(frame)
        self.side.qp.idle()
        return [each for each in self.side.link.take_out() if not self._loses(each)]

    def _loses(self, frame: bytes) -> bool:
        found = read_management(frame)
        left = self.lost.get(found.attribute, 0) if found else 0
        if found and left:
            self.lost[found.attribute] = left - 1
        return left > 0


def scripted(*answers: Callable[[Any], tuple[int, bytes] | None]) -> Callable[[bytes], list[bytes]]:
    """Answer the first messages, one after the other; None, or nothing left: silence."""
    left = list(answers)

    def answer(frame: bytes) -> list[bytes]:
        found = read_management(frame)
        made = left.pop(0)(found) if left and found is not None else None
        return [] if made is None or found is None else [message(made[0], made[1], found.transaction)]

    return answer


def message(attribute: int, body: bytes, transaction: int = 7) -> bytes:
    head = b"\x01\x07\x02\x03" + bytes(4) + transaction.to_bytes(8, "big") + attribute.to_bytes(2, "big") + bytes(6)
    payload = (head + body).ljust(256, b"\0")
    return build_packet(BACK, "UD_SEND_ONLY", qpn=1, psn=0, qkey=GSI_QKEY, source_qpn=1, payload=payload)


def to_caller(found: Any, *more: bytes, server: int = 5) -> bytes:
    """The beginning of a message's body: the server's number for the connection, and the client's."""
    return server.to_bytes(4, "big") + found.body[0:4] + b"".join(more)


def reply(found: Any, reads: int = 4) -> tuple[int, bytes]:
    body = bytearray(to_caller(found).ljust(232, b"\0"))
    body[12:15], body[20:23], body[24], body[27] = b"\0\0\x99", b"\x12\x34\x56", reads, 7 << 5
    return REP, bytes(body)


def call(answer: Callable[[bytes], list[bytes]], patience: float = 10.0) -> tuple[Side, Caller]:
    side = Side(0)
    side.answer = answer
    caller = Caller(side.qp, THEIRS, PORT)
    caller.connect(mac=MACS[1], patience=patience)
    return side, caller


@pytest.mark.parametrize("lost", [{}, {REQ: 2}, {REP: 1}, {RTU: 1}, {DREQ: 1}, {DREP: 1}])
def test_our_two_sides_connect_speak_and_part_whatever_message_is_lost_once(lost: dict[int, int]) -> None:
    listener = Listener(lost)
    there = listener.side.qp
    slots = Slots(there, 64, 2)
    slots.post()
    side, caller = call(listener)
    assert (side.qp.peer.qpn, there.peer.qpn) == (there.parameters.qpn, side.qp.parameters.qpn)  # type: ignore[union-attr]
    side.qp.post_send("send", side.qp.register(bytearray(b"eight by")))
    for _ in range(4):
        side.qp.idle()
    assert side.qp.next_send(1).status == SUCCESS
    assert slots.bytes_of(there.next_receive(1)) == b"eight by"
    assert not listener.manager.ended
    assert caller.disconnect()
    assert listener.manager.ended


def test_a_reply_that_comes_again_is_confirmed_again() -> None:
    side, _ = call(scripted(reply, reply))
    for _ in range(3):
        side.qp.idle()
    assert side.told.count(RTU) == 2


@pytest.mark.parametrize("addresses", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_a_request_says_who_asks_whom_for_what(addresses: tuple[str, str]) -> None:
    ours, theirs = (roce.parameters.gid_of(each) for each in addresses)
    asked = Request(
        communication=0xAABBCCDD, port=PORT, qpn=0x123456, starting_psn=0x654321, mtu=2048, initiator_depth=3,
        responder_resources=2, ack_timeout=18, retry_count=6, rnr_retry=7, address=ours,
    )  # fmt: skip
    body = build_request(asked, theirs, MACS[0])
    assert read_request(body) == asked
    # primary paths, and RDMA-CM's own header in the private data
    assert ipaddress.IPv6Address(body[72:88]) == ipaddress.IPv6Address(theirs)
    version = ipaddress.ip_address(addresses[0]).version
    assert body[140:142] == bytes((0, version << 4))
    for at, address in zip((144, 160), addresses, strict=True):
        assert body[at : at + 16] == ipaddress.ip_address(address).packed.rjust(16, b"\0")


@pytest.mark.parametrize(
    ("reason", "says"),
    [(8, "nobody listens at this port"), (28, "its program refused"), (77, "reason 77 of the connection manager")],
)
def test_a_refusal_is_told_in_words(reason: int, says: str) -> None:
    def refuse(found: Any) -> tuple[int, bytes]:
        return REJ, to_caller(found, bytes(2), reason.to_bytes(2, "big"))

    with pytest.raises(PeerError, match=rf"{THEIRS}, port {PORT} refuses the connection: {says}") as caught:
        call(scripted(refuse))
    assert "rping -s" in caught.value.remedy


def test_our_own_passive_side_refuses_another_port() -> None:
    side = Side(0)
    side.answer = Listener()
    with pytest.raises(PeerError, match="nobody listens at this port"):
        Caller(side.qp, THEIRS, PORT + 1).connect(mac=MACS[1])


def test_silence_ends_in_words_after_the_request_was_sent_again() -> None:
    side = Side(0)
    with pytest.raises(PeerError, match=rf"nobody answers at {THEIRS}, port {PORT}, within 3 s") as caught:
        Caller(side.qp, THEIRS, PORT).connect(mac=MACS[1], patience=3)
    assert side.told.count(REQ) >= 4 and "modprobe rdma_cm" in caught.value.remedy


def test_a_listener_that_asks_for_time_is_given_it() -> None:
    def wait(found: Any) -> tuple[int, bytes]:
        return MRA, to_caller(found, bytes((0, 20 << 3)))

    with pytest.raises(PeerError, match="nobody answers"):
        call(scripted(lambda found: None, reply), patience=0.4)
    side, _ = call(scripted(wait, reply), patience=0.4)
    assert side.qp.peer is not None


def test_what_is_for_another_connection_is_passed_over() -> None:
    def for_another(found: Any) -> tuple[int, bytes]:
        return REJ, bytes(4) + b"\xff\xff\xff\xfe" + bytes(2) + b"\0\x08"

    side, _ = call(scripted(for_another, reply))
    assert side.qp.peer is not None


def test_an_answer_that_cannot_be_is_told() -> None:
    def for_management(found: Any) -> tuple[int, bytes]:
        _, body = reply(found)
        return REP, body[:12] + b"\0\0\1" + body[15:]

    with pytest.raises(PeerError, match=r"the listener's answer cannot be: the other end's queue pair is between"):
        call(scripted(for_management))


def test_a_listener_that_leaves_is_answered() -> None:
    side, caller = call(scripted(reply))
    number = caller._communication.to_bytes(4, "big")
    side.link.hand_in(message(DREQ, bytes(4) + number))
    side.qp.idle()
    side.qp.idle()
    assert caller.ended and side.told[-1] == DREP
    assert caller.disconnect() and side.told.count(DREQ) == 0


def test_a_listener_that_does_not_answer_the_leave_is_told_of() -> None:
    side, caller = call(scripted(reply))
    assert not caller.disconnect(patience=2)
    assert side.told.count(DREQ) >= 3


def test_no_more_reads_are_outstanding_than_the_listener_bears() -> None:
    side, _ = call(scripted(lambda found: reply(found, reads=1)))
    region = side.qp.register(bytearray(64))
    side.link.take_out()
    for _ in range(2):
        side.qp.post_send("read", region, 0, 8, key=1, address=1)
    sent = [dissect_roce(frame)["opcode"] for frame in side.link.take_out()]
    assert sent == ["RC_RDMA_READ_REQUEST"]


def test_texts_are_those_of_rping() -> None:
    assert make_text(3, 20) == b"rdma-ping-3: DEFGHI\0"
    assert [len(make_text(0, size)) for size in (0, 1, 5, 64)] == [0, 1, 5, 64]
    assert make_text(0, 1) == b"\0"
