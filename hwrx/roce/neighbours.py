"""Who has an address on this Ethernet: ARP (RFC 826) and IPv6's neighbour discovery (RFC 4861), asked and answered.

An endpoint has an address of its own that the kernel does not know, so nobody else answers for it.
"""

from __future__ import annotations

import ipaddress
import struct

ARP = b"\x08\x06"
IPV6 = b"\x86\xdd"
ICMPV6 = 58
SOLICITATION, ADVERTISEMENT = 135, 136
BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
_ETHERNET_IPV4 = b"\0\x01\x08\0\x06\x04"


def solicited_node(address: str) -> str:
    """Return the MAC address of the group in which an IPv6 address is asked for (RFC 4291, 2.7.1; RFC 2464, 7)."""
    return f"33:33:ff:{ipaddress.IPv6Address(address).packed[-3:].hex(':')}"


def ask_neighbour(mac: str, address: str, wanted: str) -> bytes:
    """Return the frame that asks who has an address.

    :param mac, address: who asks; the answer goes there
    :param wanted: of the same version of IP
    """
    own, asker = _bytes_of(mac), ipaddress.ip_address(address).packed
    target = ipaddress.ip_address(wanted).packed
    if len(target) == 4:
        return _arp(BROADCAST, own, _REQUEST, asker, bytes(6), target)
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[-3:]
    body = bytes(4) + target + b"\x01\x01" + own  # source link-layer address
    return _icmpv6(_bytes_of(solicited_node(wanted)), own, asker, group, SOLICITATION, body)


def answer_neighbour(frame: bytes, mac: str, address: str) -> bytes | None:
    """Return the frame that answers a question for our address; None if it is not one.

    :param frame: any Ethernet frame
    :param mac, address: our own
    """
    own, ours = _bytes_of(mac), ipaddress.ip_address(address).packed
    if frame[12:14] == ARP and len(frame) >= 42 and len(ours) == 4:
        if frame[14:20] != _ETHERNET_IPV4 or frame[20:22] != b"\0\x01" or frame[38:42] != ours:
            return None
        return _arp(frame[22:28], own, _REPLY, ours, frame[22:28], frame[28:32])
    if not _is_icmpv6(frame, SOLICITATION) or frame[62:78] != ours or frame[21] != 255:
        return None
    asker = frame[22:38]
    if asker == bytes(16):  # duplicate address detection: all nodes are to hear that it is taken
        asker = ipaddress.IPv6Address("ff02::1").packed
        return _icmpv6(b"\x33\x33\0\0\0\x01", own, ours, asker, ADVERTISEMENT, b"\x20\0\0\0" + ours + b"\x02\x01" + own)
    # solicited, and overrides what the asker knew
    return _icmpv6(frame[6:12], own, ours, asker, ADVERTISEMENT, b"\x60\0\0\0" + ours + b"\x02\x01" + own)


def read_neighbour(frame: bytes, wanted: str) -> str | None:
    """Return the MAC address that an answer tells for an address; None if the frame is no answer for it."""
    target = ipaddress.ip_address(wanted).packed
    if frame[12:14] == ARP and len(frame) >= 42 and len(target) == 4:
        answers = frame[14:20] == _ETHERNET_IPV4 and frame[20:22] == b"\0\x02" and frame[28:32] == target
        return frame[22:28].hex(":") if answers else None
    if _is_icmpv6(frame, ADVERTISEMENT) and frame[62:78] == target:
        options = frame[78:]
        while len(options) >= 8 and options[1]:
            if options[0] == 2:  # target link-layer address
                return options[2:8].hex(":")
            options = options[8 * options[1] :]
        return frame[6:12].hex(":")
    return None


def _is_icmpv6(frame: bytes, kind: int) -> bool:
    return len(frame) >= 78 and frame[12:14] == IPV6 and frame[20] == ICMPV6 and frame[54] == kind


def _arp(to: bytes, own: bytes, kind: int, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    return to + own + ARP + _ETHERNET_IPV4 + kind.to_bytes(2, "big") + own + sender + target_mac + target


def _icmpv6(to: bytes, own: bytes, source: bytes, destination: bytes, kind: int, body: bytes) -> bytes:
    message = bytes((kind, 0, 0, 0)) + body
    pseudo: bytes = source + destination + struct.pack(">II", len(message), ICMPV6) + message
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))  # of whole words
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + (~total & 0xFFFF).to_bytes(2, "big") + message[4:]
    header: bytes = struct.pack(">IHBB", 6 << 28, len(message), ICMPV6, 255)
    return to + own + IPV6 + header + source + destination + message


def _bytes_of(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
