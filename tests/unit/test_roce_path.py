"""RoceTransport over links in memory: every verb, and what the quick way through `drive` takes and leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cython_ext.core.payload import make
from cython_ext.frames.handed_link import HandedLink
from cython_ext.loops import cost
from cython_ext.roce.packet import address_vector, build_packet
from cython_ext.roce.roce_path import RoceTransport
from hwrx.control.messages import Prepare, Role, Setting
from hwrx.errors import PathError, PeerError, UsageError
from hwrx.paths.roce_port import RocePort, choose_roce_mtu

MACS: dict[Role, str] = {"client": "02:00:00:00:00:01", "server": "02:00:00:00:00:02"}
ADDRESSES: dict[Role, str] = {"client": "192.0.2.1", "server": "192.0.2.2"}
ROLES: tuple[Role, Role] = ("client", "server")


class Pair:
    """Both ends of a path in one process; `carry` is the wire."""

    def __init__(self, path: str, *, size: int = 64, mtu: int = 1024, pattern: str = "stream", **more: Any) -> None:
        self.ends: dict[Role, RoceTransport] = {}
        setting = Setting(path=path, size=size, pattern=pattern, window=32, limit=1.0, patience=0.01, **more)  # type: ignore[arg-type]
        for role in ROLES:
            link = HandedLink(MACS[role], slots=512, largest=4300)
            self.ends[role] = RoceTransport(
                Prepare(trial=1, role=role, setting=setting, here={}, there={}),  # type: ignore[arg-type]
                RocePort(link, ADDRESSES[role], mtu),
            )
        said = {role: end.describe() for role, end in self.ends.items()}
        self.ends["client"].connect(said["server"])
        self.ends["server"].connect(said["client"])

    def carry(self) -> int:
        """Take frames from either end to the other, until none are under way: how many."""
        count = 0
        for role, other in (("client", "server"), ("server", "client")):
            for frame in self.ends[role].link.take_out():  # type: ignore[attr-defined]
                self.ends[other].link.hand_in(frame)  # type: ignore[attr-defined]
                count += 1
        return count

    def counters(self, role: Role) -> dict[str, int]:
        return self.ends[role].pair.counters

    def close(self) -> None:
        for end in self.ends.values():
            end.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(*request.param) if isinstance(request.param, tuple) else Pair(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("size", [8, 64, 1021, 1024, 1025, 5000])
@pytest.mark.parametrize("path", ["roce-send", "roce-write-imm"])
def test_messages_come_through(path: str, size: int) -> None:
    pair = Pair(path, size=size)
    for _ in range(30):
        assert cost.post(pair.ends["client"], 8)[0] == 8
        pair.carry()
        assert cost.receive(pair.ends["server"], 8, 8)[0] == 8
        pair.carry()
        pair.ends["client"].pair.progress()
        assert pair.ends["client"].pair.unfinished == 0
    got = pair.counters("server")
    in_frames = 30 * 8 * size if path == "roce-send" and size <= 1024 else 0
    assert (got["in_frames"], got["copied"]) == (in_frames, 30 * 8 * size - in_frames)
    assert (got["malformed"], got["wrong_icrc"], got["out_of_order"]) == (0, 0, 0)
    pair.close()


def sent_by(pair: Pair, psn: int, **fields: Any) -> bytes:
    """A frame of the client's, as it may come."""
    there = pair.ends["client"].end
    way = address_vector(
        fields.pop("mac", MACS["client"]), MACS["server"], fields.pop("source", ADDRESSES["client"]),
        ADDRESSES["server"],
    )  # fmt: skip
    return build_packet(
        way, fields.pop("opcode", "RC_SEND_ONLY"), qpn=fields.pop("qpn", pair.ends["server"].pair.qpn),
        psn=(there.psn + psn) & 0xFFFFFF, payload=fields.pop("payload", make(64, psn, 1)), **fields,
    )  # fmt: skip


@pytest.mark.parametrize("pair", ["roce-send"], indirect=True)
def test_what_the_quick_way_does_not_know_is_judged_as_ever(pair: Pair) -> None:
    """Between good ones: a duplicate, one ahead, a wrong ICRC, strangers, and ones that have another shape."""
    server = pair.ends["server"]
    changed = bytearray(sent_by(pair, 1))
    changed[60] ^= 1
    spoiled_header = bytearray(sent_by(pair, 1))
    spoiled_header[22] ^= 1  # the time to live, which the ICRC does not cover and IP's checksum does
    for frame in (
        sent_by(pair, 0),
        sent_by(pair, 0),  # again
        sent_by(pair, 3),  # too early
        bytes(changed),
        bytes(spoiled_header),
        sent_by(pair, 1, source="192.0.2.9"),
        sent_by(pair, 1, qpn=0x77),
        sent_by(pair, 1, payload=bytes(63)),  # padded
        sent_by(pair, 2, opcode="RC_SEND_ONLY_WITH_IMMEDIATE", immediate=7),
        sent_by(pair, 3, solicited=True, ack_request=True),
    ):
        server.link.hand_in(frame)  # type: ignore[attr-defined]
    server.pair.progress()
    found = server.pair.poll_receives()
    assert [(each.status, each.size, each.immediate) for each in found] == [
        ("IBV_WC_SUCCESS", 64, None), ("IBV_WC_SUCCESS", 63, None), ("IBV_WC_SUCCESS", 64, 7),
        ("IBV_WC_SUCCESS", 64, None),
    ]  # fmt: skip
    counters = pair.counters("server")
    assert (counters["duplicates"], counters["out_of_order"], counters["wrong_icrc"]) == (1, 1, 1)
    assert (counters["strangers"], counters["packets"], counters["in_frames"]) == (2, 6, 64 * 3 + 63)


@pytest.mark.parametrize("pair", ["roce-send"], indirect=True)
def test_a_message_that_is_too_long_for_its_request_is_refused(pair: Pair) -> None:
    server = pair.ends["server"]
    server.link.hand_in(sent_by(pair, 0, payload=bytes(68)))  # type: ignore[attr-defined]
    server.pair.progress()
    assert [each.status for each in server.pair.poll_receives()][:1] == ["IBV_WC_LOC_LEN_ERR"]
    assert server.pair.state == "IBV_QPS_ERR"


def test_without_a_receive_request_the_other_end_is_told_to_come_again() -> None:
    pair = Pair("roce-send", pattern="pingpong")
    for psn in range(17):  # sixteen are posted
        pair.ends["server"].link.hand_in(sent_by(pair, psn))  # type: ignore[attr-defined]
    pair.ends["server"].pair.progress()
    assert pair.counters("server")["rnr_naks_sent"] == 1
    assert len(pair.ends["server"].pair.poll_receives(64)) == 16
    pair.close()


def test_the_ends_must_fit() -> None:
    pair = Pair("roce-send")
    said = pair.ends["server"].describe()
    for changed, error in (({"size": 65}, PeerError), ({"path": "rdma-write"}, PeerError), ({"qpn": -1}, PeerError)):
        with pytest.raises(error):
            Pair("roce-send").ends["client"].connect({**said, **changed})
    with pytest.raises(PathError, match="both ends have the address"):
        Pair("roce-send").ends["client"].connect({**said, "gid": pair.ends["client"].end.gid})
    pair.close()


@pytest.mark.parametrize(("wire", "mtu"), [(1500, 1024), (4200, 4096), (4150, 2048), (576, 256), (9000, 4096)])
def test_the_largest_mtu_that_fits_the_wire_is_chosen(wire: int, mtu: int) -> None:
    assert choose_roce_mtu(wire, None, "eth0") == mtu
    assert choose_roce_mtu(wire, 256, "eth0") == 256


def test_an_mtu_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"packets of 2048 bytes do not fit eth0, whose MTU is 1500"):
        choose_roce_mtu(1500, 2048, "eth0")
    with pytest.raises(UsageError, match=r"packets of 256 bytes do not fit eth0"):
        choose_roce_mtu(300, None, "eth0")
