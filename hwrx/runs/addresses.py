"""The addresses of two ends: the client's own as the kernel routes it, and both of one family."""

from __future__ import annotations

import socket

from hwrx.errors import UsageError
from hwrx.host.ipv6 import why_no_ipv6


def own_address(peer_address: str) -> str:
    """Return this machine's address from which it reaches another one, as the kernel routes it. Nothing is sent.

    :raises UsageError: if that is not an IP address, or no route leads there.
    """
    try:
        (family, kind, _, _, target), *_ = socket.getaddrinfo(
            peer_address, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
        with socket.socket(family, kind) as asking:
            asking.connect(target)
            address, _, *scope = asking.getsockname()
            zone = f"%{socket.if_indextoname(scope[1])}" if scope and scope[1] else ""
            return f"{address}{zone}"
    except socket.gaierror:
        raise UsageError(
            f"--peer-address: {peer_address!r} is not an IP address", remedy="for example 192.0.2.7 or fe80::7%eth0"
        ) from None
    except OSError as error:
        off = why_no_ipv6() if ":" in peer_address else ""
        raise UsageError(
            f"--peer-address: no route leads from here to {peer_address}: {off or error.strerror}",
            remedy="an IPv4 address, or switch IPv6 on"
            if off
            else "ip route get ADDRESS shows it; --address ADDRESS names the client's own",
        ) from None


def need_one_family(client: str, server: str) -> None:
    """UsageError if one end's address is of IPv4 and the other's of IPv6: no packet goes from one to the other."""
    if (":" in client) != (":" in server):
        raise UsageError(
            f"the client's address {client} and the server's {server} are of two families",
            remedy="give both of one: --address ADDRESS --peer-address ADDRESS, or --gid-index for verbs devices",
        )
