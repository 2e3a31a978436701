"""The connection manager's messages in memory: a client asks, is answered, is refused, and leaves."""

from __future__ import annotations

import ipaddress

import pytest

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.packet import address_vector, build_packet, dissect_roce
from hwrx import roce
from hwrx.errors import PeerError
from hwrx.roce.connecting import Manager
from hwrx.roce.management import DREP, DREQ, GSI_QKEY, REJ, REP, REQ, RTU, read_management, read_request

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
OURS, THEIRS = "192.0.2.1", "192.0.2.2"
WAY = address_vector(MACS[1], MACS[0], THEIRS, OURS)
PORT = 7174


def request_body(port: int = PORT, **changed: int) -> bytes:
    body = bytearray(232)
    body[0:4] = (0xAABBCCDD).to_bytes(4, "big")
    body[8:16] = (changed.get("service", 0x01060000) + port).to_bytes(8, "big")
    body[32:35] = (0x99).to_bytes(3, "big")
    body[35], body[39] = 1, 2
    body[44:47] = (0x123456).to_bytes(3, "big")
    body[47], body[50], body[95] = 0xA0 | 6, changed.get("mtu", 3) << 4 | 7, 18 << 3
    body[56:72] = ipaddress.IPv6Address(f"::ffff:{THEIRS}").packed
    return bytes(body)


def management(attribute: int, body: bytes, transaction: int = 7, **changed) -> bytes:
    head = b"\x01\x07\x02\x03" + bytes(4) + transaction.to_bytes(8, "big") + attribute.to_bytes(2, "big") + bytes(6)
    fields = {"qpn": 1, "psn": 0, "qkey": GSI_QKEY, "source_qpn": 1, "payload": (head + body).ljust(256, b"\0")}
    return build_packet(WAY, "UD_SEND_ONLY", **{**fields, **changed})


class Passive:
    def __init__(self) -> None:
        self.link = HandedLink(MACS[0])
        self.qp = roce.endpoint(self.link, OURS, qpn=0x11, psn=0x777)
        self.manager = Manager(self.qp, PORT)

    def tell(self, *frames: bytes) -> list[tuple[int, bytes]]:
        """Attributes and bodies of the answers."""
        for frame in frames:
            self.link.hand_in(frame)
            self.qp.idle()
        found = [read_management(frame) for frame in self.link.take_out()]
        assert all(each is not None and each.transaction == 7 for each in found)
        return [(each.attribute, each.body) for each in found if each is not None]

    def asked(self, *frames: bytes) -> list[tuple[int, bytes]]:
        self.qp.management = self.manager.take
        return self.tell(*frames)


def test_a_request_is_read_as_it_was_written() -> None:
    found = read_request(request_body())
    assert (found.communication, found.port, found.qpn, found.starting_psn) == (0xAABBCCDD, PORT, 0x99, 0x123456)
    assert (found.mtu, found.initiator_depth, found.responder_resources) == (1024, 2, 1)
    assert (found.ack_timeout, found.retry_count, found.rnr_retry) == (18, 6, 7)
    assert found.address == f"::ffff:{THEIRS}" or ipaddress.IPv6Address(found.address).ipv4_mapped


def test_a_client_is_connected_and_each_end_begins_where_the_other_wants() -> None:
    passive = Passive()
    passive.link.hand_in(management(REQ, request_body()))
    there = passive.manager.accept(patience=5)
    assert (there.qpn, there.ip) == (0x99, THEIRS)
    ((attribute, body),) = passive.tell()
    assert attribute == REP and body[4:8].hex() == "aabbccdd"
    assert int.from_bytes(body[12:15], "big") == 0x11 and int.from_bytes(body[20:23], "big") == 0x777
    assert (body[24], body[25], body[27] >> 5) == (2, 1, 7)
    passive.qp.post_send("send")
    sent = dissect_roce(passive.link.take_out()[0])
    assert (sent["qpn"], sent["psn"]) == (0x99, 0x123456)
    memory = passive.qp.register(bytearray(8))
    passive.qp.post_receive(memory)
    passive.link.hand_in(build_packet(WAY, "RC_SEND_ONLY", qpn=0x11, psn=0x777, payload=b"8 bytes!"))
    assert passive.qp.next_receive(1).size == 8


def test_receive_requests_that_were_posted_before_stay_if_the_path_has_a_smaller_mtu() -> None:
    passive = Passive()
    passive.qp.post_receive(passive.qp.register(bytearray(8)), wr_id=5)
    passive.link.hand_in(management(REQ, request_body(mtu=1)))
    passive.manager.accept(patience=5)
    passive.link.hand_in(build_packet(WAY, "RC_SEND_ONLY", qpn=0x11, psn=0x777, payload=b"8 bytes!"))
    assert passive.qp.next_receive(1).wr_id == 5


def test_no_more_reads_are_outstanding_than_the_client_bears() -> None:
    passive = Passive()
    passive.link.hand_in(management(REQ, request_body()))  # it bears one
    passive.manager.accept(patience=5)
    passive.link.take_out()
    region = passive.qp.register(bytearray(8))
    for _ in range(2):
        passive.qp.post_send("read", region, key=1, address=1)
    assert [dissect_roce(frame)["opcode"] for frame in passive.link.take_out()] == ["RC_RDMA_READ_REQUEST"]


def test_a_request_that_comes_again_gets_the_same_answer() -> None:
    passive = Passive()
    first, again = passive.asked(management(REQ, request_body()), management(REQ, request_body()))
    assert first == again and first[0] == REP


@pytest.mark.parametrize(("changed", "reason"), [({"port": 99}, 8), ({"service": 0x013F0000}, 8), ({"mtu": 0}, 3)])
def test_a_request_for_something_else_is_refused(changed: dict[str, int], reason: int) -> None:
    passive = Passive()
    ((attribute, body),) = passive.asked(management(REQ, request_body(**changed)))
    assert attribute == REJ and body[4:8].hex() == "aabbccdd" and int.from_bytes(body[10:12], "big") == reason
    assert passive.qp.peer is None


@pytest.mark.parametrize(("at", "value"), [(56, "2001:db8::2"), (56, f"::ffff:{OURS}"), (32, "\0\0\1")])
def test_a_client_that_cannot_be_is_refused(at: int, value: str) -> None:
    """An address of the other version of IP, our own address, the queue pair of management."""
    passive = Passive()
    body = bytearray(request_body())
    changed = ipaddress.IPv6Address(value).packed if ":" in value else value.encode()
    body[at : at + len(changed)] = changed
    passive.qp.management = passive.manager.take
    passive.link.hand_in(management(REQ, bytes(body)))
    passive.qp.idle()
    assert passive.qp.peer is None
    (frame,) = passive.link.take_out()
    found = read_management(frame)
    assert found is not None and (found.attribute, int.from_bytes(found.body[10:12], "big")) == (REJ, 12)


@pytest.mark.parametrize(("source", "to"), [("2001:db8::2", "2001:db8::1"), (THEIRS, "192.0.2.9")])
def test_a_request_to_another_address_is_passed_over(source: str, to: str) -> None:
    passive = Passive()
    payload = management(REQ, request_body())[-260:-4]
    way = address_vector(MACS[1], MACS[0], source, to)
    frame = build_packet(way, "UD_SEND_ONLY", qpn=1, psn=0, qkey=GSI_QKEY, source_qpn=1, payload=payload)
    assert read_management(frame) is not None
    assert passive.asked(frame) == [] and passive.qp.peer is None


def test_a_second_client_is_refused_and_the_first_one_stays() -> None:
    passive = Passive()
    body = bytearray(request_body())
    body[0] = 1
    answers = passive.asked(management(REQ, request_body()), management(REQ, bytes(body)))
    assert [attribute for attribute, _ in answers] == [REP, REJ]
    assert passive.tell(management(REQ, request_body()))[0][0] == REP


def test_a_client_that_leaves_is_let_go() -> None:
    passive = Passive()
    ((_, reply),) = passive.asked(management(REQ, request_body()))
    ours = reply[0:4]
    assert passive.tell(management(RTU, b"\xaa\xbb\xcc\xdd" + ours)) == []
    assert passive.tell(management(DREQ, b"\xaa\xbb\xcc\xdd" + bytes(4))) == [] and not passive.manager.ended
    ((attribute, body),) = passive.tell(management(DREQ, b"\xaa\xbb\xcc\xdd" + ours))
    assert (attribute, body[:8]) == (DREP, ours + b"\xaa\xbb\xcc\xdd") and passive.manager.ended


def test_what_is_not_the_connection_managers_is_passed_over() -> None:
    passive = Passive()
    good = management(REQ, request_body())
    for bad in (
        management(REQ, request_body(), qkey=1), management(REQ, request_body(), spoil=True), good[:200],
        management(REQ, request_body(), payload=bytes(256)), management(REQ, request_body(), payload=bytes(8)),
    ):  # fmt: skip
        assert passive.asked(bad) == []
    with pytest.raises(PeerError, match=r"nobody asked for a connection to port 7174 within 0.1 s"):
        passive.manager.accept(patience=0.1)
