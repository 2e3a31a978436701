"""Endpoints of RoCEv2 over links in memory: the line that they exchange, neighbours, and bad input in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.packet import address_vector, build_packet
from hwrx import roce
from hwrx.errors import PathError, UsageError
from hwrx.roce import opening
from hwrx.roce.neighbours import answer_neighbour, ask_neighbour, read_neighbour, solicited_node
from hwrx.roce.parameters import Parameters, parse_parameters, read_parameters

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
SUCCESS = "IBV_WC_SUCCESS"


# --- the line ------------------------------------------------------------------------------------------------------


def test_what_ibv_rc_pingpong_prints_is_understood() -> None:
    found = parse_parameters("  local address:  LID 0x0000, QPN 0x000011, PSN 0x9a1b2c, GID ::ffff:198.18.77.2")
    assert (found.qpn, found.psn, found.gid, found.ip) == (0x11, 0x9A1B2C, "::ffff:c612:4d02", "198.18.77.2")
    assert (found.mtu, found.key, found.size, found.mac) == (0, 0, 0, "")


@pytest.mark.parametrize("gid", ["::ffff:c000:201", "2001:db8::1", "fe80::1"])
def test_a_line_comes_back_as_it_went(gid: str) -> None:
    whole = Parameters(gid=gid, qpn=2, psn=0xFFFFFF, mtu=4096, key=0xFFFFFFFF, address=2**64 - 1, size=8, mac=MACS[0])
    assert parse_parameters(whole.to_line()) == whole
    least = Parameters(gid=gid, qpn=2, psn=0)
    assert parse_parameters(least.to_line()) == least


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "there is no QPN"),
        ("QPN 0x11, GID ::1", "there is no PSN"),
        ("QPN 0x11, PSN 0x1", "there is no GID"),
        ("QPN 0x1000000, PSN 0x1, GID ::1", "QPN is between 0 and 0xffffff"),
        ("QPN 0x11, PSN 16777216, GID ::1", "PSN is between 0 and 0xffffff"),
        ("QPN 0x11, PSN 0x1, GID ::1, KEY 0x100000000", "KEY is between"),
        ("QPN zwei, PSN 0x1, GID ::1", "QPN 'zwei' is not a number"),
        ("QPN 0x11, PSN 0x1, GID 192.0.2.1", "is not a GID"),
        ("QPN 0x11, PSN 0x1, GID ::1, MTU 1500", "no path MTU of 1500"),
        ("QPN 0x11, PSN 0x1, GID ::1, MAC 1:2", "is not a MAC address"),
    ],
)
def test_a_line_that_is_not_one_is_refused_in_words(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_parameters(line)
    assert caught.value.remedy


def test_the_first_line_of_a_file_will_do(tmp_path) -> None:
    file = tmp_path / "line"
    file.write_text("LID 0x0000, QPN 0x000011, PSN 0x000001, GID ::1\nmore\n")
    assert read_parameters(f"@{file}").qpn == 0x11
    with pytest.raises(UsageError, match="cannot be read"):
        read_parameters(f"@{file}x")


# --- neighbours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_who_asks_for_our_address_is_told_and_nobody_else_is(version: int) -> None:
    near, far = ADDRESSES[version]
    question = ask_neighbour(MACS[0], near, far)
    answer = answer_neighbour(question, MACS[1], far)
    assert answer is not None
    assert answer[:6].hex(":") == MACS[0] and answer[6:12].hex(":") == MACS[1]
    assert read_neighbour(answer, far) == MACS[1]
    assert read_neighbour(answer, near) is None
    assert read_neighbour(question, far) is None
    assert answer_neighbour(question, MACS[1], near) is None
    assert answer_neighbour(answer, MACS[1], far) is None
    for end in range(42 if version == 4 else 78):  # IPv6's options may be left out
        assert answer_neighbour(question[:end], MACS[1], far) is None
        assert read_neighbour(answer[:end], far) is None


def test_the_group_in_which_an_ipv6_address_is_asked_for() -> None:
    assert solicited_node("2001:db8::12:3456") == "33:33:ff:12:34:56"
    assert ask_neighbour(MACS[0], *ADDRESSES[6])[:6].hex(":") == "33:33:ff:00:00:02"


def test_who_looks_whether_our_ipv6_address_is_free_hears_that_it_is_not() -> None:
    far = ADDRESSES[6][1]
    answer = answer_neighbour(ask_neighbour(MACS[0], "::", far), MACS[1], far)
    assert answer is not None
    assert answer[:6] == b"\x33\x33\0\0\0\x01" and answer[38:54].hex() == "ff02" + 27 * "0" + "1"


def test_an_icmpv6_checksum_is_right() -> None:
    frame = ask_neighbour(MACS[0], *ADDRESSES[6])
    words = frame[22:54] + (32).to_bytes(4, "big") + (58).to_bytes(4, "big") + frame[54:]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


# --- endpoints -----------------------------------------------------------------------------------------------------


class Two:
    """Two endpoints whose links are carried by hand."""

    def __init__(self, version: int = 4, **options) -> None:
        self.links = [HandedLink(mac) for mac in MACS]
        self.ends = [
            roce.endpoint(link, address, qpn=0x11 + side, psn=5, **options)
            for side, (link, address) in enumerate(zip(self.links, ADDRESSES[version], strict=True))
        ]

    def connect(self, **options) -> None:
        lines = [end.parameters.to_line() for end in self.ends]
        for end, line in zip(self.ends, reversed(lines), strict=True):
            end.connect(line, **options)

    def work(self, steps: int = 50) -> None:
        for _ in range(steps):
            for end in self.ends:
                end.drive()
            self.carry()

    def carry(self) -> None:
        for here, there in (self.links, self.links[::-1]):
            for frame in here.take_out():
                there.hand_in(frame)


@pytest.fixture
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    made = Two(**getattr(request, "param", {}))
    with contextlib.ExitStack() as stack:
        for end in made.ends:
            stack.enter_context(end)
        yield made


@pytest.mark.parametrize("two", [{"version": 4}, {"version": 6}], indirect=True)
def test_messages_go_both_ways_and_memory_that_is_offered_can_be_read(two: Two) -> None:
    us, them = two.ends
    memory, there = bytearray(b"here" * 1000), bytearray(b"there" * 800)
    ours, theirs = us.register(memory), them.register(there)
    them.offer(theirs)
    two.connect()
    offered = us.peer
    assert offered is not None and offered.size == 4000
    them.post_receive(theirs, 0, 4000, wr_id=7)
    us.post_send("send", ours, wr_id=8)
    two.work()
    assert them.next_receive(0) == (7, SUCCESS, "IBV_WC_RECV", 4000, None)
    assert us.check_completion(us.next_send(0)).wr_id == 8
    assert there == memory
    there[:8] = b"changed!"
    us.post_send("read", ours, 0, 8, key=offered.key, address=offered.address)
    two.work()
    us.check_completion(us.next_send(0))
    assert memory[:8] == b"changed!"


def test_the_smaller_mtu_of_both_is_the_paths() -> None:
    made = Two()
    small = roce.endpoint(made.links[1], ADDRESSES[4][1], qpn=0x12, psn=5, mtu=256)
    made.ends[1] = small
    made.connect()
    body = bytearray(1000)
    small.post_receive(small.register(body))
    made.ends[0].post_send("send", made.ends[0].register(bytearray(b"x" * 1000)))
    assert [len(frame) for frame in made.links[0].take_out()] == [314, 314, 314, 290]


def test_the_peers_address_is_asked_for_and_ours_is_told(two: Two) -> None:
    us, them = two.ends
    line = them.parameters.to_line().partition(", MAC")[0]
    with pytest.raises(PathError, match=r"nobody on this link says to have 192\.0\.2\.2"):
        us.connect(line, patience=0.01)
    two.links[0].take_out()
    two.links[0].hand_in(answer_neighbour(ask_neighbour(MACS[0], *ADDRESSES[4]), MACS[1], ADDRESSES[4][1]))
    us.connect(line, patience=1.0)
    question = two.links[0].take_out()[-1]
    assert question == ask_neighbour(MACS[0], *ADDRESSES[4])
    them.connect(us.parameters)
    two.links[1].hand_in(question)
    them.drive()  # also once it is connected
    assert two.links[1].take_out() == [answer_neighbour(question, MACS[1], ADDRESSES[4][1])]
    assert them.queue_pair.take_aside() is None


def test_management_packets_are_set_aside_one_at_a_time(two: Two) -> None:
    two.connect()
    way = address_vector(MACS[1], MACS[0], ADDRESSES[4][1], ADDRESSES[4][0])
    first, second = (
        build_packet(way, "UD_SEND_ONLY", qpn=1, psn=number, qkey=0x80010000, source_qpn=1, payload=bytes(256))
        for number in range(2)
    )
    for frame in (first, second):
        two.links[0].hand_in(frame)
    pair = two.ends[0].queue_pair
    pair.progress()
    assert pair.take_aside() == first
    assert pair.take_aside() is None
    two.links[0].hand_in(second)
    pair.progress()
    assert pair.take_aside() == second


def test_a_peer_that_never_answers_is_told_in_words(two: Two) -> None:
    us, _ = two.ends
    two.connect(timeout=1, retry_count=2)
    us.post_send("send")
    completion = us.next_send(timeout=10)
    assert completion.status == "IBV_WC_RETRY_EXC_ERR"
    with pytest.raises(
        PathError, match=r"acknowledged nothing, however often .* 0 packets came from the peer"
    ) as caught:
        us.check_completion(completion)
    assert "is the peer connected" in caught.value.remedy


def test_what_is_not_taken_is_told_in_words(two: Two) -> None:
    us, _ = two.ends
    two.connect()
    stranger = address_vector(MACS[1], MACS[0], "192.0.2.99", ADDRESSES[4][0])
    way = address_vector(MACS[1], MACS[0], ADDRESSES[4][1], ADDRESSES[4][0])
    two.links[0].hand_in(build_packet(stranger, "RC_SEND_ONLY", qpn=0x11, psn=5))
    us.drive()
    with pytest.raises(PathError, match=r"no message came within 0\.01 s; .* 1 from strangers") as caught:
        us.next_receive(timeout=0.01)
    assert "compare the peer's QPN and GID" in caught.value.remedy
    two.links[0].hand_in(build_packet(way, "RC_SEND_ONLY", qpn=0x11, psn=5, spoil=True))
    us.drive()
    with pytest.raises(PathError, match="1 with a wrong ICRC") as caught:
        us.next_receive(timeout=0.01)
    assert "the path changes packets" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"qpn": 1}, "number is between 2 and 0xfffffe, not 1"),
        ({"qpn": 0xFFFFFF}, "number is between"),
        ({"psn": 1 << 24}, "a PSN is between"),
        ({"psn": -1}, "a PSN is between"),
        ({"mtu": 1500}, "no path MTU of 1500"),
        ({"reads": 0}, "reads is between"),
        ({"address": "192.0.2"}, "is not an IP address"),
        ({"address": "224.0.0.5"}, "224.0.0.5 is the address of a group"),
        ({"address": "ff02::1"}, "ff02::1 is the address of a group"),
        ({"address": "0.0.0.0"}, "is no particular address"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        roce.endpoint(HandedLink(), **{"address": "192.0.2.1", **options})


@pytest.mark.parametrize(
    ("verb", "there", "status", "remedy"),
    [
        ("write", {"key": 0xDEAD}, "IBV_WC_REM_ACCESS_ERR", "compare key and address"),
        ("send", {"mtu": 512}, "IBV_WC_REM_INV_REQ_ERR", "have both ends one MTU"),
        ("send", {"receives": 0}, "IBV_WC_RNR_RETRY_EXC_ERR", "let the peer post receive requests"),
    ],
)
def test_a_refusal_names_what_may_be_wrong(verb: str, there: dict[str, int], status: str, remedy: str) -> None:
    """A wrong key, an MTU that the line does not tell, a receiver that is not ready."""
    us = roce.endpoint(HandedLink(MACS[0]), ADDRESSES[4][0], qpn=0x11, psn=5)
    them = roce.endpoint(HandedLink(MACS[1]), ADDRESSES[4][1], qpn=0x12, psn=5, mtu=there.get("mtu", 1024))
    for _ in range(there.get("receives", 1)):
        them.post_receive(them.register(bytearray(2000)))
    us.connect(f"QPN 0x12, PSN 5, GID ::ffff:{ADDRESSES[4][1]}, MAC {MACS[1]}", rnr_retry=0)
    them.connect(f"QPN 0x11, PSN 5, GID ::ffff:{ADDRESSES[4][0]}, MAC {MACS[0]}")
    us.post_send(verb, us.register(bytearray(1024)), key=there.get("key", 0), address=0)
    for here, far in ((us, them), (them, us)):
        for frame in here.link.take_out():  # type: ignore[attr-defined]
            far.link.hand_in(frame)  # type: ignore[attr-defined]
        far.drive()
    with pytest.raises(PathError, match=status) as caught:
        us.check_completion(us.next_send(1))
    assert remedy in caught.value.remedy


def test_a_link_has_its_own_mac_address() -> None:
    with pytest.raises(UsageError, match="this NIC has the MAC address 02:00:00:00:00:01, and not 02:00:00:00:00:02"):
        roce.endpoint(HandedLink(MACS[0]), "192.0.2.1", mac=MACS[1])
    assert roce.endpoint(HandedLink(MACS[0]), "192.0.2.1", mac=MACS[0]).link.mac == MACS[0]


def test_memory_that_is_not_registered_is_refused_in_words(two: Two) -> None:
    us, them = two.ends
    two.connect()
    for call in (lambda: us.post_receive(bytearray(8)), lambda: us.post_send("send", b"8"), lambda: us.offer(b"")):
        with pytest.raises(UsageError, match="is not registered") as caught:
            call()
        assert "qp.register" in caught.value.remedy
    with pytest.raises(UsageError, match="another protection domain"):
        us.post_receive(them.register(bytearray(8)))


def test_two_versions_of_ip_are_refused(two: Two) -> None:
    with pytest.raises(UsageError, match="not of one version of IP"):
        two.ends[0].connect(Parameters(gid="2001:db8::1", qpn=2, psn=0))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("QPN 0, PSN 1, GID ::ffff:192.0.2.2", "queue pair is between 2 and 0xfffffe, not 0x0"),
        ("QPN 1, PSN 1, GID ::ffff:192.0.2.2", "queue pair is between 2 and 0xfffffe, not 0x1"),
        ("QPN 0xffffff, PSN 1, GID ::ffff:192.0.2.2", "queue pair is between"),
        ("QPN 2, PSN 1, GID ::ffff:192.0.2.1", "own address, and the other end's"),
        ("QPN 2, PSN 1, GID ::ffff:224.0.0.1", "the address of a group"),
        ("QPN 2, PSN 1, GID ::ffff:0.0.0.0", "no particular address"),
        ("QPN 2, PSN 1, MTU 8192, GID ::ffff:192.0.2.2", "no path MTU of 8192"),
        ("QPN 2, PSN 1, KEY 0x100000000, GID ::ffff:192.0.2.2", "KEY is between 0 and 0xffffffff"),
        ("QPN 2, PSN 1, GID ::ffff:192.0.2.2, MAC 01:00:5e:00:00:01", "MAC address of a group"),
    ],
)
def test_a_peer_that_cannot_be_is_refused_before_anything_is_sent(two: Two, line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        two.ends[0].connect(line if "MAC" in line else f"{line}, MAC {MACS[1]}")
    assert caught.value.remedy
    assert two.links[0].take_out() == []


@pytest.mark.parametrize("mac", ["zz", "02:00", "01:00:5e:00:00:01", "02-00-00-00-00-01"])
def test_a_mac_address_that_is_not_a_stations_is_refused(two: Two, mac: str) -> None:
    with pytest.raises(UsageError, match="MAC address") as caught:
        two.ends[0].connect(two.ends[1].parameters, mac=mac)
    assert "02:00:00:00:00:01" in caught.value.remedy


@pytest.mark.parametrize(("address", "most"), [("192.0.2.1", 1433), ("2001:db8::1", 1413)])
def test_packets_that_the_device_would_not_send_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, most: int
) -> None:
    (tmp_path / "eth9").mkdir()
    (tmp_path / "eth9" / "mtu").write_text("1500\n")
    monkeypatch.setattr(opening, "NETDEVS", tmp_path)
    opening.check_fits("eth9", address, most)
    with pytest.raises(UsageError, match=r"packets of 2048 bytes do not fit eth9, whose MTU is 1500") as refused:
        opening.check_fits("eth9", address, 2048)
    assert "ip link set eth9 mtu 2152" in str(refused.value.remedy)
