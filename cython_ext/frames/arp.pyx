# cython: language_level=3
"""Asking who has an address on a link of whole frames, which no kernel answers for us (ARP, RFC 826)."""

import ipaddress
import time

from cython_ext.frames.packet import mac_bytes

from hwrx.errors import PathError

BROADCAST = "ff:ff:ff:ff:ff:ff"
QUESTIONS = 6
ANSWER_S = 0.5


def resolve_mac(link, ours: str, address: str) -> str:
    """Return the MAC that answers for an IPv4 address.

    :param link: a FrameLink that is open
    :param ours: our own IPv4 address on it
    :param address: as people write it; it must be on this link, for no gateway is asked
    :raises PathError: if none does within 3 s
    """
    question = (
        mac_bytes(BROADCAST) + mac_bytes(link.mac) + b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"
        + mac_bytes(link.mac) + ipaddress.IPv4Address(ours).packed
        + bytes(6) + ipaddress.IPv4Address(address).packed
    )
    for _ in range(QUESTIONS):
        link.send(question)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            for frame in link.receive(0.05):
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x02" and (
                        frame[28:32] == ipaddress.IPv4Address(address).packed):
                    return frame[22:28].hex(":")
    raise PathError(
        f"peer unreachable: nobody answered for {address} (ARP, six questions in 3 s)",
        remedy="see whether the other end's interface is up and has that address"
        + "".join(f"; {sentence}" for sentence in link.diagnose()),
    )
