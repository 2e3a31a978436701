"""Which of several sockets gets a packet: the kernel's own rules, in the order of its looking, over entries of tables.

Sources: net/ipv4/udp.c and net/ipv6/udp.c (compute_score, udp4_lib_lookup2, udp4_lib_lookup4, __udp4_lib_lookup,
__udp4_lib_demux_lookup, __udp_is_mcast_sock and IPv6's twins); net/ipv4/inet_hashtables.c (inet_match,
inet_lhash2_lookup, __inet_lookup_listener); net/core/sock_reuseport.c (reuseport_select_sock). A socket is known by its
entry's `sk`; 0 stands for none. Nothing here asks the kernel, `view` does.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np
from msgspec import Struct

from hwrx.lookup.hashes import Address, reciprocal_scale, words_of
from hwrx.lookup.table import AF_INET6, TCP_ESTABLISHED, TCP_LISTEN, Entries, Entry, Protocol

AF_INET = 2
NO_CPU = -2  # a CPU that no socket has stated; -1 is what a socket has that stated none
LOOPBACK = 1  # the number of `lo` in every network namespace


class Packet(Struct, frozen=True):
    """What the lookup is given.

    `source` None: a sender that no socket is connected to. `device` 0: not known; `cpu` None: not known. `looped`: it
    was sent by this machine to itself, so that it has its route already and early demux is passed over; None: not
    known.
    """

    destination: Address
    port: int
    source: Address | None = None
    source_port: int = 0
    device: int = 0
    cpu: int | None = None
    looped: bool | None = None


class View(Struct, frozen=True):
    """What the kernel has at one moment that decides on one packet.

    `on_port`: the namespace's sockets with the packet's port. `chain`: the sockets on the slot of an address and the
    port, in the kernel's order. `group`: the members of a socket's SO_REUSEPORT group. `hashed`: the hash of the four
    values, with the address that was looked for as the near one; None where a secret is not known. `redirected`: a
    sk_lookup program may choose another socket. `early`: early demux is on. `every`: the packet is for all that listen
    to it (multicast, broadcast), and `admitted` says whether the device takes it. `rechosen`: if early demux finds that
    one socket alone listens, the group of that socket chooses its member by the hash (inet_steal_sock).
    """

    protocol: Protocol
    namespace: int
    on_port: Entries
    chain: Callable[[Address], Entries]
    group: Callable[[Entry], Entries]
    hashed: Callable[[Address], int | None]
    redirected: bool = False
    early: bool = True
    every: bool = False
    admitted: bool = True
    rechosen: bool = False


class Outcome(Struct, frozen=True):
    """Who gets a packet. `sockets`: one that gets it or, unless `every`, several of which one does. `open`: why."""

    sockets: frozenset[int]
    every: bool = False
    open: tuple[str, ...] = ()
    score: int | None = None
    looked_for: Address | None = None  # the address of the pass that found it

    @property
    def decided(self) -> bool:
        """Whether it is known who gets the packet."""
        return self.every or len(self.sockets) == 1


NOBODY = Outcome(frozenset([0]))


def is_wildcard(address: Address) -> Address:
    """Return the address that stands for all of its family."""
    return ipaddress.IPv6Address(0) if isinstance(address, ipaddress.IPv6Address) else ipaddress.IPv4Address(0)


def predict_outcome(view: View, packet: Packet) -> Outcome:
    """Return who gets the packet. What is not known of the packet is tried in every way that could matter."""
    devices = [packet.device] if packet.device else sorted({0, *map(int, view.on_port["device"])})
    states = {int(cpu) for cpu in view.on_port["cpu"] if cpu >= 0}
    cpus = [NO_CPU, *states] if packet.cpu is None else [packet.cpu]
    loops = [True, False] if packet.looped is None else [packet.looped]
    found: dict[tuple[int, int, bool], Outcome] = {}
    for device, cpu, looped in itertools.product(devices, cpus, loops):
        case = msgspec.structs.replace(packet, device=device, cpu=cpu, looped=looped)
        found[device, cpu, looped] = _decide(view, case)
    return _unite(found)


def _unite(found: Mapping[tuple[int, int, bool], Outcome]) -> Outcome:
    """Return the one outcome of all cases, or what is possible and by what it is decided."""
    first = next(iter(found.values()))
    if all((each.sockets, each.every) == (first.sockets, first.every) for each in found.values()):
        return first
    words = ("the device that it comes in by (--device)", "the CPU that receives it (SO_INCOMING_CPU)",
             "whether it comes from outside (early demux)")  # fmt: skip
    hinges = []
    for place, text in enumerate(words):
        apart: dict[tuple[object, ...], set[frozenset[int]]] = {}
        for case, outcome in found.items():
            apart.setdefault((*case[:place], *case[place + 1 :]), set()).add(outcome.sockets)
        if any(len(each) > 1 for each in apart.values()):
            hinges.append(f"it depends on {text}")
    sockets = frozenset().union(*(each.sockets for each in found.values()))
    return Outcome(sockets, False, (*dict.fromkeys(itertools.chain(*(each.open for each in found.values()))), *hinges))


def _decide(view: View, packet: Packet) -> Outcome:
    if view.every:
        return _find_all(view, packet)
    return _find_datagrams(view, packet) if view.protocol == "udp" else _find_stream(view, packet)


# --- one that is for this very packet ---------------------------------------------------------------------------------


def _word(address: Address) -> int:
    return words_of(address)[-1]


def _is_bound_to(entry: Entry, packet: Packet) -> bool:
    """inet_bound_dev_eq, without virtual routing domains."""
    return not entry["device"] or int(entry["device"]) == packet.device


def match_connected(entry: Entry, packet: Packet, namespace: int) -> bool:
    """inet_match, inet6_match: both addresses, both ports and the device."""
    if packet.source is None or int(entry["namespace"]) != namespace or int(entry["port"]) != packet.port:
        return False
    if int(entry["peer_port"]) != packet.source_port or not _is_bound_to(entry, packet):
        return False
    if isinstance(packet.destination, ipaddress.IPv4Address):
        ours = int(entry["address4"]), int(entry["peer4"])
        return ours == (_word(packet.destination), _word(packet.source))
    return int(entry["family"]) == AF_INET6 and (tuple(entry["address"]), tuple(entry["peer"])) == (
        words_of(packet.destination), words_of(packet.source),
    )  # fmt: skip


def score_socket(protocol: Protocol, entry: Entry, packet: Packet, looked_for: Address, namespace: int) -> int | None:
    """compute_score of both protocols and families: None where the socket is not for this packet.

    :param looked_for: the address of this pass: the packet's, or the wildcard
    :return: the score, higher is better
    """
    if int(entry["namespace"]) != namespace or int(entry["port"]) != packet.port or not _is_bound_to(entry, packet):
        return None
    at_home = int(entry["cpu"]) == packet.cpu
    v6 = isinstance(looked_for, ipaddress.IPv6Address)
    if v6 and (int(entry["family"]) != AF_INET6 or tuple(entry["address"]) != words_of(looked_for)):
        return None
    # IPv4 looks at an IPv6 socket's IPv4 address too: of :: it is 0.0.0.0, of a mapped one the one within
    if not v6 and (entry["only6"] or int(entry["address4"]) != _word(looked_for)):
        return None
    if protocol == "tcp":
        return (2 if entry["device"] else 1) + (0 if v6 else int(entry["family"] == AF_INET)) + at_home
    connected = _connected(entry, packet, v6=v6)
    if connected is None:
        return None
    if v6:
        return connected + bool(entry["device"]) + at_home
    return (2 if entry["family"] == AF_INET else 1) + 4 * connected + 4 * bool(entry["device"]) + at_home


def _connected(entry: Entry, packet: Packet, *, v6: bool) -> int | None:
    """How many of the far address and the far port a datagram's socket is tied to; None: to others than this one's."""
    source = None if packet.source is None else words_of(packet.source) if v6 else (_word(packet.source),)
    far = tuple(map(int, entry["peer"])) if v6 else (int(entry["peer4"]),)
    if any(far) and far != source:
        return None
    if entry["peer_port"] and int(entry["peer_port"]) != packet.source_port:
        return None
    return int(any(far)) + bool(entry["peer_port"])


def choose_member(view: View, entry: Entry, looked_for: Address, packet: Packet) -> tuple[frozenset[int], str]:
    """reuseport_select_sock: the member of a socket's group that gets the packet, or those that may, and why.

    The hash is made with the address that was looked for: in the second pass with the wildcard, not the packet's own.

    :return: no socket where the group chooses none, so that the socket that was found keeps the packet
    """
    if not entry["reuseport"] or not entry["group"]:
        return frozenset(), ""
    members = view.group(entry)
    eligible = [member for member in members if member["state"] != TCP_ESTABLISHED]
    everyone = frozenset(int(member["sk"]) for member in eligible)
    if entry["chooser"]:
        return everyone, "a BPF program of the group chooses, and what it will choose cannot be told"
    if len(eligible) < 2:
        return everyone, ""
    if packet.source is None:
        return everyone, "a hash of both addresses and ports chooses: name a sender (--from ADDRESS:PORT)"
    hashed = view.hashed(looked_for)
    if hashed is None:
        return everyone, "a hash chooses whose secret is not known (kallsyms) or not drawn yet"
    start = reciprocal_scale(hashed, len(members))
    order = [*members[start:], *members[:start]]
    willing = [member for member in order if member["state"] != TCP_ESTABLISHED]
    # since 6.2, where members have stated a CPU: the first that stated this one, before the first of all
    if entry["group_cpus"]:
        willing = [member for member in willing if int(member["cpu"]) == packet.cpu] + willing
    return frozenset([int(willing[0]["sk"])]), ""


def _search(view: View, packet: Packet, looked_for: Address) -> Outcome | None:
    """udp4_lib_lookup2, udp6_lib_lookup2, inet_lhash2_lookup, inet6_lhash2_lookup: one chain."""
    # a score of 0 is none for IPv4, and one for IPv6's datagrams
    best = -1 if view.protocol == "udp" and packet.destination.version == 6 else 0
    result: Outcome | None = None
    for entry in view.chain(looked_for):
        points = score_socket(view.protocol, entry, packet, looked_for, view.namespace)
        if points is None or points <= best:
            continue
        best, result = points, Outcome(frozenset([int(entry["sk"])]), False, (), points, looked_for)
        if view.protocol == "udp" and entry["state"] == TCP_ESTABLISHED:
            continue  # a connected one keeps what is its own, whatever group it is in
        chosen, why = choose_member(view, entry, looked_for, packet)
        if chosen:
            result = Outcome(chosen, False, (why,) if why else (), points, looked_for)
            if view.protocol == "tcp" or not entry["has_conns"]:
                return result
    return result


def _find_datagrams(view: View, packet: Packet) -> Outcome:
    """Early demux, the table by four values, then by address and port: the packet's address, and the wildcard."""
    chain = view.chain(packet.destination)
    if view.early and not packet.looped and packet.device != LOOPBACK and len(chain):
        first = chain[0]
        whole = packet.destination.version == 4 or first["state"] == TCP_ESTABLISHED
        if whole and match_connected(first, packet, view.namespace):
            return Outcome(frozenset([int(first["sk"])]))
    four = [each for each in view.on_port if each["slot"][2] >= 0 and match_connected(each, packet, view.namespace)]
    if four:  # all of one slot; the first on the chain is taken, no score is asked for
        return Outcome(frozenset([int(min(four, key=lambda each: int(each["before"][2]))["sk"])]))
    found = _search(view, packet, packet.destination)
    states = {int(each["sk"]): int(each["state"]) for each in view.on_port}
    if found is not None and all(states.get(sk) == TCP_ESTABLISHED for sk in found.sockets):
        return found
    return _ask_program(view, found or _search(view, packet, is_wildcard(packet.destination)) or NOBODY)


def _find_stream(view: View, packet: Packet) -> Outcome:
    """The table of connections, then the listeners'."""
    there = [each for each in view.on_port if each["state"] != TCP_LISTEN]
    whole = [each for each in there if match_connected(each, packet, view.namespace)]
    if whole:
        return Outcome(frozenset([int(min(whole, key=lambda each: int(each["before"][0]))["sk"])]))
    return find_listener(view, packet)


def find_listener(view: View, packet: Packet) -> Outcome:
    """__inet_lookup_listener, inet6_lookup_listener: who gets the beginning of a connection."""
    found = _search(view, packet, packet.destination) or _search(view, packet, is_wildcard(packet.destination))
    return _ask_program(view, found or NOBODY)


def _ask_program(view: View, found: Outcome) -> Outcome:
    if not view.redirected:
        return found
    why = "a BPF program of the network namespace (sk_lookup) is asked first, and may choose any socket"
    return msgspec.structs.replace(found, sockets=found.sockets | {0}, open=(*found.open, why))


# --- all that listen to it --------------------------------------------------------------------------------------------


def _find_all(view: View, packet: Packet) -> Outcome:
    """__udp4_lib_mcast_deliver, __udp6_lib_mcast_deliver: every socket that is for it gets a copy."""
    if view.protocol == "tcp" or not view.admitted:
        return Outcome(frozenset(), True)
    taken = [each for each in view.on_port if hears(each, packet, view.namespace)]
    if len(taken) == 1 and view.early and view.rechosen and not packet.looped and taken[0]["state"] != TCP_ESTABLISHED:
        chosen, why = choose_member(view, taken[0], packet.destination, packet)
        if chosen:
            return Outcome(chosen, False, (why,) if why else (), 0, packet.destination)
    return Outcome(frozenset(int(each["sk"]) for each in taken), True)


def hears(entry: Entry, packet: Packet, namespace: int) -> bool:
    """__udp_is_mcast_sock, __udp_v6_is_mcast_sock: whether a socket is for this multicast or broadcast packet."""
    v6 = packet.destination.version == 6
    if int(entry["namespace"]) != namespace or int(entry["port"]) != packet.port or not _is_bound_to(entry, packet):
        return False
    if (v6 and entry["family"] != AF_INET6) or (not v6 and entry["only6"]):
        return False
    if _connected(entry, packet, v6=v6) is None:
        return False
    bound = tuple(map(int, entry["address"])) if v6 else (int(entry["address4"]),)
    asked = words_of(packet.destination)
    return (not any(bound) or bound == asked) and (not packet.destination.is_multicast or _lets_in(entry, v6=v6))


def _lets_in(entry: Entry, *, v6: bool) -> bool:
    """ip_mc_sf_allow, inet6_mc_check: by the socket's membership of the group, and else by IP_MULTICAST_ALL."""
    if not entry["joined"]:
        return bool(entry["mc6_all" if v6 else "mc_all"])
    if not entry["sources"]:
        return not entry["include"]
    return bool(entry["listed"]) == bool(entry["include"])


def find_entries(entries: Iterable[Entries], sockets: frozenset[int]) -> list[Entry]:
    """Return the entries of some sockets, each once, in the order in which they were read."""
    found: dict[int, Entry] = {}
    for many in entries:
        for each in many[np.isin(many["sk"], list(sockets))] if len(many) else ():
            found.setdefault(int(each["sk"]), each)
    return list(found.values())
