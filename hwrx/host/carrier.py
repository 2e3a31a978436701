"""Why a network device's link is down, and what brings it up: it may be switched on, and have nothing to send over."""

from __future__ import annotations

from pathlib import Path

NETDEVS = Path("/sys/class/net")
IFF_UP = 1  # linux/if.h


def carrier_remedy(netdev: str) -> str:
    """Return what to type or do so that the link of a network device comes up.

    :param netdev: its name; of one that is not there, or that this process cannot see, the words are general ones
    """
    folder = NETDEVS / netdev
    try:
        on = int((folder / "flags").read_text(encoding="ascii"), 16) & IFF_UP
    except (OSError, ValueError):
        on = 0
    if not on:
        return f"ip link set {netdev} up"
    if (folder / "bonding").is_dir() or (folder / "bridge").is_dir() or list(folder.glob("lower_*")):
        return f"{netdev} is switched on, and none of the devices beneath it has a link: ip link show master {netdev}"
    return f"{netdev} is switched on, and has no carrier: plug its cable in, or switch the other end on"
