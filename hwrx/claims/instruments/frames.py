"""Which frames a NIC takes, and which of them the kernel keeps: by address, with and without a process behind them."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time

from hwrx.claims.figures import give_figures
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.host import tools
from hwrx.wires import guest_nics

SETTLE = 0.2  # seconds after which all frames are through
STRANGER = "02:68:77:72:78:ee"  # nobody's address
# linux/rtnetlink.h, linux/if_link.h
RTM_GETLINK, NLM_F_REQUEST, NETLINK_ROUTE, IFLA_STATS64 = 18, 1, 0, 23
OTHERHOST = 24  # words of struct rtnl_link_stats64 in front of rx_otherhost_dropped
SOMEWHERE = 40_999  # a port that nobody is bound to


@give_figures(
    "sent",
    "permanent_kept",
    "otherhost_promiscuous",
    "taken_bound",
    "delivered_bound",
    "taken_unbound",
    "delivered_unbound",
    "taken_foreign",
    "delivered_foreign",
    "taken_renamed",
    "delivered_renamed",
    "taken_old",
    "delivered_old",
    "taken_promiscuous",
    "delivered_promiscuous",
)
def frames(session: Session, count: int = 100, size: int = 64) -> Measurement:
    """Send frames by a packet socket to the other NIC, which the kernel drives, and read what the NIC itself counted.

    Figures, shares of `sent`: `taken_bound` (a process waits at the port), `taken_unbound` (none does), `taken_foreign`
    (another's address), `taken_promiscuous` (the same, promiscuous); `delivered_bound`, `delivered_promiscuous` to the
    socket; `taken_renamed` (by the new address, after the NIC was given one) and `taken_old` (by the one before);
    `permanent_kept` (1: the NIC's permanent address was still the old one then); `otherhost_promiscuous`, the share of
    the frames that IP itself counted as another host's (rx_otherhost_dropped, ip_rcv_core).
    """
    from cython_ext.core.payload import make
    from cython_ext.frames.packet import udp_frame, udp_template

    wire = session.wire
    here, there = wire.places["client"].address, wire.places["server"].address
    device, mac = wire.netdev("server"), guest_nics.NIC_HARDWARE["server"]
    found: dict[str, float] = {}
    with (
        wire.socket("server") as bound,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        contextlib.ExitStack() as stack,
    ):
        sender.bind((wire.netdev("client"), 0))
        bound.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        bound.setblocking(False)
        port = bound.getsockname()[1]

        def run(name: str, to: str, to_port: int) -> None:
            template = udp_template(guest_nics.NIC_HARDWARE["client"], to, here, there, 40_000, to_port)
            before = _taken(device)
            for number in range(count):
                sender.send(udp_frame(template, make(size, number)))
            time.sleep(SETTLE)
            found[f"taken_{name}"] = (_taken(device) - before) / count
            found[f"delivered_{name}"] = _drain(bound) / count

        run("bound", mac, port)
        run("unbound", mac, SOMEWHERE)
        run("foreign", STRANGER, port)
        tools.run_tool("ip", "link", "set", device, "address", STRANGER)
        stack.callback(tools.run_tool, "ip", "link", "set", device, "address", mac)
        run("renamed", STRANGER, port)
        run("old", mac, port)
        kept = mac in tools.run_tool("ethtool", "-P", device).lower()
        stack.close()
        tools.run_tool("ip", "link", "set", device, "promisc", "on")
        stack.callback(tools.run_tool, "ip", "link", "set", device, "promisc", "off")
        before = _other_hosts(device)
        run("promiscuous", STRANGER, port)
        others = None if before is None else (_other_hosts(device) or 0) - before
    rows = [
        ("to the NIC's address, a process waits", found["taken_bound"]),
        ("to the NIC's address, nobody waits", found["taken_unbound"]),
        ("to another's address", found["taken_foreign"]),
        ("to another's address, promiscuous", found["taken_promiscuous"]),
        ("given another address: to that", found["taken_renamed"]),
        ("given another address: to the one before", found["taken_old"]),
    ]
    figures: dict[str, float | int | bool | str | None] = {
        "sent": count, **found, "permanent_kept": int(kept),
        "otherhost_promiscuous": None if others is None else others / count,
    }  # fmt: skip
    absent = {"otherhost_promiscuous": "this kernel does not count frames for other hosts"} if others is None else {}
    return Measurement(figures, Bars(rows, "share of the frames that the NIC took", [0, 0, 1, 1, 2, 2]), absent)


def _other_hosts(device: str) -> int | None:
    """Frames for other hosts that IP dropped: rx_otherhost_dropped, the last of rtnl_link_stats64; None before 5.19."""
    request = struct.pack("IHHII", 32, RTM_GETLINK, NLM_F_REQUEST, 1, 0)
    request += struct.pack("BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(device), 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as link:
        link.send(request)
        answer = link.recv(1 << 16)
    at = 32
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("HH", answer, at)
        if kind == IFLA_STATS64 and length >= 4 + 8 * OTHERHOST + 8:
            return int(struct.unpack_from("Q", answer, at + 4 + 8 * OTHERHOST)[0])
        at += max(4, length + 3 & ~3)
    return None


def _taken(device: str) -> int:
    """Packets that the NIC says it has received (its register GPRC)."""
    found = re.search(r"^\s*rx_packets: (\d+)$", tools.run_tool("ethtool", "-S", device), re.MULTILINE)
    return int(found[1]) if found else 0


def _drain(sock: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(65536)
            count += 1
    return count
