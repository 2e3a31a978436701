"""Making each place drop messages, one place after the other, on a wire between two namespaces.

One thread sends a burst and then reads whatever has come, so that nothing is lost but what is provoked. Each message
carries its number; what comes is checked byte for byte and ticked off.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator

from hwrx.control.environment import parse_environment
from hwrx.control.messages import ENDS
from hwrx.drops import nics, roce
from hwrx.drops.books import XDP_GENERIC, Balance, Books, Told, tell_nobody
from hwrx.drops.scene import HERE, PORT, SIZE, Names, Scene
from hwrx.errors import MachineError, UsageError
from hwrx.host import netns, tools
from hwrx.host.undo import Undo
from hwrx.wires import topology

SMALL_BUFFER = 2304  # the least that SO_RCVBUF gives
STRANGER = "203.0.113.5"  # TEST-NET-3: no route leads back to it
ABSENT = "198.18.77.99"  # in the wire's network, and nobody's
HOARD = 50_000  # unread messages that a socket is closed with: all UDP sockets together may have more (udp_mem)
SO_ATTACH_FILTER = 26
ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/socket.h, linux/if_packet.h


# --- one after the other ----------------------------------------------------------------------------------------------

Provoke = Callable[[Scene, contextlib.ExitStack, Books], None]


def _server(scene: Scene, *argv: str, given: str = "") -> str:
    return tools.run_tool("ip", "netns", "exec", scene.names["server"], *argv, given=given)


def _nothing(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    """Nothing is provoked: all must come."""


def _wire(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    tools.run_tool("tc", "-n", scene.names["client"], "qdisc", "add", "dev", topology.LINKS["client"], "root",
               "netem", "loss", "10%", "limit", "10000")  # fmt: skip
    stack.callback(tools.run_tool, "tc", "-n", scene.names["client"], "qdisc", "delete", "dev",
                   topology.LINKS["client"], "root")  # fmt: skip


def _xdp(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    with netns.entered_namespace(scene.names["server"]):
        try:
            books.reader.attach_xdp("drop_messages", socket.if_nametoindex(topology.LINKS["server"]), XDP_GENERIC)
        except OSError as error:
            raise MachineError(f"this kernel takes no generic XDP program: {error.strerror}") from None
    stack.callback(tools.run_tool, "ip", "-n", scene.names["server"], "link", "set", topology.LINKS["server"],
                   "xdpgeneric", "off")  # fmt: skip


def _backlog(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise MachineError("a backlog fills up where another CPU empties it, and there is one CPU only")
    undo = stack.enter_context(Undo("a short backlog"))
    undo.sysctl("net/core/netdev_max_backlog", "1")
    os.sched_setaffinity(0, {cpus[0]})
    stack.callback(os.sched_setaffinity, 0, set(cpus))
    file = f"/sys/class/net/{topology.LINKS['server']}/queues/rx-0/rps_cpus"
    _server(scene, "sh", "-c", f"echo {1 << cpus[1]:x} > {file}")
    stack.callback(_server, scene, "sh", "-c", f"echo 0 > {file}")
    scene.pause = 0.001


def _tc_ingress(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    tc = ("tc", "-n", scene.names["server"])
    tools.run_tool(*tc, "qdisc", "add", "dev", topology.LINKS["server"], "clsact")
    stack.callback(tools.run_tool, *tc, "qdisc", "delete", "dev", topology.LINKS["server"], "clsact")
    tools.run_tool(*tc, "filter", "add", "dev", topology.LINKS["server"], "ingress", "matchall", "action", "drop")


def _netfilter(hook: str) -> Provoke:
    def provoke(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
        rules = f"table ip hwrx {{\nchain c {{\ntype filter hook {hook} priority 0\nudp dport {PORT} drop\n}}\n}}\n"
        _server(scene, "nft", "-f", "-", given=rules)
        stack.callback(_server, scene, "nft", "delete", "table", "ip", "hwrx")

    return provoke


def _rp_filter(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    _server(scene, "sysctl", "-qw", f"net.ipv4.conf.{topology.LINKS['server']}.rp_filter=1")
    stack.callback(_server, scene, "sysctl", "-qw", f"net.ipv4.conf.{topology.LINKS['server']}.rp_filter=0")
    ip = ("ip", "-n", scene.names["client"], "address")
    tools.run_tool(*ip, "add", f"{STRANGER}/32", "dev", "lo")
    stack.callback(tools.run_tool, *ip, "delete", f"{STRANGER}/32", "dev", "lo")
    scene.sender.bind((STRANGER, 0))


def _not_local(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    ip = ("ip", "-n", scene.names["client"], "neighbour")
    words = (ABSENT, "dev", topology.LINKS["client"])
    tools.run_tool(*ip, "replace", *words, "lladdr", topology.HARDWARE["server"], "nud", "permanent")
    stack.callback(tools.run_tool, *ip, "delete", *words)
    scene.destination = (ABSENT, PORT)


def _no_socket(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    scene.reader.close()
    scene.reads = False


def _checksum(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    from cython_ext.frames.packet import udp_frame, udp_template

    template = udp_template(
        topology.HARDWARE["client"], topology.HARDWARE["server"], topology.ADDRESSES["client"],
        topology.ADDRESSES["server"], PORT + 1, PORT,
    )  # fmt: skip

    def broken(message: bytes) -> bytes:
        frame = bytearray(udp_frame(template, message))
        frame[41] ^= 0x55  # of the UDP checksum
        if not any(frame[40:42]):  # that would say that there is none
            frame[41] = 0xAA
        return bytes(frame)

    scene.raw()
    scene.make = broken


def _filter(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    # one classic instruction: return 0, "take no byte of it"
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    scene.reader.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _receive_buffer(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    scene.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    scene.reads = False


def _memory(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    undo = stack.enter_context(Undo("little memory for UDP"))
    undo.sysctl("net/ipv4/udp_mem", "0\t0\t0")
    scene.roomy()  # the buffer must not be full first
    scene.reads = False


def _closed(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    scene.reads = scene.reads_at_last = False
    scene.many = HOARD
    scene.roomy()


def _truncated(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    scene.buffer = SIZE - 8


def _af_packet(scene: Scene, stack: contextlib.ExitStack, books: Books) -> None:
    with netns.entered_namespace(scene.names["server"]):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    stack.callback(tap.close)
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    scene.tap = tap


# name of the place -> what provokes it; "nothing" first
PROVOKED: dict[str, Provoke] = {
    "nothing": _nothing,
    "wire": _wire,
    "xdp": _xdp,
    "backlog": _backlog,
    "af-packet": _af_packet,
    "tc-ingress": _tc_ingress,
    "pre-routing": _netfilter("prerouting"),
    "rp-filter": _rp_filter,
    "not-local": _not_local,
    "local-in": _netfilter("input"),
    "no-socket": _no_socket,
    "checksum": _checksum,
    "filter": _filter,
    "receive-buffer": _receive_buffer,
    "memory": _memory,
    "closed": _closed,
    "truncated": _truncated,
}


PLACES = (*PROVOKED, *nics.OVERRUN, *roce.TURNED_AWAY, roce.UNASKED, *roce.GIVEN_UP)


@contextlib.contextmanager
def drop_wire() -> Iterator[Names]:
    """The two namespaces for any number of experiments."""
    with topology.netns() as made:
        names = {end: parse_environment(made.peers[end]).name for end in ENDS}
        yield names


def provoke_drops(place: str, names: Names, messages: int, trial: int, told: Told = tell_nobody) -> Balance:
    """Provoke one place and return the balance. MachineError where this kernel cannot.

    `told` hears now and then how many messages have been sent.
    """
    if place not in PLACES:
        raise UsageError(f"'{place}' cannot be provoked", remedy=f"choose of: {', '.join(PLACES)}")
    with contextlib.ExitStack() as stack:
        if place in PROVOKED:
            return _on(names, PROVOKED[place], place, messages, trial, told)
        if place in nics.OVERRUN:
            stack.enter_context(nics.nic_wire())
            books = stack.enter_context(Books(trial))
            return nics.ring_full(place, books, messages, trial, told)
        stack.enter_context(topology.at_hand("pair"))
        if place in roce.TURNED_AWAY:
            return _on(HERE, roce.TURNED_AWAY[place], place, messages, trial, told)
        books = stack.enter_context(Books(trial))
        if place == roce.UNASKED:
            return roce.send_unasked(books, messages, trial)
        return roce.given_up(place, books, messages, trial, told)


def _on(names: Names, make: Provoke, place: str, messages: int, trial: int, told: Told) -> Balance:
    with (
        Books(trial, sorted({name or None for name in names.values()}, key=str)) as books,
        Scene(names, trial) as scene,
        contextlib.ExitStack() as stack,
    ):
        make(scene, stack, books)
        tally = scene.run(messages, told=told)
        if place == "closed":
            scene.reader.close()
            books.settle()
        unseen = {"truncated": tally.truncated}
        if scene.tap is not None:
            # of the packet socket's two counts the second is what it had no room for
            unseen["af-packet"] = struct.unpack("II", scene.tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        found = books.close(tally.sent, tally.delivered, unseen)
        for name in ("refused", "corrupt", "duplicated"):
            if count := getattr(tally, name):
                found.notes.append(f"{name}: {count:,}")
        return found
