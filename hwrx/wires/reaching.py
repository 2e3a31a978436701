"""Waiting for the network devices of a topology: that they are there, and that a datagram comes across."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from hwrx.errors import MachineError
from hwrx.host import tools

NETDEVS = Path("/sys/class/net")


def carries_datagram(netdev: str, address: str, to_netdev: str, to_address: str) -> bool:
    """Whether a datagram comes from one device to the other; both are of this network namespace, and have addresses."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reader,
    ):
        try:
            for sock, device, own in ((sender, netdev, address), (reader, to_netdev, to_address)):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
                sock.bind((own, 0))
            reader.settimeout(0.2)
            sender.sendto(b"?", reader.getsockname())
            return reader.recv(2) == b"?"
        except OSError:  # TimeoutError among them
            return False


def find_netdev(mac: str) -> str:
    """Return the name of the network device with a MAC address.

    :raises MachineError: if none comes up
    """
    deadline = time.monotonic() + tools.PATIENCE
    while time.monotonic() < deadline:
        for path in sorted(NETDEVS.glob("*")):
            with contextlib.suppress(OSError):
                if (path / "address").read_text(encoding="utf-8").strip() == mac:
                    return path.name
        time.sleep(0.05)
    raise MachineError(
        f"there is no network device with the address {mac}", remedy="the topology `nic` needs the guest that has it"
    )
