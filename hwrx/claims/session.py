"""What the instruments of one run share: the wire of the topology, its sockets, and messages sent one at a time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Clock, Role
from hwrx.control.places import Place
from hwrx.errors import TrialError, UsageError
from hwrx.host import netns
from hwrx.host.waiting import wait_to_read
from hwrx.paths import PATHS
from hwrx.runs.beds import Testbed
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.wires import topology
from hwrx.wires.made import Made

if TYPE_CHECKING:
    from hwrx.timelines.traced import RunTracer

PATIENCE = 5.0  # seconds that a message may take
LOST = 3  # messages of an experiment that may be lost: where more are, it measures what is broken
GAP = 0.002  # seconds between two messages, so that no work of the one falls into the time of the other
ROLES: tuple[Role, Role] = ("client", "server")


class Wire:
    """Two ends of a topology: their places, and the network namespaces that they are in (None: this one)."""

    def __init__(self, name: str, made: Made) -> None:
        self.name = name
        self.places: dict[Role, Place] = made.places
        self.spaces: dict[Role, str | None] = {role: parse_environment(made.peers[role]).netns for role in ROLES}
        self.peers = made.peers

    def socket(self, role: Role, kind: int = socket.SOCK_DGRAM, port: int = 0) -> socket.socket:
        """Return a socket bound at one end, to its device where it has one."""
        place = self.places[role]
        with netns.entered_namespace(self.spaces[role]):
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
        return netns.entered_namespace(self.spaces[role])

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

    Agents and tracer last as long as their topology. `bed`: the agents are to run there, and no topology is put up
    here: a guest that counts instructions jumps over idle time, so its trials are driven from outside.
    """

    def __init__(self, clock: Clock = "wall", bed: Testbed | None = None) -> None:
        self.clock = clock
        self._bed = bed
        self._stack = contextlib.ExitStack()
        self._name = ""
        self._wire: Wire | None = None
        self.spoiled = False  # set by an instrument that has taken the topology's devices away for a while
        self._agents: Pair | None = None
        self._tracer: RunTracer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def use(self, name: str) -> None:
        """Put a topology up, unless it is; the one before it goes."""
        if self._bed is not None or (name == self._name and not self.spoiled):
            return
        self.down()
        if name != "none":
            self._wire = Wire(name, self._stack.enter_context(_made(name)))
        self._name = name

    def over(self, places: Mapping[Role, Place]) -> None:
        """Take two verbs ports of this machine as the ends, until another topology is used."""
        if self._bed is not None:
            raise UsageError("a guest that counts instructions has its own ends", remedy='clock = "wall"')
        name = " to ".join(f"{places[role].verbs} port {places[role].port}" for role in ROLES)
        if name != self._name:
            self.down()
            self._wire = Wire(name, Made(dict(places), dict.fromkeys(ROLES, "local")))
            self._name = name

    def down(self) -> None:
        """Take down what is up, and with it the agents and the tracer."""
        self.spoiled = False
        self._stack.close()
        self._wire, self._name, self._agents, self._tracer = None, "", None, None

    @property
    def wire(self) -> Wire:
        """The wire of the claim's topology."""
        if self._wire is None:
            raise UsageError("this instrument needs a wire", remedy="another topology, or the clock wall")
        return self._wire

    @property
    def agents(self) -> Pair:
        """The two agents of trials, started when they are first asked for."""
        if self._agents is None:
            self._agents = self._stack.enter_context(Pair(self._bed or self.wire.bed()))
        return self._agents

    @property
    def tracer(self) -> RunTracer:
        """The tracer of single messages, attached when it is first asked for, for all that the wire carries."""
        if self._tracer is None:
            # an emulated guest that traces nothing starts without Arrow and the tracer
            from hwrx.timelines.traced import RunTracer

            # a message of any path that needs no more than the wire has
            place = self.wire.places["server"]
            needs = {"nothing"} | ({"verbs"} if place.verbs else set()) | ({"nic"} if place.pio else set())
            carried = [name for name, path in PATHS.items() if path.needs in needs]
            self._tracer = self._stack.enter_context(RunTracer(self.wire.bed(), carried))
            self._tracer.attach()
        return self._tracer


@contextlib.contextmanager
def _made(name: str) -> Iterator[Made]:
    if name == "lo":
        yield Made(dict.fromkeys(ROLES, Place()), dict.fromkeys(ROLES, "local"))
    else:
        with topology.at_hand(name) as made:
            yield made


class Reader:
    """Another process that waits for datagrams: blocking in recv, or in epoll and then recv. A context manager.

    A process of its own has page tables of its own, and nothing of ours wakes it but the kernel. It sends the time of
    each datagram (ns of CLOCK_MONOTONIC) down a pipe. Leaving ends it.
    """

    def __init__(self, sock: socket.socket, manner: str = "recv") -> None:
        self._times, ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _read(sock, manner, ours)
            finally:
                os._exit(1)
        os.close(ours)
        os.read(self._times, 8)  # it runs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._times)

    def came(self, seconds: float) -> int:
        """Wait for the next datagram: when it was read, or 0."""
        if not wait_to_read([self._times], seconds):
            return 0
        return int.from_bytes(os.read(self._times, 8), "little")


def _read(sock: socket.socket, manner: str, times: int) -> None:
    """The other process: it never returns."""
    poller = select.epoll() if manner == "epoll" else None
    if poller is not None:
        poller.register(sock, select.EPOLLIN)
    buffer = bytearray(65536)
    os.write(times, bytes(8))
    while True:
        if poller is not None:
            poller.poll()
        sock.recv_into(buffer)
        os.write(times, time.monotonic_ns().to_bytes(8, "little"))


def one_by_one(
    wire: Wire, messages: int, size: int, *, reader: socket.socket, sender: socket.socket, manner: str = "recv"
) -> tuple[list[Sent], int]:
    """Send messages to a reader that sleeps when each comes; return their times, and the reader's process id.

    TrialError where more than LOST do not come, or all of them take longer than messages of a wire that works would.
    """
    target, payload = reader.getsockname(), bytes(size)
    times: list[Sent] = []
    lost = 0
    deadline = time.monotonic() + 30.0 + 0.2 * messages
    with Reader(reader, manner) as process:
        for _ in range(messages):
            time.sleep(GAP)
            sent = time.monotonic_ns()
            sender.sendto(payload, target)
            times.append(Sent(sent, process.came(PATIENCE)))
            lost += not times[-1].received
            if lost > LOST:
                raise TrialError(f"{lost} of {len(times)} messages over {wire.name} did not come within {PATIENCE:g} s")
            if time.monotonic() > deadline:
                slowest = max(each.received - each.sent for each in times) / 1e9
                raise TrialError(
                    f"{len(times)} of {messages} messages over {wire.name} took too long, one of them {slowest:.1f} s"
                )
        return times, process.pid
