"""The kernel's socket tables as they are: geometry, seeds, chains. Read by the programs of probes/bpf/tables.bpf.c.

Nothing is held while a chain is read, so it is read until two readings are the same. Addresses of kernel objects are
names here, good for telling one socket from another, and are never followed by user space.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from hwrx import stages
from hwrx.errors import MachineError
from hwrx.lookup.hashes import FORMS, Address, Form, Secrets, ehashfn, portaddr_hash, udp_hashfn, words_of
from hwrx.probes import attaching, build
from hwrx.probes import symbols as kernel_symbols

Protocol = Literal["udp", "tcp"]
MOST = 131_072  # FOUND in the programs
READINGS = 6  # of a chain that changes while it is read
AF_INET6 = 10
TCP_ESTABLISHED, TCP_LISTEN = 1, 10


class Kind(enum.IntEnum):
    """A table of chains; the numbers are those of `enum kind` in the programs."""

    UDP_PORT = 0
    UDP_ADDRESS = 1
    TCP_ESTABLISHED = 2
    TCP_LISTEN = 3
    UDP_FOUR = 4
    GROUP = 5


SENTENCES = {
    Kind.UDP_PORT: "by port alone (udp_table.hash): binding and multicast",
    Kind.UDP_ADDRESS: "by address and port (udp_table.hash2): where a datagram's socket is looked for",
    Kind.TCP_ESTABLISHED: "by both addresses and ports (ehash): connections",
    Kind.TCP_LISTEN: "by address and port (lhash2): sockets that listen",
    Kind.UDP_FOUR: "by both addresses and ports (udp_table.hash4): connected UDP sockets, asked first",
}

# struct entry, struct geometry, struct walk, struct wanted of the programs
ENTRY = np.dtype([
    ("sk", "u8"), ("inode", "u8"), ("group", "u8"), ("chooser", "u8"), ("cookie", "u8"), ("listener", "u8"),
    ("address", "u4", 4), ("peer", "u4", 4), ("address4", "u4"), ("peer4", "u4"), ("hash", "u4"), ("namespace", "u4"),
    ("uid", "u4"), ("group_cpus", "u4"), ("sources", "u4"), ("port", "u2"), ("peer_port", "u2"), ("family", "u2"),
    ("protocol", "u2"), ("state", "u1"), ("reuseport", "u1"), ("only6", "u1"), ("reuse", "u1"), ("has_conns", "u1"),
    ("mc_all", "u1"), ("mc6_all", "u1"), ("joined", "u1"), ("include", "u1"), ("listed", "u1"), ("device", "i8"),
    ("cpu", "i8"), ("slot", "i8", 3), ("before", "u4", 3),
], align=True)  # fmt: skip
TABLE = np.dtype([("base", "u8"), ("mask", "u4"), ("stride", "u4"), ("head", "u4"), ("pad", "u4")], align=True)
GEOMETRY = np.dtype([
    ("hash_mix", "u4"), ("namespace", "u4"), ("tables", TABLE, 6), ("secrets", "u4", 6), ("known", "u4"),
    ("four", "u4"), ("redirected", "u4"), ("rechosen", "u4"),
], align=True)  # fmt: skip
WALK = np.dtype([("head", "u8"), ("kind", "u4"), ("limit", "u4"), ("count", "u4"), ("cut", "u4"), ("end", "u8")])
WANTED = np.dtype([
    ("geometry", GEOMETRY), ("port", "u4"), ("family", "u4"), ("group", "u4", 4), ("source", "u4", 4), ("device", "u4"),
], align=True)  # fmt: skip

# in the order of struct symbols; a static variable of a function may carry a number behind its name
SYMBOLS = (
    ("udp_table",),
    ("tcp_hashinfo",),
    ("net_hotdata",),
    ("inet_ehash_secret",),
    ("inet6_ehash_secret",),
    ("tcp_ipv6_hash_secret", "ipv6_hash_secret"),
    ("udp_ehash_secret",),
    ("udp6_ehash_secret",),
    ("udp_ipv6_hash_secret",),
)

Entries = npt.NDArray[Any]
Entry = np.void  # one of Entries


class Group(Struct, frozen=True):
    """A multicast group whose members are asked for. `source` None: a sender that no filter lists."""

    address: Address
    source: Address | None
    device: int


class Chain(Struct, frozen=True):
    """The sockets on one slot, from its head on. `cut`: there are more than MOST. `steady`: two readings agreed."""

    slot: int
    entries: Entries
    cut: bool
    steady: bool


class Tables:
    """The tables that the calling thread's network namespace uses. A context manager.

    MachineError, with what to type, where they cannot be read.
    """

    def __init__(self) -> None:
        attaching.require_tracer()
        from cython_ext.bpf.bpf_reader import Reader
        from cython_ext.bpf.tracer import LoadError

        self._symbols = table_symbols()
        constants = np.array([self._symbols[names[0]] for names in SYMBOLS], dtype="u8").tobytes()
        try:
            path = build.find_or_build(stages.stage_header(), "tables")
            self._reader = Reader(path, constants)
        except build.BuildError as error:
            raise MachineError(str(error), remedy=error.remedy) from None
        except LoadError as error:
            raise MachineError(
                "this kernel does not let its socket tables be read: "
                f"{attaching.last_word(error.said) or error.strerror}",
                remedy="it needs BPF programs of type `syscall` and socket iterators, Linux 5.17 or newer with BTF",
            ) from None
        try:
            self._geometry = self._read_geometry()
        except BaseException:
            self.close()
            raise
        self._form: Form | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the programs."""
        self._reader.close()

    def _read_geometry(self) -> np.void:
        context = bytearray(GEOMETRY.itemsize)
        self._reader.run("geometry", context)
        geometry: np.void = np.frombuffer(bytes(context), dtype=GEOMETRY)[0]
        return geometry

    @property
    def hash_mix(self) -> int:
        """The namespace's seed (net_hash_mix)."""
        return int(self._geometry["hash_mix"])

    @property
    def namespace(self) -> int:
        """The namespace's number, as in /proc/PID/ns/net."""
        return int(self._geometry["namespace"])

    @property
    def four(self) -> bool:
        """Whether connected UDP sockets have a table of their own, by four values (udp_table.hash4, since 6.13)."""
        return bool(self._geometry["four"])

    @property
    def redirected(self) -> bool:
        """Whether a BPF program of the namespace (sk_lookup) is asked before the tables, and may choose any socket."""
        return bool(self._geometry["redirected"])

    @property
    def rechosen(self) -> bool:
        """Whether a SO_REUSEPORT group chooses anew for what early demux has found (multicast)."""
        return bool(self._geometry["rechosen"])

    def slots(self, kind: Kind) -> int:
        """Return how many chains a table has; 0 where this kernel's is not one that we know."""
        table = self._geometry["tables"][kind]
        return int(table["mask"]) + 1 if table["base"] else 0

    def mask(self, kind: Kind) -> int:
        """Return the table's mask; MachineError where this kernel's is not one that we know."""
        slots = self.slots(kind)
        if not slots:
            raise MachineError(f"this kernel's table {kind.name} is not where it is looked for ({SENTENCES[kind]})")
        return slots - 1

    def secrets(self, protocol: Protocol) -> Secrets | None:
        """Return what the kernel adds to the hash of four values; None where its variables have no address to us."""
        first = 0 if protocol == "tcp" else 3
        # drawn when first needed, so a value that was 0 may be set by now
        self._geometry = self._read_geometry()
        if int(self._geometry["known"]) >> first & 7 != 7:
            return None
        return Secrets(*(int(value) for value in self._geometry["secrets"][first : first + 3]))

    def sockets(self, protocol: Protocol, port: int = 0, group: Group | None = None) -> Entries:
        """Return the namespace's sockets on a port (0: all), each with the slots that it really hangs on.

        :param group: also say of each UDP socket whether it is a member of this group, and what its filter says
        :raises MachineError: if this kernel has no such iterator
        """
        wanted = np.zeros((), dtype=WANTED)
        wanted["geometry"] = self._geometry
        wanted["port"] = port
        if group is not None:
            wanted["family"] = AF_INET6 if group.address.version == 6 else 2
            wanted["device"] = group.device
            wanted["group"][: len(words_of(group.address))] = words_of(group.address)
            if group.source is not None:
                wanted["source"][: len(words_of(group.source))] = words_of(group.source)
        self._reader.put(".bss", wanted.tobytes())
        try:
            found = np.frombuffer(self._reader.iterate(f"{protocol}_sockets"), dtype=ENTRY)
        except OSError as error:
            raise MachineError(
                f"this kernel has no iterator over {protocol.upper()} sockets ({error.strerror})",
                remedy="Linux 5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF",
            ) from None
        # the iterator of newer kernels may pass a socket twice that is moved while it looks
        return found[np.sort(np.unique(found["sk"], return_index=True)[1])]

    def chain(self, kind: Kind, slot: int, limit: int = MOST) -> Chain:
        """Return what hangs on a slot."""
        table = self._geometry["tables"][kind]
        self.mask(kind)
        head = int(table["base"]) + slot * int(table["stride"]) + int(table["head"])
        return self._read(kind, head, slot, limit)

    def group(self, entry: Entry) -> Entries:
        """Return the members of a socket's SO_REUSEPORT group, in the order in which the kernel counts them."""
        if not entry["group"]:
            return np.zeros(0, dtype=ENTRY)
        return self._read(Kind.GROUP, int(entry["group"]), 0, 65536).entries

    def _read(self, kind: Kind, head: int, slot: int, limit: int) -> Chain:
        before: bytes | None = None
        walk = np.zeros((), dtype=WALK)
        for _ in range(READINGS):
            context = bytearray(np.array((head, kind, limit, 0, 0, 0), dtype=WALK).tobytes())
            self._reader.run("walk", context)
            walk = np.frombuffer(bytes(context), dtype=WALK)[0]
            raw = self._reader.take("found", int(walk["count"]), ENTRY.itemsize)
            if raw == before and not self._strayed(kind, slot, walk):
                return Chain(slot, np.frombuffer(raw, dtype=ENTRY), bool(walk["cut"]), True)
            before = raw
        return Chain(slot, np.frombuffer(before or b"", dtype=ENTRY), bool(walk["cut"]), False)

    @staticmethod
    def _strayed(kind: Kind, slot: int, walk: np.void) -> bool:
        """Whether the reading came from one chain to another: this list's last word is its own number."""
        return kind == Kind.TCP_ESTABLISHED and not walk["cut"] and int(walk["end"]) != (slot << 1 | 1)

    # --- computed for a socket that is there --------------------------------------------------------------------

    def form(self, protocol: Protocol) -> Form:
        """Return how this kernel hashes four values. It changed twice; the kernel's own connections tell.

        Each carries its hash. Without one to ask, IPv4's and IPv6's, the newest form that fits the others is taken.
        UDP has the same way of hashing an IPv6 address (__ipv6_addr_jhash), but udp_ehashfn and udp6_ehashfn hash the
        local port as ever; it is inet_ehashfn and inet6_ehashfn that add it since 6.15 (commit 9544d60a2605).
        """
        form = self._connections_form()
        return form if protocol == "tcp" else Form(folded=form.folded)

    def _connections_form(self) -> Form:
        secrets = self.secrets("tcp")
        if secrets is None:
            return FORMS[0]
        if self._form is None:
            asked = [entry for entry in self.sockets("tcp") if entry["state"] != TCP_LISTEN][:64]
            fitting = [form for form in FORMS if all(self._ehash(e, secrets, form) == int(e["hash"]) for e in asked)]
            if len(fitting) > 1 or not asked:
                return fitting[0]
            self._form = fitting[0] if fitting else FORMS[0]
        return self._form

    def _ehash(self, entry: Entry, secrets: Secrets, form: Form) -> int:
        return ehashfn(
            local_of(entry), int(entry["port"]), far_of(entry), int(entry["peer_port"]), self.hash_mix, secrets, form
        )

    def computed(self, protocol: Protocol, entry: Entry) -> dict[Kind, int | None]:
        """Return the slots on which a socket must be by our arithmetic; None where a secret is missing."""
        if protocol == "udp":
            portaddr = portaddr_hash(local_of(entry), int(entry["port"]), self.hash_mix)
            slots: dict[Kind, int | None] = {
                Kind.UDP_PORT: udp_hashfn(int(entry["port"]), self.hash_mix, self.mask(Kind.UDP_PORT)),
                Kind.UDP_ADDRESS: portaddr & self.mask(Kind.UDP_ADDRESS),
            }
            if entry["slot"][2] >= 0:
                slots[Kind.UDP_FOUR] = self._computed_four(entry)
            return slots
        if entry["state"] == TCP_LISTEN:
            portaddr = portaddr_hash(local_of(entry), int(entry["port"]), self.hash_mix)
            return {Kind.TCP_LISTEN: portaddr & self.mask(Kind.TCP_LISTEN)}
        secrets = self.secrets("tcp")
        if secrets is None:
            return {Kind.TCP_ESTABLISHED: None}
        whole = self._ehash(entry, secrets, self.form("tcp"))
        return {Kind.TCP_ESTABLISHED: whole & self.mask(Kind.TCP_ESTABLISHED)}

    def _computed_four(self, entry: Entry) -> int | None:
        """The slot by four values; None where the secret is missing."""
        secrets = self.secrets("udp")
        if secrets is None:
            return None
        return self._ehash(entry, secrets, self.form("udp")) & self.mask(Kind.UDP_FOUR)

    def real(self, protocol: Protocol, entry: Entry) -> dict[Kind, int]:
        """Return the slots on which the kernel has a socket that `sockets` found; -1: on none."""
        first, second, third = (int(slot) for slot in entry["slot"])
        if protocol == "udp":
            return {Kind.UDP_PORT: first, Kind.UDP_ADDRESS: second} | ({Kind.UDP_FOUR: third} if third >= 0 else {})
        return {Kind.TCP_LISTEN if entry["state"] == TCP_LISTEN else Kind.TCP_ESTABLISHED: first}


def _address(entry: Entry, words: npt.NDArray[Any]) -> Address:
    raw = words.astype("=u4").tobytes()
    if entry["family"] == AF_INET6:
        return ipaddress.IPv6Address(raw)
    return ipaddress.IPv4Address(raw[:4])


def local_of(entry: Entry) -> Address:
    """Return the address that a socket is bound to."""
    return _address(entry, entry["address"])


def far_of(entry: Entry) -> Address:
    """Return the address that a socket is connected to; the wildcard where it is not."""
    return _address(entry, entry["peer"])


def table_symbols() -> dict[str, int]:
    """Return the addresses of SYMBOLS by their first names; 0: /proc/kallsyms does not say. Noted once a boot."""
    first = {name: names[0] for names in SYMBOLS for name in names}

    def find(_: Sequence[str]) -> dict[str, int]:
        return {first[name]: address for name, address in kernel_symbols.from_kallsyms(list(first)).items()}

    return kernel_symbols.noted_symbols("symbols", [names[0] for names in SYMBOLS], find)
