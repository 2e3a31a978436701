"""Frames out of files that tcpdump, Wireshark and hwrx write: pcap, and pcapng (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from typing import IO

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.nic import pcapng

LARGEST_BLOCK = 1 << 24  # bytes: Wireshark's own limit of a block; what says more is no capture
LARGEST_FRAME = 1 << 18
# of pcap: the magic number as it stands in the file, and what a unit of its second time field is in nanoseconds
PCAP_MAGIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
SIMPLE_PACKET = 3
REMEDY = "give a file that `tcpdump -w`, Wireshark or `hwrx nic recv -w` has written"


class CapturedFrame(Struct, frozen=True):
    """A frame, when it was seen, and how long it was on the wire."""

    nanoseconds: int  # since 1970; 0: the file does not say
    data: bytes
    length: int  # bytes; more than `data` has where the capture cut it off


def read_capture(path: str) -> Iterator[CapturedFrame]:
    """Yield the Ethernet frames of a capture, one after the other; of a file that ends early those that are whole.

    :param path: of a pcap or pcapng file; `-` is standard input
    :raises UsageError: if it cannot be read, is no capture, is damaged, or was not made of Ethernet frames
    """
    with contextlib.ExitStack() as stack:
        try:
            file = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb"))  # noqa: PTH123
            first = file.read(4)
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {os.strerror(error.errno or 0)}", remedy=REMEDY) from error
        if len(first) == 4 and struct.unpack("<I", first)[0] == pcapng.SECTION_HEADER:
            yield from _read_pcapng(file, path, first)
            return
        for order in ("<", ">"):
            if len(first) == 4 and struct.unpack(f"{order}I", first)[0] in PCAP_MAGIC:
                yield from _read_pcap(file, path, order, PCAP_MAGIC[struct.unpack(f"{order}I", first)[0]])
                return
        raise UsageError(f"'{path}' is neither a pcap nor a pcapng file", remedy=REMEDY)


def _read_pcap(file: IO[bytes], path: str, order: str, unit: int) -> Iterator[CapturedFrame]:
    header = file.read(20)
    if len(header) < 20:
        raise _damaged(path, "it ends within its header")
    _need_ethernet(path, struct.unpack(f"{order}I", header[16:20])[0] & 0xFFFF)
    while len(record := file.read(16)) == 16:
        seconds, fraction, kept, length = struct.unpack(f"{order}IIII", record)
        if kept > LARGEST_FRAME:
            raise _damaged(path, f"it has a frame of {kept} bytes")
        data = file.read(kept)
        if len(data) < kept:
            return
        yield CapturedFrame(seconds * 1_000_000_000 + fraction * unit, data, length)


def _read_pcapng(file: IO[bytes], path: str, first: bytes) -> Iterator[CapturedFrame]:
    order = "<"
    units: list[float] = []  # nanoseconds of a unit of time, of each interface of the section
    while len(first) == 4 and len(size := file.read(4)) == 4:
        kind = struct.unpack(f"{order}I", first)[0]
        if first == struct.pack("<I", pcapng.SECTION_HEADER):  # the same in either byte order
            magic = file.read(4)
            order = "<" if magic == struct.pack("<I", pcapng.BYTE_ORDER) else ">"
            if magic != struct.pack(f"{order}I", pcapng.BYTE_ORDER):
                raise _damaged(path, "a section has no byte order")
            kind, units = pcapng.SECTION_HEADER, []
        length = struct.unpack(f"{order}I", size)[0]
        begun = 12 if kind == pcapng.SECTION_HEADER else 8
        if not 12 <= length <= LARGEST_BLOCK or length % 4 or length < begun:
            raise _damaged(path, f"it has a block of {length} bytes")
        body = file.read(length - begun)
        if len(body) < length - begun:
            return
        if kind == pcapng.INTERFACE_DESCRIPTION:
            units.append(_interface_unit(path, body[:-4], order))
        elif kind == pcapng.ENHANCED_PACKET:
            yield _enhanced_packet(path, body[:-4], order, units)
        elif kind == SIMPLE_PACKET and len(body) >= 8:
            whole = struct.unpack(f"{order}I", body[:4])[0]
            yield CapturedFrame(0, body[4:-4][:whole], whole)
        first = file.read(4)


def _enhanced_packet(path: str, body: bytes, order: str, units: list[float]) -> CapturedFrame:
    if len(body) < 20:
        raise _damaged(path, "a packet's block is too short")
    interface, high, low, kept, length = struct.unpack(f"{order}IIIII", body[:20])
    if interface >= len(units) or kept > len(body) - 20:
        raise _damaged(path, "a packet's block names an interface or a length that there is not")
    return CapturedFrame(int((high << 32 | low) * units[interface]), body[20 : 20 + kept], length)


def _interface_unit(path: str, body: bytes, order: str) -> float:
    """Nanoseconds of an interface's unit of time: a whole number, or less than 1 for units that are finer."""
    if len(body) < 8:
        raise _damaged(path, "an interface's block is too short")
    _need_ethernet(path, struct.unpack(f"{order}H", body[:2])[0])
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack(f"{order}HH", body[at : at + 4])
        if code == pcapng.END_OF_OPTIONS:
            break
        if code == pcapng.IF_TSRESOL and size == 1 and at + 4 < len(body):
            exponent = body[at + 4]
            base, power = (2, exponent & 0x7F) if exponent & 0x80 else (10, exponent)
            return 10**9 // base**power if power <= 9 and base == 10 else 1e9 / float(base) ** power
        at += 4 + (size + 3) // 4 * 4
    return 1000


def _need_ethernet(path: str, kind: int) -> None:
    if kind != pcapng.ETHERNET:
        raise UsageError(
            f"'{path}' holds no Ethernet frames (link type {kind})",
            remedy="capture on an Ethernet interface, not on `any`",
        )


def _damaged(path: str, why: str) -> UsageError:
    return UsageError(f"'{path}' is damaged: {why}", remedy=REMEDY)
