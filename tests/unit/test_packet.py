"""Frames: what parse finds in good and bad ones, sums, the port table."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_ext.frames.packet import (
    VERDICT_NAMES,
    PortTable,
    dissect,
    internet_checksum,
    mac_bytes,
    udp_frame,
    udp_template,
)

TEMPLATE = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2", 1111, 2222)


def reference_checksum(data):
    """RFC 1071, a 16-bit word at a time."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv6_frame(payload, *, next_header=17, checksum=None):
    source, destination = bytes(15) + b"\x01", bytes(15) + b"\x02"
    udp = struct.pack(">HHHH", 1111, 2222, 8 + len(payload), 0) + payload
    pseudo = source + destination + struct.pack(">II", len(udp), 17)
    good = reference_checksum(pseudo + udp) or 0xFFFF
    udp = udp[:6] + struct.pack(">H", good if checksum is None else checksum) + udp[8:]
    header = struct.pack(">IHBB", 6 << 28, len(udp), next_header, 64) + source + destination
    return bytes(12) + b"\x86\xdd" + header + udp


@given(st.binary(max_size=2000))
def test_the_sum_is_that_of_rfc_1071(data):
    assert internet_checksum(data) == reference_checksum(data)


@pytest.mark.parametrize("data", [b"\xff" * 2000, b"\xff" * 1999, b"\0" * 64, b"\xff\xff", b"\x00\x01\xff\xfe"])
def test_the_sum_at_its_edges(data):
    assert internet_checksum(data) == reference_checksum(data)


@given(st.binary(max_size=1472), st.booleans())
def test_a_datagram_that_was_built_is_found_again(payload, checksum):
    frame = udp_frame(TEMPLATE, payload, checksum=checksum)
    found = dissect(frame)
    assert found == {
        "verdict": "udp",
        "source": "192.0.2.1",
        "destination": "192.0.2.2",
        "source_port": 1111,
        "destination_port": 2222,
        "offset": 42,
        "size": len(payload),
    }
    # the NIC pads short frames: what follows the datagram is none of it
    assert dissect(frame + bytes(20)) == found
    assert reference_checksum(frame[14:34]) == 0
    if checksum:
        pseudo = frame[26:34] + struct.pack(">HH", 17, 8 + len(payload))
        assert reference_checksum(pseudo + frame[34:]) == 0


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_wrong_bit_anywhere_behind_ethernet_is_never_delivered_as_it_was(payload, data):
    frame = bytearray(udp_frame(TEMPLATE, payload))
    bit = data.draw(st.integers(14 * 8, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    verdict = dissect(bytes(frame))["verdict"]
    if 40 * 8 <= bit < 42 * 8 and frame[40:42] == b"\0\0":
        assert verdict == "udp"  # the checksum became "none"
    else:
        assert verdict != "udp"


@given(st.binary(max_size=120))
def test_garbage_is_judged_and_never_read_beyond_its_end(data):
    assert dissect(data)["verdict"] in VERDICT_NAMES


@given(st.binary(max_size=64), st.integers(0, 130))
def test_a_frame_that_is_cut_is_never_taken_for_whole(payload, length):
    frame = udp_frame(TEMPLATE, payload)[:length]
    assert (dissect(frame)["verdict"] == "udp") == (length >= 42 + len(payload))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda f: f[:12] + b"\x08\x06" + f[14:], "other ethertype"),
        (lambda f: f[:14] + b"\x65" + f[15:], "bad header"),
        (lambda f: f[:14] + b"\x44" + f[15:], "bad header"),
        (lambda f: f[:16] + b"\xff\xff" + f[18:], "truncated"),
        (lambda f: f[:16] + b"\x00\x10" + f[18:], "bad header"),
        (lambda f: f[:22] + b"\x01" + f[23:], "bad header checksum"),
        (lambda f: f[:-1] + bytes([f[-1] ^ 1]), "bad checksum"),
        (lambda f: f[:50], "truncated"),
        (lambda f: f[:10], "truncated"),
        (lambda f: f[:12] + b"\x12\x34", "other ethertype"),
        (lambda f: b"", "truncated"),
    ],
)
def test_each_verdict(change, verdict):
    assert dissect(change(udp_frame(TEMPLATE, b"payload of thirty-two bytes.....")))["verdict"] == verdict


def fix_header(frame):
    header = frame[14:24] + b"\0\0" + frame[26:34]
    return frame[:14] + header[:10] + struct.pack(">H", reference_checksum(header)) + header[12:] + frame[34:]


@pytest.mark.parametrize("offset", [0x2000, 0x0001, 0x3FFF])
def test_fragments_are_not_put_together(offset):
    frame = udp_frame(TEMPLATE, bytes(64))
    frame = frame[:20] + struct.pack(">H", offset) + frame[22:]
    assert dissect(fix_header(frame))["verdict"] == "fragment"


def test_other_protocols_over_ipv4():
    frame = udp_frame(TEMPLATE, bytes(64))
    assert dissect(fix_header(frame[:23] + b"\x06" + frame[24:]))["verdict"] == "other protocol"


def test_options_and_a_vlan_tag_move_the_payload():
    frame = udp_frame(TEMPLATE, b"payload!")
    options = frame[:14] + b"\x46\x00\x00\x28" + frame[18:34] + b"\x01\x01\x01\x00" + frame[34:]
    header = options[14:24] + b"\0\0" + options[26:38]
    options = options[:24] + struct.pack(">H", reference_checksum(header)) + options[26:]
    assert dissect(options)["offset"] == 46
    tagged = frame[:12] + b"\x81\x00\x00\x05" + frame[12:]
    assert dissect(tagged)["offset"] == 46


def test_ipv6():
    found = dissect(ipv6_frame(b"hello six"))
    assert (found["verdict"], found["source"], found["destination"], found["size"]) == ("udp", "::1", "::2", 9)
    assert dissect(ipv6_frame(b"hello six", checksum=1))["verdict"] == "bad checksum"
    # RFC 8200: over IPv6 a checksum there must be
    assert dissect(ipv6_frame(b"hello six", checksum=0))["verdict"] == "bad checksum"
    assert dissect(ipv6_frame(b"hello six", next_header=44))["verdict"] == "other protocol"
    assert dissect(ipv6_frame(b"hello six")[:-1])["verdict"] == "truncated"


def test_checks_can_be_left_out():
    frame = udp_frame(TEMPLATE, b"payload")
    broken = frame[:24] + b"\xff\xff" + frame[26:-1] + b"\xff"
    assert dissect(broken, checksum=False)["verdict"] == "udp"
    assert dissect(broken)["verdict"] == "bad header checksum"


def test_the_table_answers_whose_a_datagram_is():
    table = PortTable()
    anyone = table.add(2222)
    local = table.add(2222, local="192.0.2.2")
    elsewhere = table.add(2222, local="192.0.2.99")
    connected = table.add(2222, local="192.0.2.2", remote="192.0.2.1", remote_port=1111)
    table.add(2222, local="192.0.2.2", remote="192.0.2.1", remote_port=1112)
    assert table.lookup(udp_frame(TEMPLATE, b"x")) == connected
    other_sender = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.7", "192.0.2.2", 1111, 2222)
    assert table.lookup(udp_frame(other_sender, b"x")) == local
    other_target = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.3", 1111, 2222)
    assert table.lookup(udp_frame(other_target, b"x")) == anyone
    third_target = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.99", 1111, 2222)
    assert table.lookup(udp_frame(third_target, b"x")) == elsewhere
    other_port = udp_template("52:54:00:00:00:01", "52:54:00:00:00:02", "192.0.2.1", "192.0.2.2", 1111, 2223)
    assert table.lookup(udp_frame(other_port, b"x")) is None


def test_an_ipv6_datagram_is_not_an_ipv4_owners():
    table = PortTable()
    table.add(2222, local="192.0.2.2")
    assert table.lookup(ipv6_frame(b"x")) is None
    six = table.add(2222, local="::2")
    assert table.lookup(ipv6_frame(b"x")) == six


def test_many_owners_on_many_ports():
    table = PortTable()
    numbers = {port: table.add(port) for port in range(1000, 3000)}
    assert table.used == 2000
    assert table.lookup(udp_frame(TEMPLATE, b"x")) == numbers[2222]


def test_a_bad_frame_is_nobodys():
    table = PortTable()
    table.add(2222)
    frame = udp_frame(TEMPLATE, b"payload")
    assert table.lookup(frame[:-1] + b"?") is None
    assert table.lookup(b"") is None


@pytest.mark.parametrize("wrong", [{"local": "nonsense"}, {"remote": "192.0.2.1"}, {"remote_port": 5}])
def test_owners_that_cannot_be(wrong):
    table = PortTable()
    with pytest.raises(ValueError):
        table.add(1, **wrong)
    assert table.used == 0


@pytest.mark.parametrize("mac", ["", "52:54:00:00:00", "52:54:00:00:00:zz", "5254.0000.0001", "052:4:00:00:00:01"])
def test_a_mac_address_that_is_none(mac):
    with pytest.raises(ValueError):
        mac_bytes(mac)
