"""A namespace that forwards between two others: what lies between the ends of the topology `router`.

Each end has a veth pair to the router, whose two addresses are of two networks: what one end sends to the other is for
the router by its MAC address and for the other end by its IP address, so that the router forwards it (ip_forward).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hwrx.control.messages import ENDS, Role
from hwrx.control.places import Place
from hwrx.host import netns, tools
from hwrx.host.undo import Undo

# 198.18.0.0/15 is set aside for benchmarks of networks (RFC 2544)
ADDRESSES: dict[Role, str] = {"client": "198.18.81.1", "server": "198.18.82.2"}
GATEWAYS: dict[Role, str] = {"client": "198.18.81.254", "server": "198.18.82.254"}
HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:40", "server": "02:68:77:72:78:41"}
GATEWAY_HARDWARE: dict[Role, str] = {"client": "02:68:77:72:78:42", "server": "02:68:77:72:78:43"}
LINKS: dict[Role, str] = {"client": "hwrx0", "server": "hwrx1"}
ROUTER_LINKS: dict[Role, str] = {"client": "hwrouter0", "server": "hwrouter1"}


@contextlib.contextmanager
def routed_namespaces(mtu: int) -> Iterator[tuple[dict[Role, Place], dict[Role, str], str]]:
    """Put up three namespaces and two veth pairs, and switch forwarding on in the middle.

    :yields: the places of both ends, the names of their namespaces, and that of the router's
    """
    tools.need_root("making network namespaces")
    with Undo("a router between two network namespaces") as undo:
        names: dict[Role, str] = {"client": f"hwrx-a-{undo.token}", "server": f"hwrx-b-{undo.token}"}
        middle = f"hwrx-r-{undo.token}"
        for name in (middle, *names.values()):
            undo.plan("ip", "netns", "delete", name)
            tools.run_tool("ip", "netns", "add", name)
        for end in ENDS:
            near = ["name", LINKS[end], "mtu", str(mtu), "address", HARDWARE[end]]
            far = ["name", ROUTER_LINKS[end], "mtu", str(mtu), "address", GATEWAY_HARDWARE[end], "netns", middle]
            # each end is created inside: at no time is it visible outside
            tools.run_tool("ip", "-n", names[end], "link", "add", *near, "type", "veth", "peer", *far)
        with netns.entered_namespace(middle):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="utf-8")
        for end in ENDS:
            _configure(end, names[end], middle)
        tools.wait_until(
            lambda: all("state UP" in tools.run_tool("ip", "-n", names[end], "-o", "link", "show", LINKS[end])
                        and "state UP" in tools.run_tool("ip", "-n", middle, "-o", "link", "show", ROUTER_LINKS[end])
                        for end in ENDS),
            "the carrier of the router's wires",
        )  # fmt: skip
        yield {end: Place(address=ADDRESSES[end], netdev=LINKS[end]) for end in ENDS}, names, middle


def _configure(end: Role, name: str, middle: str) -> None:
    """Give both sides of one wire their addresses, each other's hardware address, and the end its way out."""
    lines = [
        "link set lo up",
        f"address add {ADDRESSES[end]}/24 dev {LINKS[end]}",
        f"link set {LINKS[end]} up",
        f"neighbour replace {GATEWAYS[end]} lladdr {GATEWAY_HARDWARE[end]} dev {LINKS[end]} nud permanent",
        f"route add default via {GATEWAYS[end]} dev {LINKS[end]}",
    ]
    tools.run_tool("ip", "-n", name, "-batch", "-", given="\n".join(lines))
    lines = [
        f"address add {GATEWAYS[end]}/24 dev {ROUTER_LINKS[end]}",
        f"link set {ROUTER_LINKS[end]} up",
        f"neighbour replace {ADDRESSES[end]} lladdr {HARDWARE[end]} dev {ROUTER_LINKS[end]} nud permanent",
    ]
    tools.run_tool("ip", "-n", middle, "-batch", "-", given="\n".join(lines))
