"""A line for a frame, like tcpdump's: who sends what to whom."""

from __future__ import annotations

import ipaddress

from typing_extensions import Buffer

from cython_ext.frames.packet import dissect

ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x88CC: "LLDP", 0x8100: "802.1Q"}
ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
ICMPV6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply"}
ICMPV6 |= {133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation"}
ICMPV6 |= {136: "neighbour advertisement", 143: "multicast listener report"}
TCP_FLAGS = "FSRP.UEW"  # tcpdump's letters, from bit 0 on; an ACK is a dot
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 41: "IPv6", 47: "GRE", 58: "ICMPv6", 89: "OSPF", 132: "SCTP"}


def summarise_frame(frame: Buffer) -> str:
    """Addresses, kind, length; for UDP ports and whether the checksum is good; for ARP question and answer."""
    data = bytes(frame)
    if len(data) < 14:
        return f"runt of {len(data)} bytes"
    kind = int.from_bytes(data[12:14], "big")
    head = f"{data[6:12].hex(':')} > {data[:6].hex(':')}"
    found = dissect(data)
    if found["verdict"] == "udp":
        source, destination = _end(found, "source"), _end(found, "destination")
        return f"{head}, {ETHERTYPES[kind]} {source} > {destination}: UDP, {found['size']} bytes"
    rest = f"{head}, {ETHERTYPES.get(kind, f'ethertype {kind:#06x}')}"
    if kind == 0x0806 and len(data) >= 42:
        return f"{rest}, {_arp(data)}"
    if kind == 0x0800 and len(data) >= 34:
        later = int.from_bytes(data[20:22], "big") & 0x1FFF  # a fragment that is not the first has no such header
        above = b"" if later else data[14 + 4 * (data[14] & 0x0F) :]
        rest += _above(data[23], data[26:30], data[30:34], above, f"protocol {data[23]}")
    elif kind == 0x86DD and len(data) >= 54:
        rest += _above(data[20], data[22:38], data[38:54], data[54:], f"next header {data[20]}")
    wrong = found["verdict"] if found["verdict"].startswith(("bad", "trunc", "frag")) else ""
    return f"{rest}, {len(data)} bytes{f', {wrong.upper()}' if wrong else ''}"


def _above(protocol: int, source: bytes, destination: bytes, data: bytes, unknown: str) -> str:
    """Who to whom, and what stands above IP: ports and flags of TCP, the kind of an ICMP message, or just its name."""
    ends = [str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination))]
    words = PROTOCOLS.get(protocol, unknown)
    if protocol == 6 and len(data) >= 20:
        ends = [f"{end}.{int.from_bytes(data[at : at + 2], 'big')}" for end, at in zip(ends, (0, 2), strict=True)]
        words += f" [{''.join(letter for bit, letter in enumerate(TCP_FLAGS) if data[13] >> bit & 1)}]"
    elif protocol in (1, 58) and data:
        words += f" {(ICMP if protocol == 1 else ICMPV6).get(data[0], f'type {data[0]}')}"
    return f" {' > '.join(ends)}: {words}"


def _end(found: dict[str, object], which: str) -> str:
    return f"{found[which]}.{found[f'{which}_port']}"


def _arp(data: bytes) -> str:
    sender, target = ipaddress.ip_address(data[28:32]), ipaddress.ip_address(data[38:42])
    if data[20:22] == b"\0\1":
        return f"who has {target}? Tell {sender}"
    return f"{sender} is at {data[22:28].hex(':')}"
