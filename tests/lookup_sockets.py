"""Sockets of every kind that a lookup can meet, bound at random, and what the kernel says of them as vectors."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hwrx.lookup.crowd import allow_descriptors
from hwrx.lookup.table import TCP_LISTEN, Kind, Tables, far_of, local_of

V4, V6 = socket.AF_INET, socket.AF_INET6
LOCAL = {
    V4: ["127.0.0.1", "127.1.2.3", "127.255.0.9", "0.0.0.0"],
    V6: ["::1", "::", "::ffff:127.0.0.77"],
}


@contextmanager
def bound(count: int, seed: int) -> Iterator[list[socket.socket]]:
    """`count` sockets or more: UDP and TCP, IPv4 and IPv6, wildcards, mapped addresses, connected ones, groups."""
    rng = random.Random(seed)
    made: list[socket.socket] = []
    allow_descriptors(count + 256)
    with ExitStack() as stack:
        while len(made) < count:
            family = V4 if rng.random() < 0.5 else V6
            kind = socket.SOCK_DGRAM if rng.random() < 0.5 else socket.SOCK_STREAM
            address = rng.choice(LOCAL[family])
            first = stack.enter_context(socket.socket(family, kind))
            made.append(first)
            group = rng.random() < 0.1
            if group:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            first.bind((address, 0))
            port = first.getsockname()[1]
            if group:
                more = stack.enter_context(socket.socket(family, kind))
                more.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                more.bind((address, port))
                made.append(more)
                if kind == socket.SOCK_STREAM:
                    more.listen(1)
            if kind == socket.SOCK_STREAM:
                first.listen(1)
            if rng.random() < 0.4:
                caller = stack.enter_context(socket.socket(family, kind))
                at = address if address not in ("::", "0.0.0.0") else {V4: "127.0.0.1", V6: "::1"}[family]
                caller.connect((at, port))
                made.append(caller)
        yield made


def vectors(most: int) -> dict[str, Any]:
    """What this kernel makes of the namespace's sockets: seeds, and for each socket the hash and slots it has."""
    with Tables() as tables:
        tcp, udp = tables.secrets("tcp"), tables.secrets("udp")
        assert tcp is not None
        assert udp is not None
        rows = []
        for protocol in ("udp", "tcp"):
            for entry in tables.sockets(protocol)[:most]:
                rows.append(
                    {
                        "kind": "udp"
                        if protocol == "udp"
                        else "listen"
                        if entry["state"] == TCP_LISTEN
                        else "established",
                        "local": str(local_of(entry)),
                        "port": int(entry["port"]),
                        "far": str(far_of(entry)),
                        "far_port": int(entry["peer_port"]),
                        "hash": int(entry["hash"]),
                        "slots": [int(slot) for slot in entry["slot"]],
                    }
                )
        return {
            "hash_mix": tables.hash_mix,
            "secrets": [tcp.ehash, tcp.ehash6, tcp.address6],
            "masks": {kind.name: tables.mask(kind) for kind in list(Kind)[:4]},
            "sockets": rows,
        }
