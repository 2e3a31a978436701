"""Which frames a NIC takes, and which of them the kernel keeps: by address, with and without a process behind them."""

from __future__ import annotations

import contextlib
import re
import socket
import time

from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Bars
from hwrx.claims.session import Session
from hwrx.host import tools
from hwrx.wires import topology

SETTLE = 0.2  # seconds after which all frames are through
STRANGER = "02:68:77:72:78:ee"  # nobody's address
SOMEWHERE = 40_999  # a port that nobody is bound to


def frames(session: Session, count: int = 100, size: int = 64) -> Measurement:
    """Send frames by a packet socket to the other NIC, which the kernel drives, and read what the NIC itself counted.

    Figures, shares of `sent`: `taken_bound` (a process waits at the port), `taken_unbound` (none does), `taken_foreign`
    (another's address), `taken_promiscuous` (the same, promiscuous); `delivered_bound`, `delivered_promiscuous` to the
    socket; `taken_renamed` (by the new address, after the NIC was given one) and `taken_old` (by the one before).
    """
    from cython_ext.packet import udp_frame, udp_template
    from cython_ext.payload import make

    wire = session.wire
    here, there = wire.places["client"].address, wire.places["server"].address
    device, mac = wire.netdev("server"), topology.NIC_HARDWARE["server"]
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
            template = udp_template(topology.NIC_HARDWARE["client"], to, here, there, 40_000, to_port)
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
        stack.close()
        tools.run_tool("ip", "link", "set", device, "promisc", "on")
        stack.callback(tools.run_tool, "ip", "link", "set", device, "promisc", "off")
        run("promiscuous", STRANGER, port)
    rows = [
        ("to the NIC's address, a process waits", found["taken_bound"]),
        ("to the NIC's address, nobody waits", found["taken_unbound"]),
        ("to another's address", found["taken_foreign"]),
        ("to another's address, promiscuous", found["taken_promiscuous"]),
        ("given another address: to that", found["taken_renamed"]),
        ("given another address: to the one before", found["taken_old"]),
    ]
    figures: dict[str, float | int | bool | str | None] = {"sent": count, **found}
    return Measurement(figures, Bars(rows, "share of the frames that the NIC took", [0, 0, 1, 1, 2, 2]))


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
