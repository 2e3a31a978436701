"""Which of several sockets gets a packet: the kernel's scores, in the order of its looking.

Sources: compute_score, udp4_lib_lookup2, __udp4_lib_lookup, udp4_lib_lookup's IPv6 twins, inet_lhash2_lookup,
__inet_lookup_listener, reuseport_select_sock_by_hash.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from hwrx.lookup.hashes import Address, mapped_address
from hwrx.lookup.table import AF_INET6, TCP_ESTABLISHED, Protocol, far_of, local_of

AF_INET = 2


class Packet(Struct, frozen=True):
    """What the lookup is given. `source` None: a sender that no socket is connected to. `device` 0: any."""

    destination: Address
    port: int
    source: Address | None = None
    source_port: int = 0
    device: int = 0


def is_wildcard(address: Address) -> Address:
    """Return the address that stands for all of its family."""
    return ipaddress.IPv6Address(0) if isinstance(address, ipaddress.IPv6Address) else ipaddress.IPv4Address(0)


def score_socket(protocol: Protocol, entry: Any, packet: Packet, looked_for: Address, namespace: int) -> int | None:
    """compute_score: None where the socket is not for this packet. `looked_for`: the address of this pass."""
    if entry["namespace"] != namespace or entry["port"] != packet.port:
        return None
    six = entry["family"] == AF_INET6
    v6 = isinstance(looked_for, ipaddress.IPv6Address)
    local = local_of(entry)
    if v6:
        if not six or local != looked_for:
            return None
    else:
        if entry["only6"] or (six and not _is_for_v4(local, looked_for)) or (not six and local != looked_for):
            return None
    if entry["device"] and packet.device and entry["device"] != packet.device:
        return None
    if protocol == "tcp":
        return (2 if entry["device"] else 1) + (0 if v6 else int(not six))
    far, port = far_of(entry), int(entry["peer_port"])
    far = mapped_address(far) or far
    connected = (bool(int(far)), bool(port))
    if (connected[0] and far != packet.source) or (connected[1] and port != packet.source_port):
        return None
    if v6:
        return sum(connected) + bool(entry["device"])
    return (1 if six else 2) + 4 * sum(connected) + 4 * bool(entry["device"])


def _is_for_v4(local: Address, looked_for: Address) -> bool:
    """An IPv6 socket takes IPv4's packets where it is bound to all of both families, or to a mapped address."""
    return (int(local) == 0 and int(looked_for) == 0) or mapped_address(local) == looked_for


def best_socket(
    protocol: Protocol, chain: Iterable[Any], packet: Packet, looked_for: Address, namespace: int
) -> tuple[Any, int] | None:
    """Return the first of the highest score on a chain, and the score; None where nobody is for the packet."""
    found: tuple[Any, int] | None = None
    for entry in chain:
        points = score_socket(protocol, entry, packet, looked_for, namespace)
        if points is not None and (found is None or points > found[1]):
            found = entry, points
            if protocol == "tcp" and entry["reuseport"]:
                return found  # the listener's search ends with the first group that it meets
    return found


def group_member(protocol: Protocol, entry: Any) -> bool:
    """Whether the packet goes to a member of the socket's SO_REUSEPORT group. A connected UDP socket keeps its own."""
    connected = protocol == "udp" and entry["state"] == TCP_ESTABLISHED
    return bool(entry["reuseport"] and entry["group"] and not connected)
