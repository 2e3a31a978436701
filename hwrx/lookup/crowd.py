"""Sockets that nobody talks to, so that a lookup has to get past them: evenly spread, or all on one chain."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import resource
import socket
from collections.abc import Iterator
from typing import Literal

from hwrx.errors import MachineError, UsageError
from hwrx.lookup.hashes import portaddr_hash

IP_FREEBIND = 15  # linux/in.h; Python's socket module lacks it
FIRST_PORT, LAST_PORT = 2048, 65535
FIRST_ADDRESS = ipaddress.IPv4Address("127.66.0.1")  # loopback: no packet from outside can be for them
SPARE = 256  # descriptors that the rest of the process may want
Where = Literal["spread", "chain"]


class Crowded(socket.socket):
    """A socket with company, which is closed with it. Bind it first: the company stands before it on its chain.

    `along`: what else is to be undone when the socket is closed.
    """

    def __init__(self, family: int, kind: int, protocol: int = 0) -> None:
        super().__init__(family, kind, protocol)
        self.company: list[socket.socket] = []
        self.along = contextlib.ExitStack()

    def gather(self, count: int, where: Where) -> None:
        """Bind `count` UDP sockets. MachineError where the limits or the privilege do not allow it."""
        if self.family != socket.AF_INET:
            raise UsageError("a crowd is of IPv4 sockets", remedy="use an IPv4 address, or crowd = 0")
        allow_descriptors(count + SPARE)
        address, port = self.getsockname()
        places = spread_crowd()
        if where == "chain":
            # an endpoint in an emulated guest starts without the tables: few trials have a crowd
            from hwrx.lookup.table import Kind, Tables

            with Tables() as tables:
                mask = tables.mask(Kind.UDP_ADDRESS)
                slot = portaddr_hash(ipaddress.IPv4Address(address), port, tables.hash_mix) & mask
                places = chained_crowd(slot, mask, tables.hash_mix)
        while len(self.company) < count:
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.company.append(one)
            one.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            try:
                one.bind(next(places))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # somebody has this port on every address, as rxe has 4791
                self.company.pop().close()

    def close(self) -> None:
        """Close the company too; harmless when called twice."""
        for one in self.company:
            one.close()
        self.company = []
        super().close()
        self.along.close()


def spread_crowd() -> Iterator[tuple[str, int]]:
    """Places whose slots follow each other: a run of ports on one address covers each slot as often as any other."""
    for number in itertools.count():
        address = str(FIRST_ADDRESS + number)
        for port in range(FIRST_PORT, LAST_PORT + 1):
            yield address, port


def chained_crowd(slot: int, mask: int, hash_mix: int) -> Iterator[tuple[str, int]]:
    """Places that all hash to one slot of the table by address and port, and evenly in the one by port."""
    for number in itertools.count():
        address = FIRST_ADDRESS + number
        # the port is added to the address's hash by exclusive or, so its lower bits follow from the slot
        lower = (portaddr_hash(address, 0, hash_mix) ^ slot) & mask
        for port in range(lower, LAST_PORT + 1, mask + 1):
            if port >= FIRST_PORT:
                yield str(address), port


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of open files to `count`; MachineError where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(count, hard)))
    except (OSError, ValueError) as error:
        raise MachineError(
            f"{count} sockets need as many open files, and {hard} are allowed ({error})",
            remedy="run it as root, and raise fs.nr_open where it is lower",
        ) from None
