"""The answer of `hwrx lookup`: the computation, the kernel's tables, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

from hwrx.host import netns
from hwrx.lookup import winner
from hwrx.lookup.hashes import (
    FORMS,
    Address,
    Secrets,
    Step,
    Steps,
    ehashfn,
    mapped_address,
    portaddr_hash,
    reciprocal_scale,
    udp_hashfn,
)
from hwrx.lookup.owners import Owner, owners_of, user_of
from hwrx.lookup.table import (
    SENTENCES,
    TCP_ESTABLISHED,
    TCP_LISTEN,
    Entries,
    Kind,
    Protocol,
    Tables,
    far_of,
    local_of,
)

SHOWN = 8  # sockets of a chain
# enum in include/net/tcp_states.h
STATES = ("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT",
          "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV")  # fmt: skip


class Socket(Struct, frozen=True):
    """A socket as the kernel has it. `slots`: table to (computed, real); computed None: a secret is missing."""

    local: str
    far: str
    state: str
    uid: int
    user: str
    inode: int
    namespace: int
    device: int
    owners: list[Owner]
    slots: dict[str, tuple[int | None, int]]
    before: dict[str, int]  # table to how many sockets stand before it on its chain
    reuseport: bool
    group: int | None  # members of its SO_REUSEPORT group
    member: int | None  # which of them it is, from 0
    agrees: bool | None  # None: nothing to compare


class Look(Struct, frozen=True):
    """One look into a table: which slot, computed how, and what hangs there."""

    table: str
    sentence: str
    looked_for: str
    steps: list[Step]
    slot: int
    slots: int
    length: int | None  # sockets on the chain; None: not read
    steady: bool
    chain: list[str]  # the first of them


class Answer(Struct, frozen=True):
    """What `hwrx lookup` found. `verdict`: agrees, differs, nobody, not compared."""

    protocol: Protocol
    address: str
    port: int
    namespace: int | None
    seed: int
    seed_from: str
    looks: list[Look]
    sockets: list[Socket]
    gets_it: str
    early_demux: str
    verdict: str
    notes: list[str]


def compute_answer(protocol: Protocol, packet: winner.Packet, seed: int, slots: int, why: str) -> Answer:
    """Return the computation alone, with a seed that the user states."""
    looks = []
    if protocol == "udp":
        looks.append(_port_look(packet.port, seed, slots))
    kind = Kind.UDP_ADDRESS if protocol == "udp" else Kind.TCP_LISTEN
    for looked_for in dict.fromkeys((packet.destination, winner.is_wildcard(packet.destination))):
        looks.append(_address_look(kind, looked_for, packet.port, seed, slots))
    if protocol == "tcp" and packet.source is not None:
        looks.insert(0, _four_look(packet, seed, Secrets(), slots))
    return Answer(
        protocol, str(packet.destination), packet.port, None, seed, "stated, not the kernel's", looks, [],
        "not asked of the kernel", "", "not compared",
        [f"the kernel was not asked: {why}", "seed, number of slots and secrets (0) are stated: give --seed, --slots"],
    )  # fmt: skip


def ask_tables(protocol: Protocol, packet: winner.Packet, namespace: str | None = None) -> Answer:
    """Compute, read the kernel's tables, compare. MachineError where they cannot be read."""
    with netns.entered_namespace(namespace), Tables() as tables:
        return ask_in(tables, protocol, packet)


def ask_in(tables: Tables, protocol: Protocol, packet: winner.Packet) -> Answer:
    """Do the same with tables that are open, in their namespace."""
    there = tables.sockets(protocol, packet.port)
    ours = [entry for entry in there if _concerns(entry, packet)]
    notes: list[str] = []
    if len(there) > len(ours):
        notes.append(f"{len(there) - len(ours)} more sockets have port {packet.port}, bound to other addresses")
    looks, chains = _looks(tables, protocol, packet, notes)
    held = owners_of({int(entry["inode"]) for entry in ours})
    sockets = [_socket(tables, protocol, entry, held.get(int(entry["inode"]), [])) for entry in ours]
    judged = [socket.agrees for socket in sockets]
    if not sockets:
        verdict = "nobody"
    elif False in judged:
        verdict = "differs"
    elif None in judged:
        verdict = "agrees" if True in judged else "not compared"
        notes.append("connections were not compared: the kernel does not say where its secrets are (kallsyms)")
    else:
        verdict = "agrees"
    if any(socket.slots and -1 in dict(socket.slots.values()).values() for socket in sockets):
        notes.append("a socket left its chain while it was looked at")
    return Answer(
        protocol, str(packet.destination), packet.port, tables.namespace, tables.hash_mix,
        "the namespace's hash_mix, read from the kernel", looks, sockets,
        _gets_it(tables, protocol, packet, chains), _early_demux(protocol, there, chains), verdict, notes,
    )  # fmt: skip


def _concerns(entry: Any, packet: winner.Packet) -> bool:
    local = local_of(entry)
    local = mapped_address(local) or local
    if int(local):
        return local == packet.destination
    # of the wildcards, those of the packet's family and the one that serves both
    return not (local.version == 6 and packet.destination.version == 4 and entry["only6"]) and not (
        local.version == 4 and packet.destination.version == 6
    )


# --- looks ---------------------------------------------------------------------------------------------------------


def _port_look(port: int, seed: int, slots: int, tables: Tables | None = None) -> Look:
    steps = Steps()
    slot = udp_hashfn(port, seed, slots - 1, steps)
    return _look(Kind.UDP_PORT, f"port {port}", steps, slot, slots, tables)[0]


def _address_look(kind: Kind, looked_for: Address, port: int, seed: int, slots: int) -> Look:
    return _address_and_chain(kind, looked_for, port, seed, slots, None)[0]


def _address_and_chain(
    kind: Kind, looked_for: Address, port: int, seed: int, slots: int, tables: Tables | None
) -> tuple[Look, Entries | None]:
    steps = Steps()
    slot = steps.note("& mask", portaddr_hash(looked_for, port, seed, steps) & slots - 1, decimal=True)
    what = f"{looked_for}, port {port}" if int(looked_for) else f"any address ({looked_for}), port {port}"
    return _look(kind, what, steps, slot, slots, tables)


def _four_look(packet: winner.Packet, seed: int, secrets: Secrets, slots: int, tables: Tables | None = None) -> Look:
    assert packet.source is not None
    steps = Steps()
    form = FORMS[0] if tables is None else tables.form(secrets)
    whole = ehashfn(
        packet.destination, packet.port, packet.source, packet.source_port, seed, secrets, form, steps
    )  # fmt: skip
    slot = steps.note("& mask", whole & slots - 1, decimal=True)
    what = f"{packet.destination}:{packet.port} from {packet.source}:{packet.source_port}"
    return _look(Kind.TCP_ESTABLISHED, what, steps, slot, slots, tables)[0]


def _look(
    kind: Kind, what: str, steps: Steps, slot: int, slots: int, tables: Tables | None
) -> tuple[Look, Entries | None]:
    chain = None if tables is None else tables.chain(kind, slot)
    look = Look(
        kind.name, SENTENCES[kind], what, list(steps), slot, slots,
        None if chain is None else len(chain.entries), chain is None or chain.steady,
        [] if chain is None else [_brief(entry) for entry in chain.entries[:SHOWN]],
    )  # fmt: skip
    return look, None if chain is None else chain.entries


def _looks(
    tables: Tables, protocol: Protocol, packet: winner.Packet, notes: list[str]
) -> tuple[list[Look], list[tuple[Address, Entries]]]:
    """Return the looks in the kernel's order, and of those by address the chains."""
    seed = tables.hash_mix
    looks: list[Look] = []
    chains: list[tuple[Address, Entries]] = []
    if protocol == "tcp" and packet.source is not None:
        secrets = tables.secrets("tcp")
        if secrets is None:
            notes.append("the slot of a connection needs secrets whose place this kernel does not say (kallsyms)")
        else:
            looks.append(_four_look(packet, seed, secrets, tables.slots(Kind.TCP_ESTABLISHED), tables))
    if protocol == "udp":
        looks.append(_port_look(packet.port, seed, tables.slots(Kind.UDP_PORT), tables))
        if tables.four:
            notes.append("this kernel looks for connected UDP sockets in a table by four values first (hash4)")
    kind = Kind.UDP_ADDRESS if protocol == "udp" else Kind.TCP_LISTEN
    for looked_for in dict.fromkeys((packet.destination, winner.is_wildcard(packet.destination))):
        look, entries = _address_and_chain(kind, looked_for, packet.port, seed, tables.mask(kind) + 1, tables)
        looks.append(look)
        if entries is not None:
            chains.append((looked_for, entries))
    return looks, chains


# --- sockets -------------------------------------------------------------------------------------------------------


def _ends(entry: Any) -> tuple[str, str]:
    far = far_of(entry)
    connected = int(entry["peer_port"]) or int(far)
    return _at(local_of(entry), int(entry["port"])), _at(far, int(entry["peer_port"])) if connected else ""


def _at(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _brief(entry: Any) -> str:
    local, far = _ends(entry)
    state = STATES[int(entry["state"])] if entry["state"] < len(STATES) else str(entry["state"])
    return f"{local}{f' connected to {far}' if far else ''} {state}, inode {entry['inode']}, net {entry['namespace']}"


def _socket(tables: Tables, protocol: Protocol, entry: Any, held: list[Owner]) -> Socket:
    computed, real = tables.computed(protocol, entry), tables.real(protocol, entry)
    local, far = _ends(entry)
    group = tables.group(entry)
    member = [index for index, other in enumerate(group) if other["sk"] == entry["sk"]]
    judged = [computed[kind] == real[kind] for kind in real if computed[kind] is not None]
    before = zip(real, entry["before"], strict=False)
    return Socket(
        local, far, STATES[int(entry["state"])], int(entry["uid"]), user_of(int(entry["uid"])), int(entry["inode"]),
        int(entry["namespace"]), int(entry["device"]), held,
        {kind.name: (computed[kind], real[kind]) for kind in real},
        {kind.name: int(count) for kind, count in before},
        bool(entry["reuseport"]), len(group) or None, member[0] if member else None,
        all(judged) if judged else None,
    )  # fmt: skip


def _gets_it(
    tables: Tables, protocol: Protocol, packet: winner.Packet, chains: Iterable[tuple[Address, Entries]]
) -> str:
    """Say in words who gets the packet, and why."""
    for entry in tables.sockets("tcp", packet.port) if protocol == "tcp" and packet.source is not None else ():
        four = (local_of(entry), far_of(entry), int(entry["peer_port"]))
        if four == (packet.destination, packet.source, packet.source_port) and entry["state"] != TCP_LISTEN:
            return f"{_brief(entry)}: the connection itself, found by both addresses and ports (first look)"
    for looked_for, chain in chains:
        found = winner.best_socket(protocol, chain, packet, looked_for, tables.namespace)
        if found is None:
            continue
        entry, points = found
        local, _ = _ends(entry)
        bound = "bound to this very address" if int(local_of(entry)) else "bound to all addresses (second look)"
        words = f"{local}, inode {entry['inode']}: {bound}, score {points}"
        return words + _member(tables, protocol, packet, entry) if winner.group_member(protocol, entry) else words
    return "nobody: the packet is dropped (NO_SOCKET), and its sender told so by ICMP or a reset"


def _member(tables: Tables, protocol: Protocol, packet: winner.Packet, entry: Any) -> str:
    members = tables.group(entry)
    words = f"; SO_REUSEPORT: one of {len(members)}"
    if entry["chooser"]:
        return f"{words}, chosen by the group's own BPF program"
    secrets = tables.secrets(protocol)
    if packet.source is None:
        return f"{words}, chosen by the hash of both addresses and ports (name a sender: --from ADDRESS:PORT)"
    if secrets is None or not secrets.ehash:
        return f"{words}, chosen by a hash whose secret is not known or not drawn yet"
    whole = ehashfn(
        packet.destination, packet.port, packet.source, packet.source_port, tables.hash_mix, secrets,
        tables.form(tables.secrets("tcp") or secrets),
    )  # fmt: skip
    index = reciprocal_scale(whole, len(members))
    return f"{words}: member {index}, inode {members[index]['inode']} (0x{whole:08x} * {len(members)} >> 32)"


def _early_demux(protocol: Protocol, there: Iterable[Any], chains: list[tuple[Address, Entries]]) -> str:
    """Say whether the socket is found before routing, and whose then."""
    folder = Path("/proc/sys/net/ipv4")
    off = [name for name in ("ip_early_demux", f"{protocol}_early_demux") if (folder / name).read_text().strip() == "0"]
    if off:
        return f"off ({', '.join(off)} = 0)"
    if protocol == "tcp":
        count = sum(entry["state"] == TCP_ESTABLISHED for entry in there)
        return f"on: {count} established connections on this port are found before routing; a new one is not"
    first = [chain[0] for _, chain in chains[:1] if len(chain)]
    if first and first[0]["state"] == TCP_ESTABLISHED:
        return f"on: {_ends(first[0])[0]} is connected and first on its chain, so it is found before routing"
    return "on, without effect here: only a connected socket that is first on its chain is found before routing"


class Audit(Struct, frozen=True):
    """All sockets of a namespace held against the computation."""

    protocol: Protocol
    namespace: int
    sockets: int
    agree: int
    differ: list[str]
    uncompared: int
    longest: dict[str, int]  # table to the most sockets that stand before one on its chain, and itself


def audit_tables(protocol: Protocol, namespace: str | None = None) -> Audit:
    """Compare every socket of the namespace."""
    with netns.entered_namespace(namespace), Tables() as tables:
        agree, uncompared, differ = 0, 0, []
        longest: dict[str, int] = {}
        found = tables.sockets(protocol)
        for entry in found:
            computed, real = tables.computed(protocol, entry), tables.real(protocol, entry)
            for kind, before in zip(real, entry["before"], strict=False):
                longest[kind.name] = max(longest.get(kind.name, 0), int(before) + 1)
            if None in computed.values():
                uncompared += 1
            elif computed == real:
                agree += 1
            else:
                differ.append(f"{_brief(entry)}: computed {computed}, real {real}")
        return Audit(protocol, tables.namespace, len(found), agree, differ, uncompared, longest)
