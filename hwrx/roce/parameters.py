"""What one end of a connection must know of the other, in one line that can be printed, pasted and read again."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Self

from msgspec import Struct, structs

from hwrx.errors import UsageError

LARGEST_NUMBER = (1 << 24) - 1  # of a queue pair, and of a packet
# name in the line -> field, and the largest value
_NUMBERS = {
    "LID": ("lid", 0xFFFF),
    "QPN": ("qpn", LARGEST_NUMBER),
    "PSN": ("psn", LARGEST_NUMBER),
    "MTU": ("mtu", 0xFFFF),
    "KEY": ("key", (1 << 32) - 1),
    "ADDRESS": ("address", (1 << 64) - 1),
    "SIZE": ("size", 1 << 40),
    "QKEY": ("qkey", (1 << 32) - 1),
}
REMEDY = "a line like: LID 0x0000, QPN 0x000011, PSN 0x9a1b2c, GID ::ffff:192.0.2.1"


class Parameters(Struct, frozen=True, kw_only=True):
    """One end of a connection, or of datagrams: the first three fields are what the other end cannot do without.

    `psn` is that of the first packet that this end sends. `key`, `address` and `size` are of the memory that the other
    end may read and write; `size` 0: it offers none. `mtu` 0 is one that was not told, and `mac` "" likewise.
    """

    gid: str  # an IPv6 address, or an IPv4 address mapped into IPv6
    qpn: int
    psn: int
    lid: int = 0  # RoCE has none; the verbs examples print it
    mtu: int = 0  # bytes
    key: int = 0
    address: int = 0
    size: int = 0  # bytes
    mac: str = ""
    qkey: int | None = None  # of datagrams; None: not told

    @property
    def ip(self) -> str:
        """The IPv4 address if the GID is one that is mapped into IPv6, otherwise the IPv6 address."""
        gid = ipaddress.IPv6Address(self.gid)
        return str(gid.ipv4_mapped or gid)

    def with_fields(self, **fields: str | int | None) -> Self:
        """Return the same with other values of some fields."""
        return structs.replace(self, **fields)

    def to_line(self) -> str:
        """Return the line: it begins as that of `ibv_rc_pingpong`, and what that one does not tell comes behind it."""
        words = [f"LID {self.lid:#06x}", f"QPN {self.qpn:#08x}", f"PSN {self.psn:#08x}", f"GID {show_gid(self.gid)}"]
        words += [f"MTU {self.mtu}"] if self.mtu else []
        if self.size:
            words += [f"KEY {self.key:#x}", f"ADDRESS {self.address:#x}", f"SIZE {self.size}"]
        words += [f"QKEY {self.qkey:#010x}"] if self.qkey is not None else []
        words += [f"MAC {self.mac}"] if self.mac else []
        return ", ".join(words)


def gid_of(address: str) -> str:
    """Return the GID that an IP address gives (annex A17.8 of the InfiniBand specification).

    :param address: IPv4 or IPv6
    :raises UsageError: if it is neither
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError as error:
        raise UsageError(f"'{address}' is not an IP address", remedy="for example 192.0.2.1 or 2001:db8::1") from error
    if found.version == 4:
        return str(ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + found.packed))
    return str(found)


def show_gid(gid: str) -> str:
    """Return a GID as inet_ntop(3) writes it: a mapped IPv4 address with its dots."""
    mapped = ipaddress.IPv6Address(gid).ipv4_mapped
    return f"::ffff:{mapped}" if mapped else str(ipaddress.IPv6Address(gid))


def parse_parameters(line: str) -> Parameters:
    """Read a line that `Parameters.to_line`, `ibv_rc_pingpong` or its kin has printed.

    :param line: words in front of it (`local address:`) and fields that nobody knows are passed over
    :raises UsageError: if QPN, PSN or GID is missing, or a field is not a number of its range
    """
    found: dict[str, int | str] = {}
    for name, value in re.findall(r"\b([A-Z]{3,7})\s*[:=]?\s+([0-9A-Za-z:.]+)", line):
        if name in _NUMBERS:
            field, most = _NUMBERS[name]
            found[field] = _number(name, value, most)
        elif name == "GID":
            try:
                found["gid"] = str(ipaddress.IPv6Address(value.rstrip(".")))
            except ValueError as error:
                raise UsageError(f"'{value}' is not a GID", remedy=REMEDY) from error
        elif name == "MAC":
            found["mac"] = parse_mac(value)
    lacking = [name for name in ("QPN", "PSN", "GID") if name.lower() not in found]
    if lacking:
        raise UsageError(f"there is no {lacking[0]} in '{line.strip()[:200]}'", remedy=REMEDY)
    if found.get("mtu", 0) not in (0, 256, 512, 1024, 2048, 4096):
        raise UsageError(f"there is no path MTU of {found['mtu']}", remedy="256, 512, 1024, 2048 or 4096")
    return Parameters(**found)  # type: ignore[arg-type]


def parse_mac(text: str) -> str:
    """Return the MAC address of one station, in small letters.

    :raises UsageError: if it is not one, or is a group's
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise UsageError(f"'{text}' is not a MAC address", remedy="for example 02:00:00:00:00:01")
    if int(text[:2], 16) & 1:
        raise UsageError(f"{text} is the MAC address of a group", remedy="for example 02:00:00:00:00:01")
    return text.lower()


def check_station(address: str) -> None:
    """Raise UsageError if an IP address is none of a single station: a group's, or no particular one.

    :raises UsageError: also if it is not an IP address
    """
    gid_of(address)
    found = ipaddress.ip_address(address)
    if found.is_multicast or found.is_unspecified:
        what = "the address of a group" if found.is_multicast else "no particular address"
        raise UsageError(f"{address} is {what}", remedy="an end has an address of its own: for example 192.0.2.1")


def read_parameters(text: str) -> Parameters:
    """Return what a line says, or the first line of a file if `text` is `@FILE`.

    :raises UsageError: if the file cannot be read, or see `parse_parameters`
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"'{text[1:]}' cannot be read: {error}", remedy=f"@FILE with {REMEDY}") from error
    return parse_parameters(text)


def _number(name: str, text: str, most: int) -> int:
    try:
        value = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError as error:
        raise UsageError(f"{name} '{text}' is not a number", remedy=REMEDY) from error
    if not 0 <= value <= most:
        raise UsageError(f"{name} is between 0 and {most:#x}, not {text}", remedy=REMEDY)
    return value
