"""A line for a frame, like tcpdump's: who sends what to whom."""

from __future__ import annotations

import ipaddress

from typing_extensions import Buffer

from cython_ext.packet import dissect

ETHERTYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x88CC: "LLDP", 0x8100: "802.1Q"}
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 41: "IPv6", 47: "GRE", 58: "ICMPv6", 89: "OSPF", 132: "SCTP"}


def summary(frame: Buffer) -> str:
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
        protocol = PROTOCOLS.get(data[23], f"protocol {data[23]}")
        rest += f" {ipaddress.ip_address(data[26:30])} > {ipaddress.ip_address(data[30:34])}: {protocol}"
    elif kind == 0x86DD and len(data) >= 54:
        protocol = PROTOCOLS.get(data[20], f"next header {data[20]}")
        rest += f" {ipaddress.ip_address(data[22:38])} > {ipaddress.ip_address(data[38:54])}: {protocol}"
    wrong = found["verdict"] if found["verdict"].startswith(("bad", "trunc", "frag")) else ""
    return f"{rest}, {len(data)} bytes{f', {wrong.upper()}' if wrong else ''}"


def _end(found: dict[str, object], which: str) -> str:
    return f"{found[which]}.{found[f'{which}_port']}"


def _arp(data: bytes) -> str:
    sender, target = ipaddress.ip_address(data[28:32]), ipaddress.ip_address(data[38:42])
    if data[20:22] == b"\0\1":
        return f"who has {target}? Tell {sender}"
    return f"{sender} is at {data[22:28].hex(':')}"
