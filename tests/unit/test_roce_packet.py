"""RoCEv2 packets: the invariant CRC in each way, headers written and read back, and what is not taken for one."""

import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_ext.roce.icrc import WAYS, crc32, icrc_ipv4
from cython_ext.roce.packet import (
    NAK_NAMES,
    OPCODE_NAMES,
    OPCODES,
    address_vector,
    build_packet,
    dissect_roce,
    syndrome_name,
)

MACS = ("52:54:00:00:00:01", "52:54:00:00:00:02")
IPV4 = address_vector(*MACS, "192.0.2.1", "192.0.2.2", source_port=49153)
IPV6 = address_vector(*MACS, "2001:db8::1", "2001:db8::2", source_port=49153)
LARGEST = {"qpn": 0xFFFFFF, "psn": 0xFFFFFE}
# what each extended header holds, at values that use every byte
FIELDS = {
    "address": 0x0123456789ABCDEF,
    "key": 0xFEDCBA98,
    "length": 0x89ABCDEF,
    "swap": 0x1122334455667788,
    "compare": 0x8877665544332211,
    "syndrome": 0x62,
    "msn": 0xABCDEF,
    "original": 0xF0E0D0C0B0A09080,
    "immediate": 0x80706050,
    "qkey": 0x11111111,
    "source_qpn": 0x123456,
}


# --- the CRC -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_crc_is_that_of_zlib_at_every_length_and_alignment(way):
    data = random.Random(1).randbytes(1100)
    for size in range(700):
        for at in (0, 1, 7, size % 16):
            piece = memoryview(data)[at : at + size]
            assert crc32(piece, way=way) == zlib.crc32(piece), (size, at)


@pytest.mark.parametrize("way", WAYS)
@given(pieces=st.lists(st.binary(max_size=300), max_size=6), start=st.integers(0, 2**32 - 1))
def test_the_crc_of_pieces_is_that_of_the_whole(way, pieces, start):
    register = start
    for piece in pieces:
        register = crc32(piece, start=register, way=way)
    assert register == zlib.crc32(b"".join(pieces), start)


@pytest.mark.parametrize("way", WAYS)
def test_the_crc_of_bits_at_their_edges(way):
    for data in (bytes(5000), b"\xff" * 5000, b"\x80" + bytes(4999), bytes(4999) + b"\x01"):
        assert crc32(data, way=way) == zlib.crc32(data)


def test_a_way_that_this_cpu_does_not_have_is_refused():
    with pytest.raises(ValueError, match="not by magic"):
        crc32(b"", way="magic")


def reference_icrc(frame, network):
    """By zlib, over a copy in which what a hop may change was replaced."""
    ip = bytearray(frame[14 : 14 + network])
    udp = bytearray(frame[14 + network : 22 + network])
    rest = bytearray(frame[22 + network : -4])
    if network == 20:
        ip[1] = ip[8] = ip[10] = ip[11] = 0xFF
    else:
        ip[:4] = (int.from_bytes(ip[:4], "big") | 0x0FFFFFFF).to_bytes(4, "big")
        ip[7] = 0xFF
    udp[6:8] = b"\xff\xff"
    rest[4] = 0xFF
    return struct.pack("<I", zlib.crc32(b"\xff" * 8 + ip + udp + rest))


@pytest.mark.parametrize("way", WAYS)
def test_the_icrc_is_the_same_in_every_way(way):
    draw = random.Random(3)
    way_there = address_vector("02:00:00:00:00:01", "02:00:00:00:00:02", "192.0.2.1", "198.51.100.7")
    for size in (*range(0, 300, 4), 1000, 1024, 4096):
        frame = bytearray(build_packet(way_there, "RC_SEND_ONLY", qpn=0x123456, psn=size, payload=draw.randbytes(size)))
        # what a hop may change is not covered
        frame[15], frame[22], frame[24:26] = draw.randrange(256), draw.randrange(256), draw.randbytes(2)
        for run in (False, True):
            assert icrc_ipv4(frame[14:-4], way=way, run=run) == int.from_bytes(frame[-4:], "little"), size
    with pytest.raises(ValueError, match="no packet over IPv4"):
        icrc_ipv4(bytes(39), way=way)


@pytest.mark.parametrize(("headers", "network"), [(IPV4, 20), (IPV6, 40)], ids=["IPv4", "IPv6"])
def test_the_icrc_covers_what_no_hop_changes(headers, network):
    for size in (*range(40), 255, 256, 1023, 1024, 4096):
        frame = build_packet(headers, "RC_SEND_ONLY", **LARGEST, payload=bytes(range(256)) * (size // 256 + 1))
        assert frame[-4:] == reference_icrc(frame, network)
        assert dissect_roce(frame)["icrc"] is True


@pytest.mark.parametrize(("headers", "network"), [(IPV4, 20), (IPV6, 40)], ids=["IPv4", "IPv6"])
def test_a_hop_may_change_its_fields_and_nobody_may_change_another_byte(headers, network):
    frame = build_packet(headers, "RC_RDMA_WRITE_ONLY", **LARGEST, **FIELDS, payload=b"payload")
    udp = 14 + network
    bits = {udp + 6: 0xFF, udp + 7: 0xFF, udp + 12: 0xFF}
    bits |= {15: 0xFF, 22: 0xFF} if network == 20 else {14: 0x0F, 15: 0xFF, 16: 0xFF, 17: 0xFF, 21: 0xFF}
    seen = 0
    for at in range(14, len(frame)):
        for bit in range(0 if network == 20 and at in (24, 25) else 8):  # IPv4's checksum follows the others
            changed = bytearray(frame)
            changed[at] ^= 1 << bit
            if network == 20:  # the header's own checksum would hide what the ICRC has to say
                changed[24:26] = b"\0\0"
                changed[24:26] = struct.pack(">H", ipv4_checksum(changed[14:34]))
            found = dissect_roce(changed)
            if "icrc" in found:
                seen += 1
                assert found["icrc"] == bool(bits.get(at, 0) >> bit & 1), (at, bit)
    assert seen > 400


def ipv4_checksum(header):
    total = sum(struct.unpack(">10H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_a_spoiled_icrc_is_wrong_and_all_else_is_read():
    found = dissect_roce(build_packet(IPV4, "RC_SEND_ONLY", **LARGEST, payload=b"x" * 64, spoil=True))
    assert found["verdict"] == "roce"
    assert found["icrc"] is False
    assert found["payload"] == b"x" * 64


# --- headers -------------------------------------------------------------------------------------------------------

# of each operation, as the specification lists them (9.2.1); the reference for the table that the code has
HEADERS = {
    "RDMA_WRITE_FIRST": "address key length",
    "RDMA_WRITE_ONLY": "address key length",
    "RDMA_WRITE_ONLY_WITH_IMMEDIATE": "address key length immediate",
    "RDMA_WRITE_LAST_WITH_IMMEDIATE": "immediate",
    "SEND_LAST_WITH_IMMEDIATE": "immediate",
    "SEND_ONLY_WITH_IMMEDIATE": "immediate",
    "SEND_LAST_WITH_INVALIDATE": "key",
    "SEND_ONLY_WITH_INVALIDATE": "key",
    "RDMA_READ_REQUEST": "address key length",
    "RDMA_READ_RESPONSE_FIRST": "syndrome msn",
    "RDMA_READ_RESPONSE_LAST": "syndrome msn",
    "RDMA_READ_RESPONSE_ONLY": "syndrome msn",
    "ACKNOWLEDGE": "syndrome msn",
    "ATOMIC_ACKNOWLEDGE": "syndrome msn original",
    "COMPARE_SWAP": "address key swap compare",
    "FETCH_ADD": "address key swap compare",
}
SIZES = {"address": 8, "key": 4, "length": 4, "swap": 8, "compare": 8, "syndrome": 1, "msn": 3, "original": 8}
SIZES |= {"immediate": 4, "qkey": 4, "source_qpn": 4}
BARE = ("RDMA_READ_REQUEST", "ACKNOWLEDGE", "ATOMIC_ACKNOWLEDGE", "COMPARE_SWAP", "FETCH_ADD")


def fields_of(name):
    service, _, operation = name.partition("_")
    return ["qkey", "source_qpn"] * (service == "UD") + HEADERS.get(operation, "").split()


@pytest.mark.parametrize("headers", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", OPCODES)
def test_what_was_built_is_read_again_whatever_the_opcode(name, headers):
    fields = fields_of(name)
    empty = name.endswith(BARE)
    for payload in (b"",) if empty else (b"", b"a", b"ab", b"abc", b"abcd", bytes(range(256))):
        frame = build_packet(headers, name, **LARGEST, **FIELDS, ack_request=True, solicited=True, payload=payload)
        length = 12 + sum(SIZES[field] for field in fields) + len(payload) + -len(payload) % 4 + 4
        assert len(frame) == len(headers) + length
        found = dissect_roce(frame)
        assert (found["verdict"], found["opcode"], found["icrc"]) == ("roce", name, True)
        assert (found["qpn"], found["psn"], found["pkey"]) == (0xFFFFFF, 0xFFFFFE, 0xFFFF)
        assert found["ack_request"] is found["solicited"] is True
        assert found["payload"] == payload
        assert {key: found[key] for key in FIELDS if key in found} == {key: FIELDS[key] for key in fields}


def test_the_bytes_stand_where_the_specification_has_them():
    frame = build_packet(IPV4, "RC_RDMA_WRITE_ONLY", qpn=0x11, psn=0x22, ack_request=True, payload=b"abcde", **FIELDS)
    assert frame[12:14] == b"\x08\0"
    assert struct.unpack(">H", frame[16:18]) == (len(frame) - 14,)
    assert struct.unpack(">HHHH", frame[34:42]) == (49153, 4791, len(frame) - 34, 0)
    assert ipv4_checksum(frame[14:34]) == 0
    bth = b"\x0a\x70\xff\xff\0\0\0\x11\x80\0\0\x22"  # migrated, three bytes of padding
    assert frame[42:54] == bth
    assert frame[54:70] == struct.pack(">QII", FIELDS["address"], FIELDS["key"], FIELDS["length"])
    assert frame[70:78] == b"abcde\0\0\0"


def test_opcodes_have_the_numbers_of_the_specification():
    listed = "SEND_FIRST 0 SEND_ONLY 4 RDMA_WRITE_FIRST 6 RDMA_WRITE_ONLY_WITH_IMMEDIATE 11 RDMA_READ_REQUEST 12"
    listed += " RDMA_READ_RESPONSE_ONLY 16 ACKNOWLEDGE 17 ATOMIC_ACKNOWLEDGE 18 COMPARE_SWAP 19 FETCH_ADD 20"
    words = listed.split()
    assert {f"RC_{name}": int(number) for name, number in zip(words[::2], words[1::2], strict=True)}.items() <= (
        OPCODES.items()
    )
    assert OPCODES["UC_SEND_FIRST"] == 0x20
    assert (OPCODES["UD_SEND_ONLY"], OPCODES["UD_SEND_ONLY_WITH_IMMEDIATE"], OPCODES["CNP"]) == (100, 101, 0x81)


def test_syndromes_have_words():
    assert syndrome_name(0x1F) == syndrome_name(0) == "ACK"
    assert syndrome_name(0x2C) == "RNR NAK, timer 12"
    assert syndrome_name(0x62) == "NAK, remote access error"
    assert all(syndrome_name(value) == f"NAK, {name}" for value, name in NAK_NAMES.items())
    assert {syndrome_name(value) for value in (0x40, 0x7F, 0x80, 0xA0, 0xFF)} == {
        f"reserved syndrome {value:#04x}" for value in (0x40, 0x7F, 0x80, 0xA0, 0xFF)
    }


# --- what is no packet ---------------------------------------------------------------------------------------------


def with_udp(bth, headers=IPV4):
    """A datagram to the port of RoCE that holds anything."""
    network = len(headers) - 22
    frame = bytearray(headers + bth)
    frame[len(headers) - 4 : len(headers) - 2] = struct.pack(">H", 8 + len(bth))
    if network == 20:
        frame[16:18] = struct.pack(">H", 28 + len(bth))
        frame[24:26] = struct.pack(">H", ipv4_checksum(frame[14:34]))
    else:
        frame[18:20] = struct.pack(">H", 8 + len(bth))
    return bytes(frame)


@pytest.mark.parametrize("headers", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("bth", "verdict"),
    [
        (b"", "truncated"),
        (bytes(15), "truncated"),
        (bytes(16), "roce"),  # SEND_FIRST of nothing
        (b"\x0a" + bytes(30), "truncated"),  # no room for a RETH
        (b"\x04\x30" + bytes(14), "truncated"),  # padding of nothing
        (b"\x04\x30" + bytes(15), "truncated"),
        (b"\x04\x01" + bytes(14), "bad version"),
        (b"\x18" + bytes(15), "unknown opcode"),
        (b"\xff" + bytes(15), "unknown opcode"),
        (b"\x11" + bytes(23), "bad payload"),  # an acknowledgement that carries four bytes
        (b"\x11\x10" + bytes(22), "bad payload"),
        (b"\x04" + bytes(16), "bad payload"),  # not a multiple of four
    ],
)
def test_a_packet_that_cannot_be_is_named(headers, bth, verdict):
    assert dissect_roce(with_udp(bth, headers))["verdict"] == verdict


def test_frames_of_others_are_none_of_ours():
    frame = bytearray(build_packet(IPV4, "RC_SEND_ONLY", **LARGEST, payload=b"x" * 64))
    for at, value in ((36, 0), (23, 6), (12, 0x86), (20, 0x20)):  # port, protocol, ethertype, more fragments
        other = bytearray(frame)
        other[at] = value
        other[24:26] = b"\0\0"
        other[24:26] = struct.pack(">H", ipv4_checksum(other[14:34]))
        assert dissect_roce(other) == {"verdict": "not roce"}
    assert dissect_roce(b"") == dissect_roce(bytes(60)) == {"verdict": "not roce"}


def test_every_cut_of_a_packet_is_refused():
    for name in OPCODES:
        frame = build_packet(IPV4, name, **LARGEST, payload=b"" if name.endswith(BARE) else b"abcd")
        for size in range(len(frame)):
            assert dissect_roce(frame[:size]) == {"verdict": "not roce"}  # UDP says more than there is


def test_a_tag_and_the_padding_of_ethernet_change_nothing():
    frame = build_packet(IPV4, "RC_SEND_ONLY", **LARGEST, payload=b"")
    expected = dissect_roce(frame)
    assert dissect_roce(frame + bytes(2)) == expected
    assert dissect_roce(frame[:12] + b"\x81\0\0\x05" + frame[12:]) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("192.0.2.1", "2001:db8::1"), "not of one version"),
        (("192.0.2.1", "192.0.2.300"), "192.0.2.300"),
    ],
)
def test_addresses_that_are_none_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        address_vector(*MACS, *arguments)


def test_what_no_packet_can_hold_is_refused():
    with pytest.raises(ValueError, match="there is no opcode RC_NONE"):
        build_packet(IPV4, "RC_NONE", **LARGEST)
    with pytest.raises(ValueError, match="at most"):
        build_packet(IPV4, "RC_SEND_ONLY", **LARGEST, payload=bytes(65536))
    with pytest.raises(ValueError, match="42 bytes"):
        build_packet(IPV4[:-1], "RC_SEND_ONLY", **LARGEST)
    with pytest.raises(ValueError, match="70000 is not between"):
        address_vector(*MACS, "192.0.2.1", "192.0.2.2", source_port=70000)
    assert set(OPCODE_NAMES) == set(OPCODES.values())
