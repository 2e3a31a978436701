"""Endpoints of datagrams on links that are carried by hand: messages, strangers, what is refused, what is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.packet import dissect_roce
from hwrx import roce
from hwrx.cli import main
from hwrx.errors import PathError, UsageError
from hwrx.roce import talking_datagrams
from hwrx.roce.datagrams import GRH, QKEY, DatagramEndpoint
from hwrx.roce.neighbours import ask_neighbour
from hwrx.roce.talking import RoundTrips, Slots, receive_messages
from hwrx.roce.talking_datagrams import ping_datagrams, send_datagrams

OURS, THEIRS = "192.0.2.1", "192.0.2.2"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
SUCCESS = "IBV_WC_SUCCESS"


def opened(side: int, **options: Any) -> DatagramEndpoint:
    return roce.datagram_endpoint(HandedLink(MACS[side]), (OURS, THEIRS)[side], qpn=0x11 + side, **options)


def carry(one: DatagramEndpoint, other: DatagramEndpoint) -> list[dict[str, Any]]:
    """Hand what one has sent to the other, which takes it."""
    frames = one.link.take_out()  # type: ignore[attr-defined]
    for frame in frames:
        other.link.hand_in(frame)  # type: ignore[attr-defined]
        other.drive()
    return [dissect_roce(frame) for frame in frames]


@pytest.fixture
def both() -> tuple[DatagramEndpoint, DatagramEndpoint]:
    us, them = opened(0), opened(1)
    us.connect(them.parameters.to_line())
    return us, them


def test_the_line_tells_the_q_key_and_reads_as_it_was_written() -> None:
    us = opened(0, qkey=0xABCDEF01)
    assert "QKEY 0xabcdef01" in us.parameters.to_line()
    assert roce.parse_parameters(us.parameters.to_line()) == us.parameters
    assert roce.parse_parameters("QPN 1, PSN 2, GID ::1").qkey is None


@pytest.mark.parametrize("verb", ["send", "send-imm"])
def test_a_message_stands_behind_its_header(both, verb: str) -> None:
    us, them = both
    memory = bytearray(200)
    them.post_receive(them.register(memory), wr_id=3)
    us.post_send(verb, us.register(bytearray(b"datagram")), immediate=7, wr_id=4)
    (sent,) = carry(us, them)
    assert (sent["qkey"], sent["source_qpn"], sent["qpn"]) == (QKEY, 0x11, 0x12)
    told = 7 if verb == "send-imm" else None
    assert them.check_completion(them.next_receive(1)) == (3, SUCCESS, GRH + 8, 0x11, told)
    assert memory[GRH : GRH + 8] == b"datagram"
    assert us.next_send(1).wr_id == 4


def test_the_q_key_is_that_of_the_peer_and_a_wrong_one_is_dropped_and_told() -> None:
    us, them = opened(0), opened(1, qkey=5)
    them.post_receive(them.register(bytearray(100)))
    us.connect(roce.parse_parameters(f"QPN 0x12, PSN 0, GID ::ffff:{THEIRS}, MAC {MACS[1]}"))
    us.post_send("send")
    carry(us, them)
    with pytest.raises(PathError, match="1 with another Q_Key") as caught:
        them.next_receive(0.0)
    assert "--qkey" in caught.value.remedy
    us.connect(them.parameters)
    us.post_send("send")
    carry(us, them)
    assert them.next_receive(1).size == GRH


def test_what_datagrams_do_not_have_is_refused(both) -> None:
    us, them = both
    region = us.register(bytearray(2000))
    with pytest.raises(UsageError, match="datagrams have no write"):
        us.post_send("write", region, 0, 8)
    with pytest.raises(UsageError, match="no peer is named"):
        them.post_send("send")
    with pytest.raises(UsageError, match="a datagram has at most 1024 bytes, not 1025"):
        us.post_send("send", region, 0, 1025)
    with pytest.raises(UsageError, match="not registered"):
        us.post_send("send", bytearray(8))
    with pytest.raises(UsageError, match=r"2001:db8::1 are not of one version"):
        us.connect("QPN 2, PSN 0, GID 2001:db8::1")
    with pytest.raises(UsageError, match="a Q_Key is between"):
        opened(0, qkey=1 << 32)


def test_who_asks_for_our_address_is_answered_meanwhile(both) -> None:
    us, _ = both
    us.link.hand_in(ask_neighbour(MACS[1], THEIRS, OURS))
    us.idle()
    (answer,) = us.link.take_out()
    assert answer[12:14] == b"\x08\x06" and answer[22:28].hex(":") == MACS[0]


def test_many_go_and_are_received_each(both) -> None:
    us, them = both
    slots = Slots(them, 100, 16)
    for _ in range(16):
        slots.post()
    done: list[int] = []
    region = us.register(bytearray(range(100)))
    found = send_datagrams(us, "send-imm", region, 100, 10, told=done.append)
    assert (found.messages, found.counters["sent"], done) == (10, 10, list(range(1, 11)))
    carry(us, them)
    came = list(receive_messages(them, slots, count=10, echo=False, timeout=0.1, left=lambda: False))
    assert [(each.size, each.verb, each.immediate) for each in came] == [(100, "SEND", n) for n in range(10)]
    assert came[0].text == bytes(range(64))


class Clock:
    """Time goes on by a hundredth of a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def monotonic_ns(self) -> int:
        self.now += 10**7
        return self.now


class Echo:
    """The other end, which sends back what it gets when we wait; `lost` and `late` are numbers of messages."""

    def __init__(self, us: DatagramEndpoint, them: DatagramEndpoint, lost: set[int], late: set[int]) -> None:
        self.us, self.them, self.lost, self.late = us, them, lost, late
        self.kept: list[bytes] = []
        self.number = 0
        them.connect(us.parameters)
        self.slots = Slots(them, us.parameters.mtu, 1)
        self.slots.post()
        self.drive = us.drive
        us.drive = self  # type: ignore[method-assign]

    def __call__(self, seconds: float = 0.0) -> int:
        came = self.drive(0.0)
        carry(self.us, self.them)
        for found in self.them.queue_pair.poll_receives():
            at, size = self.slots.place_of(found)
            self.them.post_send("send", self.slots.region, at, size)
            self.slots.post()
            answers = self.them.link.take_out()  # type: ignore[attr-defined]
            for frame in [*self.kept, *answers] if self.number not in self.lost | self.late else []:
                self.us.link.hand_in(frame)  # type: ignore[attr-defined]
            self.kept = answers if self.number in self.late else []
            self.number += 1
        return came


@pytest.fixture
def ping(both: tuple[DatagramEndpoint, DatagramEndpoint], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RoundTrips]:
    monkeypatch.setattr(talking_datagrams, "time", Clock())
    return lambda count, **what: ping_over(both, count, **what)


def ping_over(both: tuple[DatagramEndpoint, DatagramEndpoint], count: int, *, lost=(), late=()) -> RoundTrips:
    us, them = both
    Echo(us, them, set(lost), set(late))
    slots = Slots(us, 32, 4)
    for _ in range(4):
        slots.post()
    return ping_datagrams(us, slots, count, interval=0.0, timeout=0.2, told=lambda done: None)


def test_round_trips_of_datagrams(ping) -> None:
    found = ping(5)
    assert (len(found.times), found.lost, found.different) == (5, 0, 0)


def test_answers_that_are_lost_or_late_are_counted_and_no_late_one_is_taken_for_another(ping) -> None:
    found = ping(6, lost={1}, late={3})
    assert (len(found.times), found.lost, found.different) == (4, 2, 0)


def test_no_answer_at_all_is_told(ping) -> None:
    with pytest.raises(PathError, match=r"none of 2 datagrams was answered within 0\.2 s"):
        ping(2, lost={0, 1})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["send", "--service", "ud", "--verb", "write"], "datagrams have no write"),
        (["ping", "--service", "ud", "--verb", "read"], "datagrams have no read"),
        (["send", "--service", "ud", "--size", "1025"], "a datagram has at most 1024 bytes, not 1025"),
        (["send", "--service", "ud", "--key", "5"], "datagrams have no --key"),
        (["send", "--service", "ud", "--psn", "5"], "datagrams have no --psn"),
        (["ping", "--service", "ud", "--cm", "192.0.2.2"], "datagrams have no --cm"),
        (["listen", "--service", "ud", "--cm"], "datagrams have no --cm"),
        (["listen", "--qkey", "5"], "a reliable connection has no Q_Key"),
        (["listen", "--service", "ud", "--qkey", "0x100000000"], "--qkey"),
    ],
)
def test_options_that_a_service_does_not_have_are_refused(words: list[str], said: str, capsys) -> None:
    command = ["roce", words[0], "nosuch0", "--address", OURS, *words[1:]]
    assert main(command) == 2
    assert said in capsys.readouterr().err
