"""What decides on a packet, read from the running kernel: tables, groups, secrets, and the destination's kind."""

from __future__ import annotations

import functools
import ipaddress
import json
from pathlib import Path

import msgspec

from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.host.ipv6 import why_no_ipv6
from hwrx.lookup.hashes import Address, ehashfn, portaddr_hash, udp_hashfn, words_of
from hwrx.lookup.table import Entries, Group, Kind, Protocol, Tables
from hwrx.lookup.winner import LOOPBACK, Packet, View

OURS = Path("/proc/thread-self/net")  # of this thread's network namespace
SYSCTLS = Path("/proc/sys/net/ipv4")
EARLY_MOST = 10  # sockets on a slot by port, where early demux looks for multicast's listeners
BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def read_view(tables: Tables, protocol: Protocol, packet: Packet, kind: str | None = None) -> View:
    """Read what decides on a packet, in the network namespace whose tables are open.

    :param kind: of the destination, if it is known already (`address_kind`)
    :return: a view that reads chains and groups when it is asked for them, each once
    :raises MachineError: if a table is not where it is looked for
    """
    kind = kind or address_kind(packet.destination, packet.device)
    several = kind in ("multicast", "broadcast")
    asked = Group(packet.destination, packet.source, packet.device) if kind == "multicast" else None
    secrets = tables.secrets(protocol)

    def hashed(near: Address) -> int | None:
        if packet.source is None or secrets is None:
            return None
        if not (secrets.ehash if near.version == 4 else secrets.ehash6 and secrets.address6):
            return None  # drawn when the first packet needs it
        four = near, packet.port, packet.source, packet.source_port
        return ehashfn(*four, tables.hash_mix, secrets, tables.form(protocol))

    @functools.cache
    def chain(address: Address) -> Entries:
        which = Kind.UDP_ADDRESS if protocol == "udp" else Kind.TCP_LISTEN
        return tables.chain(which, portaddr_hash(address, packet.port, tables.hash_mix) & tables.mask(which)).entries

    return View(
        protocol, tables.namespace, tables.sockets(protocol, packet.port, asked), chain, tables.group, hashed,
        tables.redirected, demux_switches(protocol) == [], several,
        kind != "multicast" or is_member(packet.destination, packet.device),
        kind == "multicast" and packet.destination.version == 4 and _is_looked_through(tables, packet.port),
    )  # fmt: skip


def _is_looked_through(tables: Tables, port: int) -> bool:
    """Whether early demux looks for the one listener to a multicast group (__udp4_lib_mcast_demux_lookup)."""
    slot = udp_hashfn(port, tables.hash_mix, tables.mask(Kind.UDP_PORT))
    return tables.rechosen and len(tables.chain(Kind.UDP_PORT, slot, EARLY_MOST + 1).entries) <= EARLY_MOST


def demux_switches(protocol: Protocol) -> list[str]:
    """Return the settings that switch early demux off; none: it is on."""
    names = ("ip_early_demux", f"{protocol}_early_demux")
    return [name for name in names if (SYSCTLS / name).read_text().strip() == "0"]


def address_kind(address: Address, device: int = 0) -> str:
    """Return what an address is to this network namespace: local, broadcast, multicast, or else (`unicast`, no route).

    Source: the kernel's own routes (RTM_GETROUTE), which for a local address say so whatever device it came in by.
    """
    if address.is_multicast:
        return "multicast"
    if address == BROADCAST:
        return "broadcast"
    if address.is_loopback:
        return "local"
    words = ["ip", "-json", f"-{address.version}", "route", "get", str(address)]
    if address.is_link_local and device:
        words += ["oif", device_name(device)]
    try:
        found = json.loads(tools.run_tool(*words))
    except (MachineError, ValueError):
        return "unreachable"
    return str(found[0].get("type", "unicast")) if found else "unreachable"


def why_not_taken(packet: Packet) -> str:
    """Say why no packet of this one's family comes in by its device; "" if they do."""
    if packet.destination.version == 4:
        return ""
    return why_no_ipv6(device_name(packet.device) if packet.device else "all")


def device_name(device: int) -> str:
    """Return the name of a network device by its number; the number where there is none such."""
    for line in (OURS / "dev").read_text().splitlines()[2:]:
        name = line.partition(":")[0].strip()
        if device_number(name) == device:
            return name
    return str(device)


def device_number(name: str) -> int:
    """Return a network device's number in this thread's namespace, 0 where there is none of that name."""
    import socket

    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def is_member(group: Address, device: int) -> bool:
    """Whether a device takes the packets of a multicast group: ip_check_mc_rcu, ipv6_chk_mcast_addr."""
    if isinstance(group, ipaddress.IPv6Address):
        rows = [line.split() for line in (OURS / "igmp6").read_text().splitlines()]
        return any(int(row[0]) == device and row[2] == group.packed.hex() for row in rows)
    at = 0
    for line in (OURS / "igmp").read_text().splitlines()[1:]:
        words = line.split()
        if not line.startswith("\t"):
            at = int(words[0])
        elif at == device and int(words[0], 16) == words_of(group)[0]:
            return True
    return False


def device_of(address: Address) -> int:
    """Return the number of the device that an address of this namespace is on; 0: it is no address of it.

    A packet from this machine to one of its own addresses goes over `lo`, and is looked up as if by this device
    (rt_iif in ip_route_output_key_hash_rcu; of IPv6 the address's own idev).
    """
    if address.is_loopback:
        return LOOPBACK
    return next((device for device, each in _addresses(address.version) if each == str(address)), 0)


def address_on(device: int, version: int) -> Address | None:
    """Return the first address that a device has of a family (4, 6); None: it has none."""
    there = (each for number, each in _addresses(version) if number == device)
    return next(map(ipaddress.ip_address, there), None)


def _addresses(version: int) -> list[tuple[int, str]]:
    """The addresses of this namespace, each with its device."""
    listed = json.loads(tools.run_tool("ip", "-json", f"-{version}", "address", "show") or "[]")
    return [
        (int(link["ifindex"]), str(each["local"]))
        for link in listed
        for each in link.get("addr_info", ())
        if "local" in each
    ]


def with_device(packet: Packet) -> Packet:
    """Return the packet with what follows from its addresses: a loopback address is on `lo`, and nowhere else."""
    if packet.device or not packet.destination.is_loopback:
        return packet
    return msgspec.structs.replace(packet, device=LOOPBACK, looped=True)
