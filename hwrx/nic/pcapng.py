"""Packets in a file that Wireshark and tcpdump read: pcapng (draft-ietf-opsawg-pcapng), nanosecond time stamps."""

from __future__ import annotations

import struct
from typing import IO

from typing_extensions import Buffer

SECTION_HEADER = 0x0A0D0D0A
INTERFACE_DESCRIPTION = 1
ENHANCED_PACKET = 6
INTERFACE_STATISTICS = 5
BYTE_ORDER = 0x1A2B3C4D
ETHERNET = 1  # LINKTYPE_ETHERNET
# options
END_OF_OPTIONS = 0
SHB_USERAPPL = 4
IF_NAME = 2
IF_TSRESOL = 9
ISB_IFRECV = 4
ISB_IFDROP = 5
NANOSECONDS = 9  # of IF_TSRESOL: 10^-9


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


class Writer:
    """One section with one interface, written to `out`, a binary file that stays the caller's.

    Each packet is a block of its own: a file that ends early is readable up to its last whole packet.
    """

    def __init__(self, out: IO[bytes], interface: str, application: str = "hwrx", snap: int = 0) -> None:
        self._out = out
        self._snap = snap
        options = _option(SHB_USERAPPL, application.encode()) + _option(END_OF_OPTIONS, b"")
        out.write(_block(SECTION_HEADER, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1) + options))
        options = (
            _option(IF_NAME, interface.encode())
            + _option(IF_TSRESOL, bytes([NANOSECONDS]))
            + _option(END_OF_OPTIONS, b"")
        )
        out.write(_block(INTERFACE_DESCRIPTION, struct.pack("<HHI", ETHERNET, 0, snap) + options))

    def packet(self, frame: Buffer, nanoseconds: int) -> None:
        """Write one frame; `nanoseconds` since 1970. What exceeds the snap length (0: nothing does) is cut off."""
        data = bytes(frame)
        kept = data[: self._snap] if self._snap else data
        body = struct.pack("<IIIII", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF, len(kept), len(data))
        self._out.write(_block(ENHANCED_PACKET, body + kept + bytes(-len(kept) % 4)))

    def statistics(self, received: int, dropped: int, nanoseconds: int) -> None:
        """Write how many frames the interface received and lost."""
        body = struct.pack("<III", 0, nanoseconds >> 32, nanoseconds & 0xFFFFFFFF)
        body += _option(ISB_IFRECV, struct.pack("<Q", received)) + _option(ISB_IFDROP, struct.pack("<Q", dropped))
        self._out.write(_block(INTERFACE_STATISTICS, body + _option(END_OF_OPTIONS, b"")))
