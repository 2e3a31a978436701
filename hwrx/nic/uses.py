"""Whether a NIC is in use: by itself, or by anything that stands on its network device."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

from hwrx.host import owners, tools
from hwrx.nic.belongings import NETDEVS, Tables
from hwrx.verbs import rxe

PACKET_SOCKETS = Path("/proc/thread-self/net/packet")
# kinds that stand on another device, wherever they are; the two ends of a veth pair do not
UPPER_KINDS = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec")


def find_uses(netdev: str, tables: Tables, own: Collection[str] = ()) -> list[str]:
    """Return why a network device should not be taken, in words; empty if nothing speaks against it.

    :param own: addresses that the caller put there, and that do not count.
    """
    reasons = []
    if any(route.get("dst") == "default" for route in tables.routes):
        reasons.append("it carries the default route")
    addresses = [address for address in tables.addresses_given() if address.split("/")[0] not in own]
    if addresses:
        reasons.append(f"it has the address {', '.join(addresses)}")
    if routes := [str(route["dst"]) for route in tables.routes_given() if route.get("dst") != "default"]:
        reasons.append(f"it carries the route to {', '.join(routes)}")
    connections = _connections({address.split("/")[0] for address in addresses})
    if connections:
        reasons.append(f"{connections} open connection{'s use' if connections > 1 else ' uses'} its address")
    reasons += _uppers(netdev, tables)
    reasons += _programs(netdev, tables)
    reasons += _sockets(netdev, tables)
    device = rxe.on_netdev(netdev)
    if device is not None and (users := rxe.users_of(device)):
        reasons.append(f"the verbs device {device} on it has queue pairs of {', '.join(users)}")
    return reasons


def _uppers(netdev: str, tables: Tables) -> list[str]:
    """What stands on it: VLAN, macvlan, bond, bridge, team, also where only another network namespace shows it."""
    reasons = []
    master = tables.link.get("master")
    if master:
        kind = "a bridge" if (NETDEVS / master / "bridge").exists() else "a bond or team"
        reasons.append(f"it belongs to {master}, {kind}" if (NETDEVS / master).exists() else f"it belongs to {master}")
    upper = sorted(path.name.removeprefix("upper_") for path in (NETDEVS / netdev).glob("upper_*"))
    if standing := [name for name in upper if name != master]:
        reasons.append(f"{', '.join(standing)} {'stand' if len(standing) > 1 else 'stands'} on it")
    if elsewhere := _uppers_elsewhere(int(tables.link.get("ifindex", 0))):
        reasons.append(f"{', '.join(elsewhere)} in another network namespace stands on it")
    return reasons


def _uppers_elsewhere(index: int) -> list[str]:
    """Devices of other namespaces whose lower device has this number, and is of a namespace that is not theirs."""
    seen = {_link(Path("/proc/thread-self/ns/net"))}
    found = []
    for folder in sorted(Path("/proc").glob("[0-9]*")):
        space = _link(folder / "ns/net")
        if space is None or space in seen:
            continue
        seen.add(space)
        shown = subprocess.run(
            ["nsenter", f"--net={folder}/ns/net", "ip", "-json", "-details", "link", "show"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        for link in json.loads(shown.stdout or "[]") if not shown.returncode else []:
            kind = link.get("linkinfo", {}).get("info_kind")
            if kind in UPPER_KINDS and link.get("link_index") == index and "link_netnsid" in link:
                found.append(f"{link['ifname']} ({kind})")
    return found


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:  # it has ended, or is another user's
        return None


def _programs(netdev: str, tables: Tables) -> list[str]:
    """Programs and queueing disciplines of others that lie on its way and could not be given back."""
    reasons = []
    if "xdp" in tables.link:
        number = tables.link["xdp"].get("prog", {}).get("id", "?")
        reasons.append(f"the XDP program {number} is attached to it")
    kinds = {qdisc["kind"] for qdisc in tables.qdiscs}
    if found := sorted(kinds & {"clsact", "ingress"}):
        reasons.append(f"it has filters of traffic control ({', '.join(found)})")
    # what the kernel puts there itself has no handle; of the others only the root of a tree without branches comes back
    chosen = [qdisc for qdisc in tables.qdiscs if qdisc.get("handle", "0:") != "0:" and qdisc["kind"] not in found]
    if len(chosen) > 1 or any(not qdisc.get("root") for qdisc in chosen):
        reasons.append(f"it has a tree of queueing disciplines ({', '.join(qdisc['kind'] for qdisc in chosen)})")
    return reasons


def _sockets(netdev: str, tables: Tables) -> list[str]:
    """Packet sockets and AF_XDP sockets that are bound to it, of other processes."""
    reasons = []
    index = str(tables.link.get("ifindex"))
    bound = []
    for line in PACKET_SOCKETS.read_text(encoding="ascii").splitlines()[1:]:
        # sk, references, type, protocol, interface, running, memory, user, inode
        columns = line.split()
        if columns[4] == index:
            bound.append(int(columns[8]))
    holders = owners.owners_of(bound)
    owning = [owner for inode in bound for owner in holders[inode] if owner.pid != os.getpid()]
    others = sorted({f"{owner.name} (process {owner.pid})" for owner in owning})
    if others:
        reasons.append(f"packet sockets of {', '.join(others)} are bound to it")
    shown = subprocess.run(
        [tools.find_tool("ss"), "--xdp", "--numeric", "--no-header"], capture_output=True, text=True, check=False
    ).stdout
    if re.search(rf"(?<![\w.]){re.escape(netdev)}:q?\d+", shown):
        reasons.append("an AF_XDP socket is bound to it")
    return reasons


def _connections(addresses: set[str]) -> int:
    """TCP connections from any of the addresses."""
    if not addresses:
        return 0
    command = [tools.find_tool("ss"), "--numeric", "--no-header", "--tcp", "state", "established"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # columns: receive queue, send queue, local address and port, remote address and port
    rows = [line.split() for line in done.stdout.splitlines()]
    local = [row[2].rsplit(":", 1)[0].strip("[]").split("%")[0] for row in rows if len(row) >= 4]
    return sum(address in addresses for address in local)
