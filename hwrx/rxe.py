"""SoftRoCE: the kernel's verbs device in software, put on a netdev and taken away."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hwrx import system
from hwrx.errors import MachineError, UsageError
from hwrx.topology import VERBS, add_rxe, load_rxe, remove_rxe, wait_for_gid

NETDEVS = Path("/sys/class/net")


def netdev_of(device: str) -> str | None:
    """Return the netdev under a verbs device; None where it has none (InfiniBand), or there is no such device."""
    for place in (f"{device}/ports/1/gid_attrs/ndevs/0", f"{device}/parent"):
        try:
            return (VERBS / place).read_text().strip() or None
        except OSError:
            continue
    return None


def on_netdev(netdev: str) -> str | None:
    """Return the rxe device that stands on a netdev, if there is one."""
    if VERBS.is_dir():
        for device in sorted(VERBS.iterdir()):
            if (device / "parent").exists() and netdev_of(device.name) == netdev:
                return device.name
    return None


def users(device: str) -> list[str]:
    """Return the programs that have queue pairs on a verbs device, each as `NAME (process PID)`, without repetition."""
    shown = system.run("rdma", "-j", "resource", "show", "qp", "link", f"{device}/1")
    # the kernel's own queue pairs (GSI) have no process
    found = [entry for entry in json.loads(shown or "[]") if "pid" in entry]
    return sorted({f"{entry.get('comm', '?')} (process {entry['pid']})" for entry in found})


def restore(device: str, netdev: str, addresses: Iterable[str]) -> None:
    """Put an rxe device that went with its netdev back on it; return when it has the GIDs of the IPv4 addresses."""
    if on_netdev(netdev) is None:
        load_rxe()
        add_rxe(device, netdev)
    for address in addresses:
        if ":" not in address:
            wait_for_gid(device, address)


def up(netdev: str, name: str | None = None) -> str:
    """Put an rxe device on a netdev and return its name."""
    system.need_root("putting SoftRoCE on a netdev")
    if not (NETDEVS / netdev).exists():
        others = ", ".join(sorted(path.name for path in NETDEVS.iterdir()))
        raise UsageError(f"there is no netdev '{netdev}'", remedy=f"choose of: {others}")
    if (NETDEVS / netdev / "operstate").read_text().strip() == "down":
        raise MachineError(f"the link of {netdev} is down", remedy=f"ip link set {netdev} up")
    load_rxe()
    present = on_netdev(netdev)
    if present is not None:
        raise UsageError(f"{present} stands on {netdev} already", remedy=f"use it, or: hwrx rxe down {netdev}")
    name = name or _free_name()
    add_rxe(name, netdev)
    return name


def down(name: str) -> str:
    """Take an rxe device away, named itself or by its netdev; returns its name."""
    system.need_root("taking SoftRoCE off a netdev")
    device = name if (VERBS / name).exists() else on_netdev(name)
    if device is None:
        raise UsageError(f"there is no rxe device '{name}', and none on a netdev of that name", remedy="hwrx devices")
    if not (VERBS / device / "parent").exists():
        raise UsageError(f"{device} is no SoftRoCE device: it is not taken away")
    remove_rxe(device)
    return device


def _free_name() -> str:
    number = 0
    while (VERBS / f"rxe{number}").exists():
        number += 1
    return f"rxe{number}"
