"""A frame's bytes by header: Ethernet, IPv4, UDP or TCP, and the payload, each field with its offset and its value."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from msgspec import Struct

ETHERNET, UDP_HEADER = 14, 8  # bytes
IPV4, TCP, UDP = 0x0800, 6, 17
ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x8100: "a VLAN tag"}
PROTOCOLS = {1: "ICMP", TCP: "TCP", UDP: "UDP"}
SHOWN = 16  # bytes of a payload


class Field(Struct, frozen=True):
    """One field of a header: bytes `offset` to `offset + length - 1` of the frame, as they are and what they say."""

    header: str
    name: str
    offset: int
    length: int
    raw: str  # hexadecimal
    value: str

    @property
    def place(self) -> str:
        """The bytes' numbers in the frame, counted from 0."""
        return str(self.offset) if self.length == 1 else f"{self.offset}-{self.offset + self.length - 1}"


def read_frame(frame: bytes, length: int | None = None) -> list[Field]:
    """Take a frame apart.

    :param frame: its bytes from the destination MAC address on; what is missing at its end is not shown
    :param length: bytes that it has on the wire, if `frame` is its beginning only
    :returns: fields in the order of their bytes; they cover the frame from byte 0 to its last without a gap
    """
    return [field for field in _fields(frame, len(frame) if length is None else length) if field.length]


def compare_frames(before: bytes, after: bytes) -> list[tuple[str, str, str]]:
    """Return the fields whose bytes differ: header and name, and what the bytes were and are (hexadecimal)."""
    news = {(field.header, field.name): field.raw for field in read_frame(after)}
    return [
        (f"{field.header} {field.name}", field.raw, news[field.header, field.name])
        for field in read_frame(before)
        if news.get((field.header, field.name), field.raw) != field.raw
    ]


def _fields(frame: bytes, length: int) -> Iterator[Field]:
    if len(frame) < ETHERNET:
        yield _field(frame, "Ethernet", "cut short", 0, len(frame), "a frame has 14 bytes at least")
        return
    kind = _number(frame, 12, 2)
    yield _field(frame, "Ethernet", "destination MAC address", 0, 6, _mac(frame[0:6]))
    yield _field(frame, "Ethernet", "source MAC address", 6, 6, _mac(frame[6:12]))
    yield _field(frame, "Ethernet", "EtherType", 12, 2, f"0x{kind:04x}, {ETHERTYPES.get(kind, 'not known here')}")
    if kind != IPV4 or len(frame) < ETHERNET + 20:
        yield _payload(frame, ETHERNET, length)
        return
    yield from _ipv4(frame, length)


def _ipv4(frame: bytes, length: int) -> Iterator[Field]:
    at = ETHERNET
    words, protocol, total = frame[at] & 15, frame[at + 9], _number(frame, at + 2, 2)
    fragment = _number(frame, at + 6, 2)
    header = words * 4
    rows = (
        ("version and header length", 0, 1, f"version {frame[at] >> 4}, {words} words = {header} bytes"),
        ("type of service", 1, 1, f"0x{frame[at + 1]:02x}"),
        ("total length", 2, 2, f"{total:,} bytes from here on"),
        ("identification", 4, 2, f"{_number(frame, at + 4, 2)}"),
        ("flags and fragment offset", 6, 2, f"{'do not fragment' if fragment & 0x4000 else 'may be fragmented'}, "
         f"offset {(fragment & 0x1FFF) * 8}"),
        ("time to live", 8, 1, f"{frame[at + 8]}"),
        ("protocol", 9, 1, f"{protocol}, {PROTOCOLS.get(protocol, 'not known here')}"),
        ("header checksum", 10, 2, f"0x{_number(frame, at + 10, 2):04x}, {_verdict(frame[at : at + header])}"),
        ("source address", 12, 4, str(ipaddress.IPv4Address(frame[at + 12 : at + 16]))),
        ("destination address", 16, 4, str(ipaddress.IPv4Address(frame[at + 16 : at + 20]))),
        ("options", 20, header - 20, f"{header - 20} bytes"),
    )  # fmt: skip
    for name, offset, size, value in rows:
        yield _field(frame, "IPv4", name, at + offset, size, value)
    at += header
    last = min(length, ETHERNET + total)
    if protocol == UDP and len(frame) >= at + UDP_HEADER:
        yield from _udp(frame, at)
        at += UDP_HEADER
    elif protocol == TCP and len(frame) >= at + 20:
        size = (frame[at + 12] >> 4) * 4
        yield from _tcp(frame, at, size)
        at += size
    yield _payload(frame, at, last)
    if length > last:
        yield _field(frame, "Ethernet", "padding", last, length - last, "an Ethernet frame has 60 bytes at least")


def _udp(frame: bytes, at: int) -> Iterator[Field]:
    checksum = _number(frame, at + 6, 2)
    yield _field(frame, "UDP", "source port", at, 2, str(_number(frame, at, 2)))
    yield _field(frame, "UDP", "destination port", at + 2, 2, f"{_number(frame, at + 2, 2)} (this finds the socket)")
    yield _field(frame, "UDP", "length", at + 4, 2, f"{_number(frame, at + 4, 2):,} bytes with this header")
    yield _field(frame, "UDP", "checksum", at + 6, 2, f"0x{checksum:04x}{'' if checksum else ': none was made'}")


def _tcp(frame: bytes, at: int, size: int) -> Iterator[Field]:
    yield _field(frame, "TCP", "source port", at, 2, str(_number(frame, at, 2)))
    yield _field(frame, "TCP", "destination port", at + 2, 2, f"{_number(frame, at + 2, 2)} (this finds the socket)")
    yield _field(frame, "TCP", "sequence number", at + 4, 4, str(_number(frame, at + 4, 4)))
    yield _field(frame, "TCP", "acknowledgement", at + 8, 4, str(_number(frame, at + 8, 4)))
    yield _field(frame, "TCP", "header length and flags", at + 12, 2, f"{size} bytes, flags 0x{frame[at + 13]:02x}")
    yield _field(frame, "TCP", "window", at + 14, 2, str(_number(frame, at + 14, 2)))
    yield _field(frame, "TCP", "checksum", at + 16, 2, f"0x{_number(frame, at + 16, 2):04x}")
    yield _field(frame, "TCP", "urgent pointer", at + 18, 2, str(_number(frame, at + 18, 2)))
    yield _field(frame, "TCP", "options", at + 20, size - 20, f"{size - 20} bytes")


def _payload(frame: bytes, at: int, end: int) -> Field:
    shown = frame[at : min(end, at + SHOWN)]
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in shown)
    more = "" if at + SHOWN >= end else " …"
    return _field(frame, "payload", "the message", at, max(0, end - at), f"{max(0, end - at):,} bytes: {text}{more}")


def _field(frame: bytes, header: str, name: str, offset: int, length: int, value: str) -> Field:
    raw = frame[offset : offset + min(length, SHOWN)].hex()
    return Field(header, name, offset, length, raw + ("…" if length > SHOWN else ""), value)


def _number(frame: bytes, at: int, size: int) -> int:
    return int.from_bytes(frame[at : at + size], "big")


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _verdict(header: bytes) -> str:
    """Say whether an IP header's checksum is right: its 16-bit words add up to all ones (RFC 1071)."""
    total = sum(_number(header, at, 2) for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return "right" if total == 0xFFFF else "wrong"
