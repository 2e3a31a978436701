"""What a lookup found, in words: sockets, who gets a packet and why, and what early demux does to it."""

from __future__ import annotations

from collections.abc import Iterator

from hwrx.lookup import winner
from hwrx.lookup.hashes import Address, reciprocal_scale
from hwrx.lookup.table import TCP_ESTABLISHED, Entry, far_of, local_of
from hwrx.lookup.view import demux_switches, device_name
from hwrx.lookup.winner import Outcome, Packet, View

# enum in include/net/tcp_states.h
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
          "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV")  # fmt: skip
TIME_WAIT, NEW_SYN_RECV = STATES.index("TIME_WAIT"), STATES.index("NEW_SYN_RECV")
NOBODY = "nobody: the packet is dropped (NO_SOCKET), and its sender told so by ICMP or a reset"


def state_of(entry: Entry) -> str:
    """Return the name of a socket's state."""
    state = int(entry["state"])
    return STATES[state] if state < len(STATES) else str(state)


def ends_of(entry: Entry) -> tuple[str, str]:
    """Return where a socket is bound and, if it is connected, to what."""
    far = far_of(entry)
    connected = int(entry["peer_port"]) or int(far)
    return join_port(local_of(entry), int(entry["port"])), join_port(far, int(entry["peer_port"])) if connected else ""


def join_port(address: Address, port: int) -> str:
    """Return `1.2.3.4:5` or `[::1]:5`."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def brief(entry: Entry) -> str:
    """Return one line about a socket."""
    local, far = ends_of(entry)
    to = f" connected to {far}" if far else ""
    return f"{local}{to} {state_of(entry)}, inode {entry['inode']}, net {entry['namespace']}"


def notes_on(kind: str, packet: Packet) -> Iterator[str]:
    """What the destination's kind means for whether the packet comes to the sockets at all."""
    if kind not in ("local", "multicast", "broadcast"):
        yield (
            f"{packet.destination} is no address of this network namespace ({kind}): a packet to it is forwarded or"
            " dropped before any socket is looked for"
        )
    if packet.source is not None and packet.source.is_multicast:
        yield "no packet has a multicast group as its source: the kernel drops it as a martian"


def tell_receivers(view: View, packet: Packet, outcome: Outcome) -> str:
    """Say who gets the packet, and why."""
    there = winner.find_entries([view.on_port], outcome.sockets)
    if outcome.every:
        return _tell_all(view, packet, there)
    if not outcome.decided:
        reasons = "; ".join(outcome.open)
        names = "; ".join([f"{ends_of(each)[0]}, inode {each['inode']}" for each in there])
        nobody = ", or nobody" if 0 in outcome.sockets else ""
        return f"one of {len(there)}{nobody} ({names}): {reasons}"
    if not there:
        return NOBODY
    (entry,) = there
    if view.protocol == "tcp" and outcome.score is None:
        return _tell_connection(view, packet, entry)
    local, far = ends_of(entry)
    if outcome.score is None:
        return f"{local} connected to {far}, inode {entry['inode']}: both addresses and ports are its own (first look)"
    if view.every:
        member = _tell_member(view, outcome, entry)
        return f"{local}, inode {entry['inode']}: of the group whose one socket listens to it{member}"
    bound = "bound to this very address" if int(outcome.looked_for or 0) else "bound to all addresses (second look)"
    return f"{local}, inode {entry['inode']}: {bound}, score {outcome.score}{_tell_member(view, outcome, entry)}"


def _tell_all(view: View, packet: Packet, there: list[Entry]) -> str:
    if view.protocol == "tcp":
        return "nobody: TCP takes no packets to multicast or broadcast addresses"
    if not view.admitted:
        name = device_name(packet.device)
        return f"nobody: {name} is in no group {packet.destination}, so that IP drops the packet"
    if not there:
        return NOBODY.partition(",")[0]
    return f"all {len(there)} that listen to it: " + "; ".join(brief(each) for each in there)


def _tell_connection(view: View, packet: Packet, entry: Entry) -> str:
    if entry["state"] == TIME_WAIT:
        listener = winner.find_entries([view.on_port], winner.find_listener(view, packet).sockets)
        anew = brief(listener[0]) if listener else "nobody"
        return (
            f"what is left of a connection that is over (TIME_WAIT): the kernel answers by itself; a SYN that may open"
            f" it anew goes to the listener: {anew}"
        )
    if entry["state"] == NEW_SYN_RECV:
        listener = winner.find_entries([view.on_port], frozenset([int(entry["listener"])]))
        came_to = brief(listener[0]) if listener else "a listener that is gone"
        return f"a request for a connection (NEW_SYN_RECV), which its listener gets when it is complete: {came_to}"
    return f"{brief(entry)}: the connection itself, found by both addresses and ports (first look)"


def _tell_member(view: View, outcome: Outcome, entry: Entry) -> str:
    """Say which member of a SO_REUSEPORT group a socket is, and by what arithmetic."""
    if not entry["reuseport"] or not entry["group"] or entry["state"] == TCP_ESTABLISHED or not outcome.looked_for:
        return ""
    members = [int(each["sk"]) for each in view.group(entry)]
    place = members.index(int(entry["sk"])) if int(entry["sk"]) in members else None
    if place is None or len(members) < 2:
        return ""
    hashed = view.hashed(outcome.looked_for)
    told = ""
    if hashed is not None:
        told = f" (0x{hashed:08x} * {len(members)} >> 32 = {reciprocal_scale(hashed, len(members))})"
    return f"; SO_REUSEPORT: member {place}, inode {entry['inode']}, of {len(members)}{told}"


def tell_early_demux(view: View, packet: Packet) -> str:
    """Say whether early demux finds the socket of this packet before it is routed."""
    off = demux_switches(view.protocol)
    if off:
        return f"off ({', '.join(off)} = 0)"
    if packet.looped or packet.device == winner.LOOPBACK:
        return "on, without effect here: what this machine sends to itself has its route already"
    if view.every:
        return "on: a multicast packet's socket is found before routing if it is the only one that listens"
    if packet.source is None:
        return "on: it finds connected sockets alone; name the sender (--from ADDRESS:PORT)"
    if view.protocol == "tcp":
        whole = [each for each in view.on_port if winner.match_connected(each, packet, view.namespace)]
        found = [each for each in whole if each["state"] == TCP_ESTABLISHED]
    else:
        found = [each for each in view.chain(packet.destination)[:1]
                 if winner.match_connected(each, packet, view.namespace)]  # fmt: skip
    if found:
        return f"on: {brief(found[0])} is connected to this very sender, so it is found before routing"
    return "on, without effect on this packet: no connected socket of this sender is where it looks"
