"""What one end of a verbs path tells the other, and what follows: device, GID, MTU, and whether they fit."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypedDict, TypeVar

import msgspec
from msgspec import Meta

from hwrx.control.places import Place
from hwrx.control.queue_pair import MOST_CONNECTIONS
from hwrx.errors import MachineError, PathError, PeerError, UsageError

Number24 = Annotated[int, Meta(ge=0, lt=1 << 24)]
Number32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
COUNTERS = ("sent_pkts", "duplicate_request", "out_of_seq_request", "completer_retry_err")
MODULE = Path("/sys/module/rdma_rxe")
SHORT_CUT = (
    "rxe hands a packet whose destination MAC is its own over to itself, without IP, UDP or the network stack"
    " (RXE_LOOPBACK_MASK), so nothing of the network would be measured"
)


class GidEntry(Protocol):
    """What `cython_ext.verbs.verbs_device.Gid` has."""

    @property
    def number(self) -> int:
        """Its place in the port's table."""

    @property
    def raw(self) -> bytes:
        """The 16 bytes."""

    @property
    def type(self) -> str:
        """'IB', 'RoCE v1' or 'RoCE v2'."""


Entry = TypeVar("Entry", bound=GidEntry)


class End(msgspec.Struct, frozen=True, kw_only=True):
    """One end, as the other must know it. `address`, `rkey`, `slots`, `stride` tell where WRITE and READ go."""

    path: str
    size: int
    device: str
    port: int
    node_guid: str
    mac: str
    boot: str  # of the running kernel: equal only on the same machine
    rxe: bool
    gid: str  # 32 hexadecimal digits
    lid: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    mtu: int
    qpn: Number24
    psn: Number24
    reads: Annotated[int, Meta(ge=0, le=255)] = 1  # READs that it answers at a time
    address: Annotated[int, Meta(ge=0)] = 0
    rkey: Number32 = 0
    slots: Annotated[int, Meta(ge=0)] = 0
    stride: Annotated[int, Meta(ge=0)] = 0
    cm_port: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0  # on which it listens, if RDMA-CM is to connect
    # of many connections, the others': queue pair and first packet sequence number
    more: Annotated[list[tuple[Number24, Number24]], Meta(max_length=MOST_CONNECTIONS - 1)] = []

    @property
    def address_text(self) -> str:
        """The GID as people write it: an IP address."""
        return gid_text(bytes.fromhex(self.gid))


class OwnEnd(TypedDict):
    """The fields of an End that its transport knows; the others are of the device and the machine."""

    path: str
    size: int
    qpn: int
    psn: int
    reads: int
    address: int
    rkey: int
    slots: int
    stride: int
    more: NotRequired[list[tuple[int, int]]]
    cm_port: NotRequired[int]


def parse_end(remote: dict[str, Any]) -> End:
    """Check what came over the control pipe; PeerError names the field that is wrong."""
    try:
        end = msgspec.convert(remote, End)
        if len(bytes.fromhex(end.gid)) != 16:
            raise ValueError("a GID has 16 bytes")
    except (msgspec.ValidationError, ValueError) as error:
        raise PeerError(f"the other end describes no verbs endpoint: {error}") from None
    return end


def hw_counters(device: str, port: int) -> dict[str, int]:
    """Read those of a port's hardware counters that tell of packets sent again; a device has some of them, or none.

    For rxe they are the driver's (drivers/infiniband/sw/rxe/rxe_hw_counters.c). The names get `hw_` in front.
    """
    folder = Path(f"/sys/class/infiniband/{device}/ports/{port}/hw_counters")
    found = {}
    for name in COUNTERS:
        with contextlib.suppress(OSError, ValueError):
            found[f"hw_{name}"] = int((folder / name).read_text(encoding="utf-8"))
    return found


def gid_text(raw: bytes) -> str:
    """A GID as people write it: the IPv4 address where it holds one, else as IPv6."""
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address however it is written; a GID has no zone (`%eth1`). None if it is not one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _rank(gid: GidEntry, wanted: str) -> tuple[int, int]:
    address = ipaddress.IPv6Address(gid.raw)
    if (address.ipv4_mapped or address) == _read_address(wanted):
        order = 0
    elif address.ipv4_mapped:
        order = 1
    elif not address.is_link_local:
        order = 2
    else:
        order = 3
    return order, gid.number


def gid_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network that a setting's `gid` names: an address alone is a network of one.

    :raises UsageError: if it is not an address or a network
    """
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UsageError(f"gid: '{text}': {error}", remedy="an address, or a network such as 192.0.2.0/24") from None


def _within(gid: GidEntry, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    address = ipaddress.ip_address(gid_text(gid.raw))
    return address.version == network.version and address in network


def choose_gid(
    gids: Sequence[Entry], *, where: str, ethernet: bool, index: int | None, address: str, network: str | None = None
) -> Entry:
    """Choose the port's GID: `index` where the user says so; else RoCE v2 (IB on InfiniBand).

    Routable comes before link-local: first the one that is `address`, then IPv4, then global IPv6. `where` names device
    and port. Of a `network` only GIDs within it are chosen from.

    :raises UsageError: if the table has no such entry, and says what it has
    :raises MachineError: if it has none of the right type
    """
    table = ", ".join(f"{gid.number}: {gid_text(gid.raw)} ({gid.type})" for gid in gids) or "empty"
    if index is not None:
        for gid in gids:
            if gid.number == index:
                return gid
        raise UsageError(f"{where} has no GID {index}; its table is {table}", remedy="leave --gid-index out")
    kind = "RoCE v2" if ethernet else "IB"
    fitting = [gid for gid in gids if gid.type == kind]
    if not fitting:
        raise MachineError(
            f"{where} has no GID of type {kind}; its table is {table}",
            remedy="give its netdev an address ('ip addr add ADDRESS/24 dev NETDEV') and bring it up",
        )
    if network is not None:
        within = gid_network(network)
        fitting = [gid for gid in fitting if _within(gid, within)]
        if not fitting:
            raise UsageError(
                f"{where} has no GID of type {kind} that is {network}, or lies within it; its table is {table}",
                remedy="another address or network, or leave --gid out",
            )
    return min(fitting, key=lambda gid: _rank(gid, address))


def choose_mtu(here: int, wanted: int | None, where: str) -> int:
    """Bytes of payload a packet that this end can do: the port's, or `wanted` where the port can."""
    if wanted is not None and wanted > here:
        raise UsageError(
            f"{where} has an MTU of {here} bytes, {wanted} are asked for",
            remedy="a smaller --mtu, or a larger MTU of its netdev ('ip link set NETDEV mtu 4500' for 4096)",
        )
    return wanted or here


def agree_ends(here: End, there: End) -> int:
    """Check that the two ends fit each other; their common MTU. Refuses rxe's short-cut."""
    if here.path != there.path or here.size != there.size:
        raise PeerError(
            f"the ends do not fit: {here.path} with {here.size} bytes here, {there.path} with {there.size} there"
        )
    same = here.node_guid == there.node_guid or (here.mac and here.mac == there.mac) or here.gid == there.gid
    if here.boot == there.boot and same and here.rxe:
        raise UsageError(
            f"both ends stand on the rxe device {here.device}: {SHORT_CUT}",
            remedy="give each end a device of its own, for example rxe0 and rxe1 on the two ends of a veth pair"
            " (topology 'pair')",
        )
    mine, other = (ipaddress.IPv6Address(bytes.fromhex(end.gid)) for end in (here, there))
    if bool(mine.ipv4_mapped) != bool(other.ipv4_mapped) or mine.is_link_local != other.is_link_local:
        raise PathError(
            f"the ends have GIDs of different kinds: {mine.ipv4_mapped or mine} on {here.device},"
            f" {other.ipv4_mapped or other} on {there.device}",
            remedy="give both netdevs an address of one network, or choose both with --gid-index",
        )
    return min(here.mtu, there.mtu)


def netdevs_of(device: str) -> set[str]:
    """Return the netdevs that the GIDs of a verbs device belong to: its ports', and VLANs on them."""
    found = set()
    for entry in Path(f"/sys/class/infiniband/{device}/ports").glob("*/gid_attrs/ndevs/*"):
        with contextlib.suppress(OSError):  # an empty entry of the table reads as EINVAL
            found.add(entry.read_text(encoding="utf-8").strip())
    return found - {""}


def choose_device(place: Place, names: Sequence[str]) -> str:
    """Which device a place means: the one it names, the one on its netdev, or the only one there is."""
    if not names:
        raise no_device()
    if place.verbs is not None:
        if place.verbs not in names:
            raise MachineError(
                f"there is no verbs device '{place.verbs}'; there are {', '.join(names)}",
                remedy="'hwrx devices' lists them; 'hwrx rxe up NETDEV' makes one",
            )
        return place.verbs
    if place.netdev is not None:
        for name in names:
            if place.netdev in netdevs_of(name):
                return name
        raise MachineError(
            f"no verbs device stands on {place.netdev}; there are {', '.join(names)}",
            remedy=f"hwrx rxe up {place.netdev}",
        )
    if len(names) > 1:
        raise UsageError(f"there are several verbs devices: {', '.join(names)}", remedy="name one with --device")
    return names[0]


def no_device() -> MachineError:
    """Say that this machine has no verbs device, and what would give it one."""
    if MODULE.exists() or _module_file(MODULE.name):
        return MachineError("this machine has no verbs device", remedy="hwrx rxe up NETDEV makes a SoftRoCE device")
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="utf-8").strip()
    return MachineError(
        f"this machine has no verbs device, and its kernel {release} has no module rdma_rxe",
        remedy="'lab/run' measures in a virtual machine whose kernel has it",
    )


def _module_file(name: str) -> bool:
    release = Path("/proc/sys/kernel/osrelease").read_text(encoding="utf-8").strip()
    for listing in ("modules.dep", "modules.builtin"):
        try:
            if f"/{name}.ko" in Path(f"/lib/modules/{release}/{listing}").read_text(encoding="utf-8"):
                return True
        except OSError:
            continue
    return False
