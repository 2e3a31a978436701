"""SoftRoCE: the kernel's verbs device in software, put on a netdev and taken away."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable
from pathlib import Path

from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.carrier import carrier_remedy
from hwrx.host.outside import check_name

VERBS = Path("/sys/class/infiniband")
NETDEVS = Path("/sys/class/net")
RXE_MODULE = "rdma_rxe"


def netdev_of(device: str) -> str | None:
    """Return the netdev under a verbs device; None where it has none (InfiniBand), or there is no such device."""
    for place in (f"{device}/ports/1/gid_attrs/ndevs/0", f"{device}/parent"):
        try:
            return (VERBS / place).read_text(encoding="utf-8").strip() or None
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


def users_of(device: str) -> list[str]:
    """Return the programs that have queue pairs on a verbs device, each as `NAME (process PID)`, without repetition."""
    shown = tools.run_tool("rdma", "-j", "resource", "show", "qp", "link", f"{device}/1")
    # the kernel's own queue pairs (GSI) have no process
    found = [entry for entry in json.loads(shown or "[]") if "pid" in entry]
    return sorted({f"{entry.get('comm', '?')} (process {entry['pid']})" for entry in found})


def restore_rxe(device: str, netdev: str, addresses: Iterable[str]) -> None:
    """Put an rxe device that went with its netdev back on it; return when it has the GIDs of the IPv4 addresses."""
    if on_netdev(netdev) is None:
        load_rxe()
        add_rxe(device, netdev)
    for address in addresses:
        if ":" not in address:
            wait_for_gid(device, address)


def put_up(netdev: str, name: str | None = None) -> str:
    """Put an rxe device on a netdev and return its name."""
    tools.need_root("putting SoftRoCE on a netdev")
    choose = f"choose of: {', '.join(sorted(path.name for path in NETDEVS.iterdir()))}"
    if not (NETDEVS / check_name(netdev, "network device", remedy=choose)).exists():
        raise UsageError(f"there is no netdev '{netdev}'", remedy=choose)
    if name is not None:
        check_name(name, "verbs device", remedy="for example rxe0")
    if (NETDEVS / netdev / "operstate").read_text(encoding="utf-8").strip() == "down":
        raise MachineError(f"the link of {netdev} is down", remedy=carrier_remedy(netdev))
    load_rxe()
    present = on_netdev(netdev)
    if present is not None:
        raise UsageError(f"{present} stands on {netdev} already", remedy=f"use it, or: hwrx rxe down {netdev}")
    name = name or _free_name()
    add_rxe(name, netdev)
    return name


def take_down(name: str) -> str:
    """Take an rxe device away, named itself or by its netdev; returns its name."""
    tools.need_root("taking SoftRoCE off a netdev")
    device = name if (VERBS / check_name(name, "device", remedy="hwrx devices")).exists() else on_netdev(name)
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


# --- the device itself ------------------------------------------------------------------------------------------------


def load_rxe() -> None:
    """Load the module rdma_rxe; MachineError where this kernel has none."""
    if Path("/sys/module", RXE_MODULE).exists():
        return
    try:
        tools.run_tool("modprobe", RXE_MODULE)
    except MachineError as error:
        raise MachineError(
            f"this kernel has no module {RXE_MODULE} (SoftRoCE): {error.args[0]}",
            remedy="use the lab's virtual machine (leave out --here), or a distribution's kernel",
        ) from None


def add_rxe(device: str, netdev: str) -> None:
    """Put an rxe device on a netdev (`rdma link add`)."""
    tools.run_tool("rdma", "link", "add", device, "type", "rxe", "netdev", netdev)


def remove_rxe(device: str) -> None:
    """Take an rxe device away (`rdma link delete`)."""
    tools.run_tool("rdma", "link", "delete", device)


def gid_index(device: str, address: str, port: int = 1) -> int | None:
    """Return the index of the RoCE v2 GID that an IPv4 address gives a verbs device, None where it has none."""
    # as the kernel prints an IPv4 address that is mapped into IPv6
    wanted = f"0000:0000:0000:0000:0000:ffff:{socket.inet_aton(address).hex(':', 2)}"
    table = VERBS / device / "ports" / str(port)
    for index in sorted(int(path.name) for path in (table / "gids").glob("[0-9]*")):
        with contextlib.suppress(OSError):  # an empty entry reads as an error on some devices, as zeros on others
            gid = (table / "gids" / str(index)).read_text(encoding="utf-8").strip()
            if (
                gid == wanted
                and (table / "gid_attrs/types" / str(index)).read_text(encoding="utf-8").strip() == "RoCE v2"
            ):
                return index
    return None


def wait_for_gid(device: str, address: str) -> None:
    """Return as soon as a verbs device has the GID of an IPv4 address; MachineError if it does not get one."""
    tools.wait_until(lambda: gid_index(device, address) is not None, f"the GID of {address} on {device}")
