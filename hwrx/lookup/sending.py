"""Sends the packet that a lookup was asked about: a datagram, or the beginning of a connection, from this namespace.

Nothing is sent under an address that is not this machine's, but in a network namespace of its own; what is sent to a
group has a time to live of 0, so that it stays on the machine. A connection from such an address is asked for by a SYN,
and taken back by a RST: nobody there could answer.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from hwrx.lookup import view
from hwrx.lookup.hashes import Address
from hwrx.lookup.table import Protocol
from hwrx.lookup.winner import LOOPBACK, Packet

PAYLOAD = b"hwrx lookup --prove\n"
PATIENCE = 5.0  # seconds in which a connection is opened or refused
IP_TRANSPARENT, IPV6_TRANSPARENT, IPV6_CHECKSUM = 19, 75, 7  # linux/in.h, linux/in6.h; not in Python's module
CHECKSUM_AT = {"udp": 6, "tcp": 16}  # bytes from the header's start, RFC 768, RFC 9293
SYN, RST = 0x02, 0x04  # RFC 9293, 3.1
PROTOCOLS: dict[Protocol, int] = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class CannotSendError(Exception):
    """Why a packet is not sent, in words; the lookup goes without a proof."""


class Sender(Struct):
    """A socket that is ready to send, and the packet as it will be looked up."""

    sock: socket.socket
    packet: Packet
    target: tuple[str | int, ...]
    raw: bool = False  # it sends whole UDP datagrams or TCP segments, header included

    def send(self, protocol: Protocol) -> str:
        """Send it, and say what was sent. CannotSendError if the kernel does not."""
        packet = self.packet
        try:
            if self.raw and protocol == "tcp":
                for sequence, flag in ((0, SYN), (1, RST)):
                    self.sock.sendto(_segment(packet, sequence, flag), self.target)
                return "a connection was asked for by a SYN, and taken back by a RST"
            if protocol == "tcp":
                self.sock.settimeout(PATIENCE)
                try:
                    self.sock.connect(self.target)
                except ConnectionRefusedError:
                    return "a connection was asked for, and refused"
                return "a connection was opened"
            header = b""
            if self.raw:
                header = struct.pack("!HHHH", packet.source_port, packet.port, 8 + len(PAYLOAD), 0)
            self.sock.sendto(header + PAYLOAD, self.target)
        except OSError as error:
            raise CannotSendError(f"the kernel does not send it: {error.strerror or error}") from None
        return f"a datagram of {len(PAYLOAD)} bytes was sent"


def namespace_number() -> int:
    """Return the number of the network namespace that this thread is in."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def complete_packet(packet: Packet, kind: str, *, apart: bool) -> Packet:
    """Return the packet with all that decides on it when this machine sends it to itself.

    :param apart: whether this is a network namespace of its own, where nothing of the machine's network is disturbed
    :raises CannotSendError: if that would be another packet than the one that was asked about
    """
    if kind not in ("local", "multicast", "broadcast"):
        raise CannotSendError(f"{packet.destination} is no address of this network namespace ({kind})")
    if kind == "broadcast" and not apart:
        raise CannotSendError("a broadcast would leave this machine; ask in a network namespace of its own (--netns)")
    if kind != "local" and not packet.device:
        raise CannotSendError(f"{packet.destination} is sent by a device: say which (--device)")
    device = packet.device
    if kind == "local":
        device = view.device_of(packet.destination) or LOOPBACK
        if packet.device and packet.device != device:
            raise CannotSendError(
                f"it would come in by {view.device_name(packet.device)}, and what this machine sends to itself is"
                f" looked up as if by {view.device_name(device)}"
            )
    source = packet.source or (packet.destination if kind == "local" else _address_on(device, packet.destination))
    if not view.device_of(source) and not apart:
        raise CannotSendError(
            f"{source} is no address of this machine, and nothing is sent under another's name but in a network"
            " namespace of its own (--netns)"
        )
    cpu = min(os.sched_getaffinity(0))
    return msgspec.structs.replace(packet, source=source, device=device, cpu=cpu, looped=True)


def _address_on(device: int, like: Address) -> Address:
    found = view.address_on(device, like.version)
    if found is None:
        raise CannotSendError(f"{view.device_name(device)} has no address to send from: name one (--from ADDRESS:PORT)")
    return found


@contextlib.contextmanager
def ready_sender(protocol: Protocol, packet: Packet, kind: str) -> Iterator[Sender]:
    """Make a socket that will send exactly this packet, and keep this thread on one CPU meanwhile.

    A source port that another socket has, or a source that is not ours, takes a raw socket. With that, TCP can do under
    an address that is not ours alone: the answer to it finds nobody.

    :param packet: as `complete_packet` returns it
    :raises CannotSendError: if there is no way
    """
    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        os.sched_setaffinity(0, [packet.cpu or 0])
        stack.callback(os.sched_setaffinity, 0, cpus)
        assert packet.source is not None
        foreign = not view.device_of(packet.source)
        try:
            if foreign:
                raise OSError("a source of another machine")
            sock = stack.enter_context(_bound(protocol, packet))
        except OSError as error:
            if protocol == "tcp" and not foreign:
                raise CannotSendError(
                    f"no connection can be opened from {packet.source} port {packet.source_port}:"
                    f" {error.strerror or error}"
                ) from None
            sock = stack.enter_context(_raw(protocol, packet, foreign=foreign))
            yield Sender(sock, packet, _place(packet.destination, 0, packet.device), True)
            return
        whole = msgspec.structs.replace(packet, source_port=sock.getsockname()[1])
        _dress(sock, packet, kind)
        yield Sender(sock, whole, _place(packet.destination, packet.port, packet.device))


def _place(address: Address, port: int, device: int) -> tuple[str | int, ...]:
    if address.version == 4:
        return str(address), port
    scoped = address.is_link_local or address.is_multicast
    return str(address), port, 0, device if scoped else 0


def _bound(protocol: Protocol, packet: Packet) -> socket.socket:
    assert packet.source is not None
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(FAMILIES[packet.source.version], kind)
    try:
        sock.bind(_place(packet.source, packet.source_port, packet.device))
    except OSError:
        sock.close()
        raise
    return sock


def _segment(packet: Packet, sequence: int, flag: int) -> bytes:
    """A TCP header without options or data. Of IPv6 the kernel puts the checksum in."""
    assert packet.source is not None
    offset, window, length = 5 << 4, 65535, 20
    ends = (packet.source_port, packet.port)
    header = struct.pack("!HHIIBBHHH", *ends, sequence, 0, offset, flag, window, 0, 0)
    if packet.source.version == 6:
        return header
    pseudo = packet.source.packed + packet.destination.packed + struct.pack("!HH", socket.IPPROTO_TCP, length)
    total = sum(word for (word,) in struct.iter_unpack("!H", pseudo + header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = CHECKSUM_AT["tcp"]
    return header[:at] + struct.pack("!H", total ^ 0xFFFF) + header[at + 2 :]


def _raw(protocol: Protocol, packet: Packet, *, foreign: bool) -> socket.socket:
    """A socket that sends with whatever source port and, `foreign`, address; CannotSendError if it is not to be had."""
    assert packet.source is not None
    v6 = packet.source.version == 6
    if not packet.source_port:
        raise CannotSendError("a packet under another's address needs a source port: --from ADDRESS:PORT")
    try:
        sock = socket.socket(FAMILIES[packet.source.version], socket.SOCK_RAW, PROTOCOLS[protocol])
    except OSError as error:
        raise CannotSendError(
            f"{packet.source} port {packet.source_port} takes a raw socket, which is not allowed: {error.strerror}"
        ) from None
    try:
        if foreign:
            sock.setsockopt(
                *((socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if v6 else (socket.IPPROTO_IP, IP_TRANSPARENT)), 1
            )
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, CHECKSUM_AT[protocol])
        sock.bind(_place(packet.source, 0, packet.device))
        _dress(sock, packet, "multicast" if packet.destination.is_multicast else "broadcast")
    except OSError as error:
        sock.close()
        raise CannotSendError(f"no raw socket can send from {packet.source}: {error.strerror}") from None
    return sock


def _dress(sock: socket.socket, packet: Packet, kind: str) -> None:
    """What sending to all takes."""
    if kind == "broadcast":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if not packet.destination.is_multicast:
        return
    if packet.destination.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, packet.device)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 0)
        return
    near = struct.pack("4s4si", bytes(4), bytes(4), packet.device)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, near)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
