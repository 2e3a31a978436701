"""What the instruments of one run share: the wire of the topology, its sockets, and messages sent one at a time."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from hwrx import netns, topology
from hwrx.claims.model import Clock, Measurement
from hwrx.errors import TrialError
from hwrx.messages import Place, Role
from hwrx.testbed import Bed
from hwrx.topology import Made

PATIENCE = 5.0  # seconds that a message may take
GAP = 0.002  # seconds between two messages, so that no work of the one falls into the time of the other
ROLES: tuple[Role, Role] = ("client", "server")


class Wire:
    """Two ends of a topology: their places, and the network namespaces that they are in (None: this one)."""

    def __init__(self, name: str, made: Made) -> None:
        self.name = name
        self.places: dict[Role, Place] = made.places
        self.spaces: dict[Role, str | None] = {
            role: peer.removeprefix("netns:") if (peer := made.peers[role]).startswith("netns:") else None
            for role in ROLES
        }
        self.peers = made.peers

    def socket(self, role: Role, kind: int = socket.SOCK_DGRAM, port: int = 0) -> socket.socket:
        """Return a socket bound at one end, to its device where it has one."""
        place = self.places[role]
        with netns.entered(self.spaces[role]):
            made = socket.socket(socket.AF_INET, kind)
        try:
            if place.netdev is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, place.netdev.encode())
            made.bind((place.address, port))
        except BaseException:
            made.close()
            raise
        return made

    def inside(self, role: Role) -> contextlib.AbstractContextManager[None]:
        """Be in an end's namespace."""
        return netns.entered(self.spaces[role])

    def netdev(self, role: Role) -> str:
        """Return an end's network device."""
        return self.places[role].netdev or "lo"

    def bed(self) -> Bed:
        """Return the testbed that agents run on."""
        return Bed(self.places, self.peers, {"wire": self.name})


class Sent(Struct, frozen=True):
    """When one message was sent and when the reader had it: ns of CLOCK_MONOTONIC; `received` 0: it never came."""

    sent: int
    received: int


class Session:
    """Keeps a topology up as long as claims ask for it. A context manager; leaving takes everything down.

    `kept` holds measurements that several claims rest on, by instrument and parameters.
    """

    def __init__(self, clock: Clock = "wall") -> None:
        self.clock = clock
        self.kept: dict[str, Measurement] = {}
        self._stack = contextlib.ExitStack()
        self._name = ""
        self._wire: Wire | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def use(self, name: str) -> None:
        """Put a topology up, unless it is; the one before it goes."""
        if name == self._name:
            return
        self._stack.close()
        self._wire, self._name = None, ""
        if name != "none":
            self._wire = Wire(name, self._stack.enter_context(_made(name)))
        self._name = name

    @property
    def wire(self) -> Wire:
        """The wire of the claim's topology."""
        assert self._wire is not None, "the claim's topology is 'none'"
        return self._wire

    def along(self, context: contextlib.AbstractContextManager[Any]) -> Any:
        """Enter a context that lasts as long as the topology."""
        return self._stack.enter_context(context)


@contextlib.contextmanager
def _made(name: str) -> Iterator[Made]:
    if name == "lo":
        yield Made(dict.fromkeys(ROLES, Place()), dict.fromkeys(ROLES, "local"))
    elif name == "pair" and Path("/sys/class/infiniband", topology.DEVICES["client"]).exists():
        # the lab's guest has booted with it
        places = {
            role: Place(address=topology.ADDRESSES[role], netdev=topology.LINKS[role], verbs=topology.DEVICES[role])
            for role in ROLES
        }
        yield Made(places, dict.fromkeys(ROLES, "local"))
    else:
        with topology.build(name) as made:
            yield made


class Reader(threading.Thread):
    """Waits for datagrams in a thread of its own: blocking in recv, or in epoll and then recv."""

    def __init__(self, sock: socket.socket, manner: str = "recv") -> None:
        super().__init__(daemon=True, name="reader")
        self._sock = sock
        self._manner = manner
        self._came = threading.Semaphore(0)
        self._end = False
        self.tid = 0
        self.received = 0  # ns of the last one
        self.count = 0

    def run(self) -> None:
        """Read until told to end by an empty datagram."""
        self.tid = threading.get_native_id()
        poller = select.epoll() if self._manner == "epoll" else None
        if poller is not None:
            poller.register(self._sock, select.EPOLLIN)
        self._came.release()
        buffer = bytearray(65536)
        while True:
            if poller is not None:
                poller.poll()
            size = self._sock.recv_into(buffer)
            if size == 0:
                break
            self.received = time.monotonic_ns()
            self.count += 1
            self._came.release()
        if poller is not None:
            poller.close()

    def came(self, seconds: float) -> bool:
        """Wait for the next one (the first time: until the thread runs)."""
        return self._came.acquire(timeout=seconds)


def one_by_one(
    wire: Wire, messages: int, size: int, *, reader: socket.socket, sender: socket.socket, manner: str = "recv"
) -> tuple[list[Sent], int]:
    """Send messages to a reader that sleeps when each comes; return their times, and the reader's thread id."""
    thread = Reader(reader, manner)
    thread.start()
    thread.came(PATIENCE)
    target, payload = reader.getsockname(), bytes(size)
    times = []
    try:
        for _ in range(messages):
            time.sleep(GAP)
            sent = time.monotonic_ns()
            sender.sendto(payload, target)
            times.append(Sent(sent, thread.received if thread.came(PATIENCE) else 0))
            if not times[-1].received and not any(each.received for each in times) and len(times) == 3:
                raise TrialError(f"of three messages over {wire.name} none came within {PATIENCE:g} s")
    finally:
        for _ in range(3):  # an empty datagram ends the reader; something on the way may drop it
            sender.sendto(b"", target)
            thread.join(1.0)
            if not thread.is_alive():
                break
    return times, thread.tid
