"""What is done to a packet of RoCEv2 on its way, and to which one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from msgspec import Struct

from cython_ext.roce.packet import OPCODES, dissect_roce
from hwrx.drill.model import Tamper
from hwrx.errors import UsageError

PSN = (1 << 24) - 1
ETHERNET, UDP, BTH, ICRC = 14, 8, 12, 4
_MS = 1_000_000  # nanoseconds


class Seen(Struct):
    """A packet as it passes: its frame, its fields, its number from the connection's first one, its message."""

    frame: bytes
    found: dict[str, object]
    request: bool
    psn: int
    message: int
    again: bool  # a request whose number has been seen

    @property
    def opcode(self) -> str:
        """Without RC_; "" if it is not known."""
        return str(self.found.get("opcode", "")).removeprefix("RC_")

    @property
    def syndrome(self) -> str:
        """ACK, NAK or RNR NAK; "" for what has no AETH or carries data."""
        value = self.found.get("syndrome")
        if not isinstance(value, int) or self.opcode != "ACKNOWLEDGE":
            return ""
        return {0x00: "ACK", 0x20: "RNR NAK", 0x60: "NAK"}.get(value & 0x60, "reserved")


class Reader:
    """Takes the packets of one direction apart.

    :param requests: the first PSN of whoever sends here
    :param answers: the first PSN of the other end, whose requests are answered here
    """

    def __init__(self, requests: int, answers: int) -> None:
        self._first = {True: requests, False: answers}
        self._messages: dict[int, int] = {}

    def read(self, frame: bytes) -> Seen | None:
        """Return a packet taken apart; None if it is not one."""
        found = dissect_roce(frame)
        if "psn" not in found:
            return None
        opcode = str(found["opcode"]).removeprefix("RC_")
        request = "RESPONSE" not in opcode and "ACKNOWLEDGE" not in opcode
        psn = (int(found["psn"]) - self._first[request]) & PSN
        psn -= (PSN + 1) if psn > PSN // 2 else 0
        again = request and psn in self._messages
        message = self._messages.get(psn, 0)
        if request and not again:
            begins = not opcode.endswith(("MIDDLE", "LAST", "LAST_WITH_IMMEDIATE"))
            message = max(self._messages.values(), default=0) + begins
            self._messages[psn] = message
        return Seen(frame, found, request, psn, message, again)


class Chain:
    """What stands on the way in one direction: each entry acts on what the one before it lets pass."""

    def __init__(self, tampers: Sequence[Tamper], requests: int, answers: int) -> None:
        self._links = [_Link(tamper, Reader(requests, answers)) for tamper in tampers]

    @property
    def tampered(self) -> int:
        """How many packets have been changed, held, repeated or taken away."""
        return sum(link.tampered for link in self._links)

    @property
    def untouched(self) -> int:
        """How many entries found no packet that fits."""
        return sum(link.tampered == 0 for link in self._links)

    def carry(self, frame: bytes, now: int) -> list[bytes]:
        """Return the frames that come out for one that goes in, at a time in nanoseconds."""
        frames = [frame]
        for link in self._links:
            frames = [out for each in frames for out in link.carry(each, now)]
        return frames

    def due(self, now: int) -> list[bytes]:
        """Return frames whose time has come although nothing has passed them."""
        frames: list[bytes] = []
        for link in self._links:
            frames = [out for each in frames for out in link.carry(each, now)] + link.due(now)
        return frames

    @property
    def next_event(self) -> int | None:
        """When a held frame goes on, in nanoseconds."""
        return min((until for link in self._links for _, until, _ in link.held), default=None)


class _Link:
    def __init__(self, tamper: Tamper, reader: Reader) -> None:
        self.tamper = tamper
        self.held: list[tuple[int, int, bytes]] = []  # how many must pass, until when, what
        self.tampered = 0
        self._reader = reader
        self._fitting = 0

    def carry(self, frame: bytes, now: int) -> list[bytes]:
        seen = self._reader.read(frame)
        out = [frame] if seen is None or not self._meant(seen) else self._deed(seen, now)
        if out:
            self.held = [(passing - 1, until, each) for passing, until, each in self.held]
            out += [each for passing, _, each in self.held if passing < 0]
            self.held = [each for each in self.held if each[0] >= 0]
        return out

    def due(self, now: int) -> list[bytes]:
        out = [frame for _, until, frame in self.held if until <= now]
        self.held = [each for each in self.held if each[1] > now]
        return out

    def _meant(self, seen: Seen) -> bool:
        if not fits(self.tamper, seen):
            return False
        self._fitting += 1
        last = self.tamper.nth + self.tamper.times if self.tamper.times else 1 << 62
        meant = self.tamper.nth <= self._fitting < last
        self.tampered += meant
        return meant

    def _deed(self, seen: Seen, now: int) -> list[bytes]:
        tamper, frame = self.tamper, seen.frame
        match tamper.do:
            case "drop":
                return []
            case "repeat":
                return [frame, frame]
            case "copy":
                changed = change_packet(seen, tamper)
                return [changed, frame] if tamper.before else [frame, changed]
            case "delay" | "swap":
                passing = tamper.packets if tamper.do == "delay" else 1
                # one less: what passes next is counted when it has passed
                self.held.append((passing - 1, now + int(tamper.ms * _MS), frame))
                return []
            case _:
                return [change_packet(seen, tamper)]


def fits(tamper: Tamper, seen: Seen) -> bool:
    """Say whether a packet is one that is meant, before it is counted which of them."""
    kinds = {
        "": True,
        "request": seen.request,
        "answer": not seen.request,
        "first time": seen.request and not seen.again,
        "again": seen.again,
    }
    return (
        (not tamper.opcode or seen.opcode in tamper.opcode.split("|"))
        and kinds.get(tamper.kind, seen.syndrome == tamper.kind)
        and tamper.psn in (None, seen.psn)
        and tamper.message in (None, seen.message)
    )


# --- changing a packet ---------------------------------------------------------------------------------------------


def change_packet(seen: Seen, tamper: Tamper) -> bytes:
    """Return a packet changed as an entry says, with lengths and checksums that are right unless it says otherwise."""
    frame = bytearray(seen.frame)
    at = bth_of(frame)
    for name, value in tamper.set.items():
        if name not in FIELDS:
            raise UsageError(f"a packet has no field '{name}' to be set", remedy=f"choose of: {', '.join(FIELDS)}")
        FIELDS[name](frame, at, value)
    if tamper.do == "flip":
        frame[-ICRC - 1 - (frame[at + 1] >> 4 & 3)] ^= 0xFF  # the last byte of the payload
    if tamper.do == "cut":
        cut_payload(frame, at, tamper.bytes)
    if tamper.do == "trail":
        mend_packet(frame)
        return bytes(frame) + bytes(8)
    if tamper.do == "spoil" or tamper.icrc == "wrong":
        mend_packet(frame)
        frame[-1] ^= 0xFF
    elif tamper.icrc == "right":
        mend_packet(frame)
    return bytes(frame)


def bth_of(frame: bytes | bytearray) -> int:
    """Return where the BTH begins in a frame without tags."""
    return ETHERNET + (20 if frame[12:14] == b"\x08\0" else 40) + UDP


def cut_payload(frame: bytearray, at: int, size: int) -> None:
    """Take bytes off the end of the payload, and pad what is left."""
    end = len(frame) - ICRC - (frame[at + 1] >> 4 & 3) - size
    del frame[max(at + BTH, end) :]
    pad = -(len(frame) - at) & 3
    frame[at + 1] = frame[at + 1] & 0xCF | pad << 4
    frame += bytes(pad + ICRC)


def mend_packet(frame: bytearray) -> None:
    """Make lengths, IPv4's checksum and the ICRC of a packet right."""
    at = bth_of(frame)
    size = len(frame) - at + UDP
    frame[at - 4 : at - 2] = size.to_bytes(2, "big")
    if frame[12:14] == b"\x08\0":
        frame[16:18] = (size + 20).to_bytes(2, "big")
        frame[24:26] = bytes(2)
        total = sum(int.from_bytes(frame[k : k + 2], "big") for k in range(14, 34, 2))
        total = (total & 0xFFFF) + (total >> 16)
        frame[24:26] = (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
    else:
        frame[18:20] = size.to_bytes(2, "big")
    frame[-ICRC:] = icrc_bytes(frame)


def icrc_bytes(frame: bytes | bytearray) -> bytes:
    """Return the invariant CRC (annex A17.3.3): of what no router changes, the rest as ones."""
    covered, at = bytearray(frame[ETHERNET:-ICRC]), bth_of(frame) - ETHERNET
    if frame[12:14] == b"\x08\0":
        variant = (1, 8, 10, 11)  # type of service, time to live, header checksum
    else:
        covered[0] |= 0x0F  # traffic class, flow label, hop limit
        variant = (1, 2, 3, 7)
    for k in (*variant, at - 2, at - 1, at + 4):  # UDP's checksum, and the BTH's reserved byte
        covered[k] = 0xFF
    return zlib.crc32(b"\xff" * 8 + covered).to_bytes(4, "little")


def _number(first: int, size: int, *, add: bool = False, behind: int = 0) -> Callable[..., None]:
    """Return what sets, or adds to, a number of `size` bytes that stands `first` bytes behind the BTH's beginning."""

    def change(frame: bytearray, at: int, value: int) -> None:
        place = slice(at + behind + first, at + behind + first + size)
        number = int.from_bytes(frame[place], "big") if add else 0
        frame[place] = ((number + int(value)) % (1 << 8 * size)).to_bytes(size, "big")

    return change


def _opcode(frame: bytearray, at: int, value: str | int) -> None:
    number = OPCODES.get(f"RC_{value}", OPCODES.get(str(value))) if isinstance(value, str) else value
    if number is None:
        raise UsageError(f"there is no opcode '{value}'", remedy="SEND_ONLY, UC_SEND_ONLY, … or a number")
    frame[at] = number


def _bits(first: int, mask: int, shift: int) -> Callable[..., None]:
    def change(frame: bytearray, at: int, value: int) -> None:
        frame[at + first] = frame[at + first] & ~mask & 0xFF | int(value) << shift & mask

    return change


def _ecn(frame: bytearray, at: int, value: int) -> None:
    if frame[12:14] == b"\x08\0":
        frame[15] = frame[15] & 0xFC | int(value)
    else:
        frame[15] = frame[15] & 0xCF | int(value) << 4


def _source(frame: bytearray, at: int, value: int) -> None:
    frame[ETHERNET + 15 if frame[12:14] == b"\x08\0" else ETHERNET + 23] ^= int(value)


# name -> what changes it; `_by` adds. Of extended headers those that the packet's own opcode has
FIELDS: dict[str, Callable[..., None]] = {
    "opcode": _opcode,
    "psn_by": _number(9, 3, add=True),
    "qpn_by": _number(5, 3, add=True),
    "pkey": _number(2, 2),
    "reserved": _number(4, 1),  # resv8a of the BTH, where FECN and BECN stand
    "ack_request": _bits(8, 0x80, 7),
    "migreq": _bits(1, 0x40, 6),
    "version": _bits(1, 0x0F, 0),
    "pad": _bits(1, 0x30, 4),
    "address_by": _number(0, 8, add=True, behind=BTH),  # RETH, AtomicETH
    "key_by": _number(8, 4, add=True, behind=BTH),
    "length": _number(12, 4, behind=BTH),
    "length_by": _number(12, 4, add=True, behind=BTH),
    "swap_by": _number(12, 8, add=True, behind=BTH),  # AtomicETH
    "first_word": _number(0, 4, behind=BTH),  # behind the BTH: of SEND_ONLY_WITH_IMMEDIATE the immediate
    "syndrome": _number(0, 1, behind=BTH),  # AETH
    "msn_by": _number(1, 3, add=True, behind=BTH),
    "source_port": _number(-8, 2),
    "ecn": _ecn,
    "source_xor": _source,  # the last byte of the sender's IP address
}
