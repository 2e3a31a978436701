"""One packet and those whom it concerns: a sender, a reader that sleeps in recv, and a program that has the CPU.

Reader and program are processes of their own, so that each has page tables of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from hwrx.control.environment import parse_environment
from hwrx.control.messages import ENDS, Role
from hwrx.errors import MachineError, TrialError, UsageError
from hwrx.host import netns, tools
from hwrx.host.owners import Owner, owners_of
from hwrx.host.undo import Undo
from hwrx.host.waiting import wait_to_read
from hwrx.reception.records import Event, Recorder, driver_of
from hwrx.wires import topology
from hwrx.wires.made import Made
from hwrx.wires.router import GATEWAYS

TOKEN = b"hwrx reception: "  # what the packet's payload begins with
REHEARSALS = 3  # packets before the one that is followed: the ways are known, and nothing is done for the first time
ETH_P_ALL = 3  # linux/if_ether.h
LARGEST = 1472  # bytes of a datagram in one frame of 1,514
REWRITTEN = 9999  # the port of the router's own address that is sent on
PATIENCE = 20.0  # seconds for a packet on an emulated machine that is busy
SETTLE = 0.05  # seconds after the reader has it, in which the interrupt's end and the poll's are seen
# of the NE2000s, which the topology only names: 198.18.0.0/15 is set aside for benchmarks (RFC 2544)
PIO_ADDRESSES: dict[Role, str] = {"client": "198.18.80.1", "server": "198.18.80.2"}
Say = Callable[[str, str], None]


class Request(Struct, frozen=True):
    """What is to be followed: a datagram of `size` bytes over a topology.

    `pio`: over the NE2000s of topology `nic`, whose frames the CPU carries. `tap`: a packet socket listens, too.
    `quiet`: no program has the CPU when the packet comes. `rewrite`: the router of topology `router` gives the packet
    another destination (DNAT), so that the sender's is the router's own address.
    """

    topology: str = "nic"
    size: int = 64
    pio: bool = False
    tap: bool = False
    quiet: bool = False
    rewrite: bool = False


class End(Struct, frozen=True):
    """Where one end is: its address, its device, the namespace (None: this one), the device's driver."""

    address: str
    netdev: str
    space: str | None
    driver: str
    number: int
    middle: str | None = None  # the namespace that forwards, if there is one


class Found(Struct, frozen=True):
    """What was seen of one packet, and of whom it was for."""

    events: list[Event]
    sent: int  # ns of CLOCK_MONOTONIC, before the call
    received: int  # when the reader had it
    reader: int
    sender: int
    busy: list[int]
    owners: list[Owner]
    ends: dict[Role, End]
    refused: dict[str, str]
    tapped: bool


def follow_packet(request: Request, say: Say) -> Found:
    """Put the wire up, load the programs, send one packet and return all that was seen of it.

    Needs root. Raises as `follow_packets` does.
    """
    with contextlib.closing(follow_packets(request, 1, say)) as found:
        return next(found)


def follow_packets(request: Request, count: int, say: Say) -> Generator[Found, None, None]:
    """Follow packets one after the other; each is sent when what came of the one before is over.

    :raises UsageError: if the request does not go together
    :raises MachineError: if the kernel lets nothing be seen, or without root
    :raises TrialError: if a packet does not come
    """
    check_request(request)
    with _wire(request) as ends:
        numbers = tuple(end.number for end in ends.values() if end.driver == "e1000e")
        say("trace", "loading the programs that follow a packet (in an emulated guest that takes some seconds)")
        with Recorder(numbers) as recorder, contextlib.ExitStack() as stack:
            target = stack.enter_context(_socket(ends["server"]))
            sender = stack.enter_context(_socket(ends["client"]))
            if request.tap:
                with netns.entered_namespace(ends["server"].space):
                    listener = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
                    # as tcpdump does; one of IP alone would stand behind ip_rcv
                    listener.bind((ends["server"].netdev, ETH_P_ALL))
            reader = stack.enter_context(Process("hwrx-reader", lambda out: _read(target, out)))
            address = target.getsockname()
            if request.rewrite:
                address = _rewrite(ends, address)
            target.close()  # the reader has it: one owner, one descriptor
            payload = TOKEN.ljust(request.size, b".")[: request.size]
            for _ in range(REHEARSALS):
                sender.sendto(payload, address)
                reader.wait("a packet sent beforehand")
            busy = [] if request.quiet else [stack.enter_context(_busy(cpu)) for cpu in os.sched_getaffinity(0)]
            for number in range(count):
                say("trace", f"sending packet {number + 1} of {count}" if count > 1 else "sending the packet")
                with recorder.armed() as events:
                    sent = time.monotonic_ns()
                    sender.sendto(payload, address)
                    received = reader.wait("the packet that was followed")
                    time.sleep(SETTLE)
                inodes = {event.values[2] for event in events if event.kind == "enqueued"}
                owners = [each for held in owners_of(inodes).values() for each in held if each.pid == reader.pid]
                yield Found(
                    events, sent, received, reader.pid, os.getpid(), [each.pid for each in busy], owners, ends,
                    recorder.refused, request.tap,
                )  # fmt: skip


@contextlib.contextmanager
def _wire(request: Request) -> Iterator[dict[Role, End]]:
    tools.need_root("following a packet")
    with topology.at_hand(request.topology) as made:
        if not request.pio:
            yield {role: _end(made, role) for role in ENDS}
            return
        with _pio_up(made):
            yield {role: _end(made, role, PIO_ADDRESSES[role], made.places[role].pio or "") for role in ENDS}


def _end(made: Made, role: Role, address: str | None = None, netdev: str | None = None) -> End:
    place = made.places[role]
    device = netdev or place.netdev or "lo"
    space = parse_environment(made.peers[role]).netns
    with netns.entered_namespace(space):
        number = socket.if_nametoindex(device)
    return End(address or place.address, device, space, "" if space else driver_of(device), number, made.middle)


@contextlib.contextmanager
def _pio_up(made: Made) -> Iterator[None]:
    """Give the NE2000s addresses, and each other's hardware address; taken back afterwards."""
    devices: Mapping[Role, str | None] = {role: made.places[role].pio for role in ENDS}
    if not all(devices.values()):
        raise MachineError("this topology has no NIC without DMA", remedy="use the topology nic")
    with Undo("addresses of the NE2000s") as undo:
        lines = []
        for role, other in (ENDS, ENDS[::-1]):
            device = str(devices[role])
            mac = (topology.NETDEVS / str(devices[other]) / "address").read_text(encoding="utf-8").strip()
            undo.plan("ip", "address", "flush", "dev", device)
            undo.plan("ip", "link", "set", device, "down")
            lines += [
                f"address replace {PIO_ADDRESSES[role]}/24 dev {device}",
                f"link set {device} up",
                f"neighbour replace {PIO_ADDRESSES[other]} lladdr {mac} dev {device} nud permanent",
            ]
        tools.run_tool("ip", "-batch", "-", given="\n".join(lines))
        yield


def _rewrite(ends: Mapping[Role, End], target: tuple[str, int]) -> tuple[str, int]:
    """Have the router send what comes for its own address to the reader; return the address to send to.

    FORWARD has a rule, too, that lets the packet pass. The table goes with the router's namespace.
    """
    router = (GATEWAYS["client"], REWRITTEN)
    rules = (
        "table ip hwrx_rewrite {\nchain c {\ntype nat hook prerouting priority dstnat\n"
        f"ip daddr {router[0]} udp dport {router[1]} dnat to {target[0]}:{target[1]}\n}}\n"
        f"chain d {{\ntype filter hook forward priority 0\nudp dport {target[1]} accept\n}}\n}}\n"
    )
    with netns.entered_namespace(ends["server"].middle):
        tools.run_tool("nft", "-f", "-", given=rules)
    return router


def check_request(request: Request) -> None:
    """Raise UsageError if what is asked for does not go together."""
    if not len(TOKEN) <= request.size <= LARGEST:
        raise UsageError(
            f"the packet that is followed has {len(TOKEN)} to {LARGEST:,} bytes of payload, not {request.size:,}",
            remedy="it is known by its first bytes, and must not be cut into fragments",
        )
    if request.pio and request.topology != "nic":
        raise UsageError(f"the topology {request.topology} has no NIC without DMA", remedy="--topology nic")
    if request.rewrite and request.topology != "router":
        raise UsageError(f"nothing rewrites packets in the topology {request.topology}", remedy="--topology router")


def _socket(end: End) -> socket.socket:
    with netns.entered_namespace(end.space):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, end.netdev.encode())
        made.bind((end.address, 0))
    except BaseException:
        made.close()
        raise
    return made


class Process:
    """A fork that does one thing until it is killed, and may tell times (ns) down a pipe. A context manager."""

    def __init__(self, name: str, work: Callable[[int], None]) -> None:
        self._times, out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                Path("/proc/self/comm").write_text(name, encoding="utf-8")
                os.write(out, bytes(8))
                work(out)
            finally:
                os._exit(1)
        os.close(out)
        os.read(self._times, 8)  # it runs

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._times)

    def wait(self, what: str) -> int:
        """Wait for the next time that it tells; TrialError if none comes."""
        told = b""
        if wait_to_read([self._times], PATIENCE):
            told = os.read(self._times, 8)
        if len(told) < 8:
            raise TrialError(f"{what} did not come to its reader within {PATIENCE:g} s")
        return int.from_bytes(told, "little")


def _read(sock: socket.socket, out: int) -> None:
    """The reader: it never returns."""
    buffer = bytearray(65536)
    while True:
        sock.recv_into(buffer)
        os.write(out, time.monotonic_ns().to_bytes(8, "little"))


def _busy(cpu: int) -> Process:
    """A program that has a CPU to itself, as a user's does while others wait for packets."""

    def work(out: int) -> None:
        os.sched_setaffinity(0, {cpu})
        while True:
            pass

    return Process("hwrx-busy", work)


def names_of(found: Found) -> Mapping[int, str]:
    """Return what the processes of the scene are called, by number."""
    named = {found.reader: "the reader", found.sender: "the sender", 0: "its idle task"}
    return named | dict.fromkeys(found.busy, "the busy program")
