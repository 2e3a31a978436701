"""The answer of `hwrx lookup`: the computation, the kernel's tables, and whether they agree."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from hwrx.host import netns
from hwrx.host.owners import Owner, owners_of, user_of
from hwrx.lookup import view, winner, words
from hwrx.lookup.hashes import FORMS, Address, Secrets, Step, Steps, be16, ehashfn, portaddr_hash, udp_hashfn, words_of
from hwrx.lookup.table import AF_INET6, SENTENCES, Entry, Kind, Protocol, Tables

SHOWN = 8  # sockets of a chain
Verdict = Literal["agrees", "differs", "nobody", "not compared"]


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


class Receiver(Struct, frozen=True):
    """A socket that gets the packet, or may get it."""

    local: str
    far: str
    state: str
    inode: int


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
    """What `hwrx lookup` found.

    `receivers`: the sockets that get the packet: one, for multicast and broadcast all; where not `decided` one of
    them does. `verdict`: whether the computed slots are the kernel's; nobody: there is no socket to compare.
    """

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
    verdict: Verdict
    notes: list[str]
    receivers: list[Receiver] = []
    decided: bool = False


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
    packet = view.with_device(packet)
    kind = view.address_kind(packet.destination, packet.device)
    seen = view.read_view(tables, protocol, packet, kind)
    outcome = winner.predict_outcome(seen, packet)
    ours = [entry for entry in seen.on_port if _concerns(entry, packet)]
    notes = list(words.notes_on(kind, packet))
    off = view.why_not_taken(packet)
    if off:
        # ip6_rcv_core drops it
        notes.append(f"{off}: a packet to {packet.destination} is dropped before any socket is looked for")
    if len(seen.on_port) > len(ours):
        notes.append(f"{len(seen.on_port) - len(ours)} more sockets have port {packet.port}, bound to other addresses")
    looks = _looks(tables, protocol, packet, notes)
    held = owners_of({int(entry["inode"]) for entry in ours})
    sockets = [_socket(tables, protocol, entry, held.get(int(entry["inode"]), [])) for entry in ours]
    if any(socket.slots and -1 in dict(socket.slots.values()).values() for socket in sockets):
        notes.append("a socket left its chain while it was looked at")
    gets_it = f"nobody: {off}" if off else words.tell_receivers(seen, packet, outcome)
    there = [] if off else winner.find_entries([seen.on_port], outcome.sockets)
    return Answer(
        protocol, str(packet.destination), packet.port, tables.namespace, tables.hash_mix,
        "the namespace's hash_mix, read from the kernel", looks, sockets, gets_it,
        words.tell_early_demux(seen, packet), "nobody" if off else _compare(sockets, notes), notes,
        [Receiver(*words.ends_of(entry), words.state_of(entry), int(entry["inode"])) for entry in there],
        bool(off) or outcome.decided,
    )  # fmt: skip


def _compare(sockets: list[Socket], notes: list[str]) -> Verdict:
    """Say whether all slots agree; where some were not compared a note says why."""
    judged = [socket.agrees for socket in sockets]
    if not sockets:
        return "nobody"
    if any(None in dict.fromkeys(computed for computed, _ in socket.slots.values()) for socket in sockets):
        notes.append("connections were not compared: the kernel does not say where its secrets are (kallsyms)")
    if False in judged:
        return "differs"
    return "agrees" if True in judged else "not compared"


def _concerns(entry: Entry, packet: winner.Packet) -> bool:
    """Whether a socket is bound to the packet's address, or to all of its family."""
    if packet.destination.version == 6:
        bound = tuple(map(int, entry["address"]))
        return bool(entry["family"] == AF_INET6) and (not any(bound) or bound == words_of(packet.destination))
    return not entry["only6"] and int(entry["address4"]) in (0, *words_of(packet.destination))


# --- looks ---------------------------------------------------------------------------------------------------------


def _port_steps(port: int) -> Steps:
    """Begin with the port as it comes: two bytes in network order, which the machine reads in its own."""
    steps = Steps()
    raw = port.to_bytes(2, "big").hex(" ")
    what = f"dport, bytes {raw} of the header, as this machine reads them"
    steps.append(Step(what, be16(port), f"0x{be16(port):04x}"))
    steps.note("hnum = ntohs(dport)", port, decimal=True)
    return steps


def _port_look(port: int, seed: int, slots: int, tables: Tables | None = None) -> Look:
    steps = _port_steps(port)
    slot = udp_hashfn(port, seed, slots - 1, steps)
    return _look(Kind.UDP_PORT, f"port {port}", steps, slot, slots, tables)


def _address_look(
    kind: Kind, looked_for: Address, port: int, seed: int, slots: int, tables: Tables | None = None
) -> Look:
    steps = _port_steps(port)
    slot = steps.note("& mask", portaddr_hash(looked_for, port, seed, steps) & slots - 1, decimal=True)
    what = f"{looked_for}, port {port}" if int(looked_for) else f"any address ({looked_for}), port {port}"
    return _look(kind, what, steps, slot, slots, tables)


def _four_look(
    packet: winner.Packet, seed: int, secrets: Secrets, slots: int, tables: Tables | None = None, *, udp: bool = False
) -> Look:
    assert packet.source is not None
    steps = Steps()
    form = FORMS[0] if tables is None else tables.form("udp" if udp else "tcp")
    whole = ehashfn(
        packet.destination, packet.port, packet.source, packet.source_port, seed, secrets, form, steps
    )  # fmt: skip
    slot = steps.note("& mask", whole & slots - 1, decimal=True)
    what = f"{packet.destination}:{packet.port} from {packet.source}:{packet.source_port}"
    return _look(Kind.UDP_FOUR if udp else Kind.TCP_ESTABLISHED, what, steps, slot, slots, tables)


def _look(kind: Kind, what: str, steps: Steps, slot: int, slots: int, tables: Tables | None) -> Look:
    chain = None if tables is None else tables.chain(kind, slot)
    return Look(
        kind.name, SENTENCES[kind], what, list(steps), slot, slots,
        None if chain is None else len(chain.entries), chain is None or chain.steady,
        [] if chain is None else [words.brief(entry) for entry in chain.entries[:SHOWN]],
    )  # fmt: skip


def _looks(tables: Tables, protocol: Protocol, packet: winner.Packet, notes: list[str]) -> list[Look]:
    """Return the looks in the kernel's order."""
    seed = tables.hash_mix
    looks: list[Look] = []
    if protocol == "udp":
        looks.append(_port_look(packet.port, seed, tables.slots(Kind.UDP_PORT), tables))
        if packet.destination.is_multicast:
            return looks
    if packet.source is not None and (protocol == "tcp" or tables.four):
        secrets = tables.secrets(protocol)
        kind = Kind.UDP_FOUR if protocol == "udp" else Kind.TCP_ESTABLISHED
        if secrets is None:
            notes.append("the slot of a connection needs secrets whose place this kernel does not say (kallsyms)")
        else:
            looks.append(_four_look(packet, seed, secrets, tables.slots(kind), tables, udp=protocol == "udp"))
    kind = Kind.UDP_ADDRESS if protocol == "udp" else Kind.TCP_LISTEN
    for looked_for in dict.fromkeys((packet.destination, winner.is_wildcard(packet.destination))):
        looks.append(_address_look(kind, looked_for, packet.port, seed, tables.mask(kind) + 1, tables))
    return looks


# --- sockets -------------------------------------------------------------------------------------------------------


def _socket(tables: Tables, protocol: Protocol, entry: Entry, held: list[Owner]) -> Socket:
    computed, real = tables.computed(protocol, entry), tables.real(protocol, entry)
    local, far = words.ends_of(entry)
    group = tables.group(entry)
    member = [index for index, other in enumerate(group) if other["sk"] == entry["sk"]]
    judged = [computed[kind] == real[kind] for kind in real if computed[kind] is not None]
    before = zip(real, entry["before"], strict=False)
    return Socket(
        local, far, words.state_of(entry), int(entry["uid"]), user_of(int(entry["uid"])), int(entry["inode"]),
        int(entry["namespace"]), int(entry["device"]), held,
        {kind.name: (computed[kind], real[kind]) for kind in real},
        {kind.name: int(count) for kind, count in before},
        bool(entry["reuseport"]), len(group) or None, member[0] if member else None,
        all(judged) if judged else None,
    )  # fmt: skip


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
            compared = {kind: slot for kind, slot in computed.items() if slot is not None}
            if not compared:
                uncompared += 1
            elif all(real[kind] == slot for kind, slot in compared.items()):
                agree += 1
            else:
                differ.append(f"{words.brief(entry)}: computed {computed}, real {real}")
        return Audit(protocol, tables.namespace, len(found), agree, differ, uncompared, longest)
