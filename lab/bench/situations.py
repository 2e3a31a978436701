"""Random situations for lookup.py: sockets on a port and a packet to it, made, predicted, sent and looked at.

The sockets are in a network namespace of their own, the sender in another at the end of a veth pair, or in the same.
After a datagram another is sent to a control port by the same way: what is not there when that one is, does not come.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import random
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from hwrx.host import netns
from hwrx.lookup import view, winner, words
from hwrx.lookup.table import Protocol, Tables

V4, V6 = socket.AF_INET, socket.AF_INET6
IP_MULTICAST_ALL, IPV6_MULTICAST_ALL, SO_INCOMING_CPU, SO_ATTACH_REUSEPORT_CBPF = 49, 29, 49, 51
IPV6_JOIN_GROUP = 20
CONTROL = 19999  # no situation's port
TIMEOUT = 5.0  # seconds against hanging
OURS = {4: ["10.66.0.1", "10.66.0.2"], 6: ["fd00:66::1", "fd00:66::2"]}
THEIRS = {4: ["10.66.0.9", "10.66.0.10"], 6: ["fd00:66::9", "fd00:66::10"]}
LINK = {"ours": "fe80::66:1", "theirs": "fe80::66:9"}
GROUPS = {4: ["239.66.0.1", "239.66.0.2"], 6: ["ff05::66:1", "ff02::66:2"]}
BROADCASTS = ["10.66.0.255", "255.255.255.255"]
WIRE, OTHER = "lk0", "lk2"  # the receiver's devices; packets come in by the first


@dataclass
class Member:
    """A socket of a situation."""

    sock: socket.socket
    words: str

    @property
    def inode(self) -> int:
        """Its inode, by which an entry of the tables is known to be this socket."""
        return os.fstat(self.sock.fileno()).st_ino


@dataclass
class Situation:
    """What was made: the sockets, the packet, and how it is sent."""

    number: int
    protocol: Protocol
    packet: winner.Packet
    place: str  # wire: by the veth pair; self: the receiver's namespace to itself
    mapped: bool = False  # the sender is an IPv6 socket that sends to ::ffff:…
    members: list[Member] = field(default_factory=list)
    kind: str = ""
    before: str = ""  # of TCP: what is left of a connection of the same four values
    caller: socket.socket | None = None  # its client
    served: Member | None = None  # and, while it lasts, its server

    def words(self) -> str:
        """What is sent and how, in one line."""
        packet = self.packet
        return (
            f"#{self.number} {self.kind} {self.before} {self.protocol} {packet.source} {packet.source_port} ->"
            f" {packet.destination} {packet.port} by {self.place}{' mapped' if self.mapped else ''}"
        )


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def made_spaces() -> Iterator[tuple[str, str]]:
    """Two namespaces with a wire between them, gone afterwards."""
    ours, theirs = f"hwrx-lk{os.getpid()}r", f"hwrx-lk{os.getpid()}s"
    made: list[str] = []
    try:
        for name in (ours, theirs):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        for near, far in ((WIRE, "lk1"), (OTHER, "lk3")):
            ip("-n", ours, "link", "add", near, "type", "veth", "peer", "name", far, "netns", theirs)
        plan = [
            (ours, WIRE, [*OURS[4], *OURS[6], LINK["ours"]]),
            (ours, OTHER, ["10.67.0.1", "fd00:67::1"]),
            (theirs, "lk1", [*THEIRS[4], *THEIRS[6], LINK["theirs"]]),
            (theirs, "lk3", ["10.67.0.9", "fd00:67::9"]),
        ]
        for space, device, addresses in plan:
            for address in addresses:
                v6 = ":" in address
                words = ["-n", space, "address", "add", f"{address}/{64 if v6 else 24}", "dev", device]
                ip(*words, *(["nodad"] if v6 else ["broadcast", "+"]))
            ip("-n", space, "link", "set", device, "up")
        ip("-n", theirs, "route", "add", "default", "dev", "lk1")  # for 255.255.255.255
        yield ours, theirs
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class Bench:
    """Makes situations, predicts, sends and looks. `ours`, `theirs`: the two namespaces."""

    def __init__(self, ours: str, theirs: str, seed: int) -> None:
        self.ours, self.theirs, self.seed = ours, theirs, seed
        self.cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, [self.cpu])  # what is sent over veth is received by the sender's CPU
        with netns.entered_namespace(ours):
            self.tables = Tables()
            self.device, self.other = socket.if_nametoindex(WIRE), socket.if_nametoindex(OTHER)
            self.control = {4: self._control(V4), 6: self._control(V6)}
        with netns.entered_namespace(theirs):
            self.far_device = socket.if_nametoindex("lk1")
        self._warm()

    def close(self) -> None:
        """Close what lasts."""
        self.tables.close()
        for sock in self.control.values():
            sock.close()

    @staticmethod
    def _control(family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == V6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == V6 else "0.0.0.0", CONTROL))
        sock.settimeout(TIMEOUT)
        return sock

    def _warm(self) -> None:
        """Let neighbours be known and the kernel's secrets be drawn: by a group of each protocol and family."""
        for version, family in ((4, V4), (6, V6)):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                with contextlib.ExitStack() as stack:
                    group = [stack.enter_context(self.socket(self.ours, family, kind)) for _ in range(2)]
                    port = 0
                    for sock in group:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                        sock.bind((OURS[version][0], port))
                        port = sock.getsockname()[1]
                        if kind == socket.SOCK_STREAM:
                            sock.listen(4)
                    caller = stack.enter_context(self.socket(self.theirs, family, kind))
                    caller.settimeout(TIMEOUT)
                    caller.bind((THEIRS[version][0], 0))
                    caller.connect((OURS[version][0], port))
                    if kind == socket.SOCK_DGRAM:
                        caller.send(b"warm")
                    select.select(group, [], [], TIMEOUT)

    @staticmethod
    def socket(space: str, family: int, kind: int) -> socket.socket:
        """Return a socket in a namespace."""
        with netns.entered_namespace(space):
            return socket.socket(family, kind)

    # --- making -----------------------------------------------------------------------------------------------------

    def make_situation(self, number: int, stack: contextlib.ExitStack) -> Situation:
        """Make one, from its number and the seed alone."""
        rng = random.Random(self.seed * 1_000_003 + number)
        version = rng.choice((4, 6))
        protocol: Protocol = "udp" if rng.random() < 0.7 else "tcp"
        kinds = ["unicast"] * 5 + ["self", "loopback"] + (["link"] if version == 6 else [])
        if protocol == "udp":
            kinds += ["multicast", "multicast"] + (["broadcast"] if version == 4 else [])
        kind = rng.choice(kinds)
        destination, source, device, place = self._ends(rng, kind, version)
        packet = winner.Packet(
            ipaddress.ip_address(destination), rng.randrange(20000, 60000), ipaddress.ip_address(source),
            rng.randrange(20000, 60000), device, self.cpu, place == "self",
        )  # fmt: skip
        made = Situation(number, protocol, packet, place, version == 4 and rng.random() < 0.2, [], kind)
        for _ in range(rng.choice((1, 1, 2, 3, 4, 5))):
            self._add(rng, made, stack)
        if rng.random() < 0.3:
            self._add_group(rng, made, stack)
        if protocol == "tcp" and rng.random() < 0.4:
            self._begin(made, rng.choice(("established", "time-wait", "request")), stack)
        return made

    def _begin(self, made: Situation, before: str, stack: contextlib.ExitStack) -> None:
        """Open a connection of the packet's own four values and leave it in a state; nothing if nobody takes it."""
        if before == "request":  # a listener that waits for data leaves the request where it is
            for each in made.members:
                each.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        caller, target = self._sender(made, socket.SOCK_STREAM, stack)
        caller.settimeout(TIMEOUT)
        try:
            caller.connect(target)
        except ConnectionRefusedError:
            return
        made.before, made.caller = before, caller
        if before == "request":
            return
        ready, _, _ = select.select([each.sock for each in made.members], [], [], TIMEOUT)
        served = stack.enter_context(ready[0].accept()[0])
        if before == "established":
            made.served = Member(served, "connection")
            served.setblocking(False)
            return
        served.close()  # who closes first keeps the rest
        caller.recv(1)
        caller.close()

    def _ends(self, rng: random.Random, kind: str, version: int) -> tuple[str, str, int, str]:
        """Destination, source, device, place."""
        theirs = rng.choice(THEIRS[version])
        if kind == "loopback":
            loop = "127.0.0.1" if version == 4 else "::1"
            return loop, loop, 1, "self"
        if kind == "self":
            return rng.choice(OURS[version]), rng.choice(OURS[version]), self.device, "self"
        if kind == "link":
            return LINK["ours"], LINK["theirs"], self.device, "wire"
        if kind == "multicast":
            return rng.choice(GROUPS[version]), LINK["theirs"] if version == 6 else theirs, self.device, "wire"
        if kind == "broadcast":
            return rng.choice(BROADCASTS), theirs, self.device, "wire"
        return rng.choice(OURS[version]), theirs, self.device, "wire"

    def _addresses(self, made: Situation, family: int) -> list[str]:
        """Addresses that a socket of a family may be bound to and have to do with the packet."""
        destination = str(made.packet.destination)
        if made.packet.destination.version == 6:
            return [destination, "::", OURS[6][1]] if family == V6 else ["0.0.0.0"]
        if family == V6:
            mapped = [] if made.kind in ("multicast", "broadcast") else [f"::ffff:{destination}"]
            return ["::", "::", *mapped, OURS[6][0]]
        return [destination, "0.0.0.0", OURS[4][1]]

    def _add(self, rng: random.Random, made: Situation, stack: contextlib.ExitStack, **fixed: object) -> None:
        family = rng.choice((V4, V6)) if made.packet.destination.version == 4 else rng.choice((V6, V6, V6, V4))
        family = fixed.get("family", family)
        address = fixed.get("address") or rng.choice(self._addresses(made, family))
        reuseport = fixed.get("reuseport", rng.random() < 0.5)
        device = fixed.get("device", rng.choice(("", "", "", WIRE, OTHER, "lo")))
        only6 = fixed.get("only6", family == V6 and rng.random() < 0.2)
        stream = made.protocol == "tcp"
        sock = stack.enter_context(self.socket(self.ours, family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM))
        words = [str(address)]
        with netns.entered_namespace(self.ours), contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuseport:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                words.append("reuseport")
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
                words.append(f"on {device}")
            if family == V6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only6))
                words += ["v6only"] if only6 else []
            if rng.random() < 0.1:
                cpu = rng.choice((self.cpu, self.cpu + 1))
                sock.setsockopt(socket.SOL_SOCKET, SO_INCOMING_CPU, cpu)
                words.append(f"cpu {cpu}")
            scope = self.device if str(address).startswith(("fe80", "ff02")) else 0
            sock.bind((address, made.packet.port, 0, scope) if family == V6 else (address, made.packet.port))
            if stream:
                sock.listen(8)
            else:
                words += self._dress(rng, made, sock, family)
            sock.setblocking(False)
            made.members.append(Member(sock, " ".join(words)))

    def _dress(self, rng: random.Random, made: Situation, sock: socket.socket, family: int) -> list[str]:
        """Join groups, connect: what a datagram's socket may be besides."""
        packet, words = made.packet, []
        if packet.destination.is_multicast:
            words += self._join(rng, packet, sock, family)
        if rng.random() < 0.3:
            stranger = rng.random() < 0.5
            far = str(packet.source)
            port = packet.source_port + stranger
            if family == V6 and packet.source.version == 4:
                far = f"::ffff:{far}"
            scope = self.device if far.startswith("fe80") else 0
            with contextlib.suppress(OSError):
                sock.connect((far, port, 0, scope) if family == V6 else (far, port))
                words.append(f"connected to {far} {port}")
        return words

    def _join(self, rng: random.Random, packet: winner.Packet, sock: socket.socket, family: int) -> list[str]:
        words = []
        other = ipaddress.ip_address(GROUPS[packet.destination.version][1])
        group = packet.destination if rng.random() < 0.7 else other
        if packet.destination.version == 6:
            if family != V6:
                return []
            if rng.random() < 0.6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_JOIN_GROUP, group.packed + struct.pack("I", self.device))
                words.append(f"in {group}")
            if rng.random() < 0.4:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
                words.append("no all")
            return words
        device = rng.choice((self.device, self.device, self.other))
        if rng.random() < 0.6:
            request = group.packed + bytes(4) + struct.pack("i", device)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            words.append(f"in {group} on {device}")
        if rng.random() < 0.4:
            sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
            words.append("no all")
        return words

    def _add_group(self, rng: random.Random, made: Situation, stack: contextlib.ExitStack) -> None:
        """Add a SO_REUSEPORT group of alike sockets, some of them connected, now and then with a program."""
        version = made.packet.destination.version
        family = V6 if version == 6 else rng.choice((V4, V4, V6))
        address = rng.choice(self._addresses(made, family)[:2])
        before = len(made.members)
        for _ in range(rng.randrange(2, 6)):
            self._add(rng, made, stack, family=family, address=address, reuseport=True, device="", only6=False)
        if len(made.members) > before and rng.random() < 0.1:
            with contextlib.suppress(OSError):  # a socket that has left the group when it was connected
                _attach_chooser(made.members[before].sock)
                made.members[before].words += " with a program"

    # --- predicting -------------------------------------------------------------------------------------------------

    def predict(self, made: Situation) -> tuple[winner.Outcome, set[int]]:
        """Return the prediction, and the inodes that it names; 0: nobody."""
        kind = made.kind if made.kind in ("multicast", "broadcast") else "local"
        with netns.entered_namespace(self.ours):
            seen = view.read_view(self.tables, made.protocol, made.packet, kind)
            outcome = winner.predict_outcome(seen, made.packet)
            named = winner.find_entries([seen.on_port], outcome.sockets)
            if made.before in ("time-wait", "request") and outcome.decided:
                (rest,) = named
                # the kernel has no socket to give it to: a SYN goes on to the listener, a request belongs to one
                assert words.state_of(rest) == {"time-wait": "TIME_WAIT", "request": "NEW_SYN_RECV"}[made.before]
                asked = frozenset([int(rest["listener"])])
                if made.before == "time-wait":
                    outcome = winner.find_listener(seen, made.packet)
                    asked = outcome.sockets
                named = winner.find_entries([seen.on_port], asked)
        return outcome, {int(each["inode"]) for each in named} | ({0} if 0 in outcome.sockets else set())

    # --- sending and looking ----------------------------------------------------------------------------------------

    def _sender(self, made: Situation, kind: int, stack: contextlib.ExitStack) -> tuple[socket.socket, tuple]:
        packet = made.packet
        family = V6 if packet.destination.version == 6 or made.mapped else V4
        sock = stack.enter_context(self.socket(self.theirs if made.place == "wire" else self.ours, family, kind))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        prefix = "::ffff:" if made.mapped else ""
        target: tuple = (prefix + str(packet.destination), packet.port)
        source: tuple = (prefix + str(packet.source), packet.source_port)
        scope = self.far_device if made.place == "wire" else self.device
        if family == V6 and not made.mapped:
            target += (0, scope if str(packet.destination).startswith(("fe80", "ff0")) else 0)
            source += (0, scope if str(packet.source).startswith("fe80") else 0)
        if packet.destination.is_multicast and family == V6 and not made.mapped:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, scope)
        if packet.destination.is_multicast and packet.destination.version == 4:
            near = struct.pack("4s4si", bytes(4), bytes(4), scope)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, near)
        if made.kind == "broadcast":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind(source)
        return sock, target

    def deliver(self, made: Situation) -> set[int]:
        """Send what the situation is about, and return the inodes of those that got it; {0}: nobody."""
        with contextlib.ExitStack() as stack:
            if made.protocol == "tcp":
                return self._connect(made, stack)
            sock, target = self._sender(made, socket.SOCK_DGRAM, stack)
            sock.sendto(b"situation %d" % made.number, target)
            self._wait_behind(made)
            return {each.inode for each in made.members if _took(each.sock)} or {0}

    def _wait_behind(self, made: Situation) -> None:
        """Send to the control port over the same way, and wait until it is there."""
        version = made.packet.destination.version
        near = self.control[version]
        family = V4 if version == 4 else V6
        at = str(made.packet.destination) if made.kind == "loopback" else OURS[version][0]
        with self.socket(self.theirs if made.place == "wire" else self.ours, family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"behind", (at, CONTROL))
            near.recv(64)

    def _connect(self, made: Situation, stack: contextlib.ExitStack) -> set[int]:
        if made.before in ("established", "request") and made.caller is not None:
            made.caller.send(b"more")
            if made.served is not None:
                came = select.select([made.served.sock], [], [], TIMEOUT)[0]
                return {made.served.inode} if came else {0}
        else:
            sock, target = self._sender(made, socket.SOCK_STREAM, stack)
            sock.settimeout(TIMEOUT)
            try:
                sock.connect(target)
            except ConnectionRefusedError:
                return {0}
        ready, _, _ = select.select([each.sock for each in made.members], [], [], TIMEOUT)
        for listener in ready:
            listener.accept()[0].close()
        return {each.inode for each in made.members if each.sock in ready} or {0}


def _took(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(64))
    except (BlockingIOError, ConnectionRefusedError):
        return False


def _attach_chooser(sock: socket.socket) -> None:
    """A classic program that chooses member 1: `return 1`."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 1))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("HL", 1, ctypes.addressof(code)))
