"""The verbs devices of this machine: found by udev, asked by pyverbs, read from /sys where pyverbs cannot.

Names of states, GID types and limits are the field's own: those of `ibv_devinfo` and <infiniband/verbs.h>.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from hwrx.control.places import Place
from hwrx.errors import MachineError
from hwrx.host.carrier import carrier_remedy
from hwrx.verbs.rxe import VERBS

# In the order of the kernel's enumerations: ib_port_state, ib_gid_type, rdma_link_layer
STATES = ("NOP", "DOWN", "INIT", "ARMED", "ACTIVE", "ACTIVE_DEFER")
GID_TYPES = ("IB", "RoCE v1", "RoCE v2")
LINK_LAYERS = ("unspecified", "InfiniBand", "Ethernet")
LIMITS = (
    "max_qp", "max_qp_wr", "max_sge", "max_cq", "max_cqe", "max_mr", "max_mr_size", "max_pd", "max_srq",
    "max_qp_rd_atom", "max_qp_init_rd_atom",
)  # fmt: skip


class Gid(Struct, frozen=True):
    """An entry of a port's GID table that is in use."""

    index: int
    gid: str
    type: str
    netdev: str | None = None

    @property
    def address(self) -> str:
        """The IP address that the GID stands for: the IPv4 address of a mapped one."""
        address = ipaddress.IPv6Address(self.gid)
        return str(address.ipv4_mapped or address)

    @property
    def routable(self) -> bool:
        """Whether it is no link-local address."""
        return not ipaddress.IPv6Address(self.gid).is_link_local


class Port(Struct, frozen=True):
    """A port: `active_mtu` is the largest payload of a packet, in bytes; `rate` is the kernel's text."""

    number: int
    state: str
    link_layer: str
    rate: str
    netdev: str | None = None
    active_mtu: int | None = None  # not in /sys
    max_mtu: int | None = None
    gids: list[Gid] = []


class Device(Struct, frozen=True):
    """A verbs device."""

    name: str
    driver: str
    software: bool  # the CPU stands in for the adapter
    firmware: str
    node_guid: str
    ports: list[Port]
    limits: dict[str, int]
    asked: Literal["pyverbs", "sysfs"]
    note: str = ""  # why not pyverbs


def verbs_devices() -> list[Device]:
    """Return the verbs devices, in the order of their names, with their ports, GIDs and limits.

    One that pyverbs cannot open, or without pyverbs, is described as far as /sys/class/infiniband does, and says why.
    """
    try:
        import pyverbs.device
    except ImportError as error:
        return [
            _from_sysfs(name, f"pyverbs is missing ({error}): apt-get install python3-pyverbs")
            for name in device_names()
        ]
    devices = []
    for name in device_names():
        try:
            with pyverbs.device.Context(name=name) as context:
                devices.append(_from_pyverbs(name, context))
        except Exception as error:  # PyverbsError is no common base of what 44.0 raises
            devices.append(_from_sysfs(name, f"pyverbs could not open it: {str(error).strip()}"))
    return devices


def device_names() -> list[str]:
    """Return the names of the verbs devices."""
    try:
        import pyudev

        found = [device.sys_name for device in pyudev.Context().list_devices(subsystem="infiniband")]
    except (ImportError, OSError):  # no libudev
        found = [path.name for path in VERBS.iterdir()] if VERBS.is_dir() else []
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def place_of(device: Device, gid_index: int | None = None) -> Place:
    """Return where a verbs device lives: netdev and address of its best GID, so that sockets share its wire.

    :param gid_index: entry of the GID table that the user chose; None: the best of the first active port
    :raises MachineError: if no port is active, or the port has no such GID; it says which states they are in
    """
    for port in device.ports:
        if port.state == "ACTIVE":
            return _place(device, port, gid_index)
    raise MachineError(
        f"no port of {device.name} is active ({', '.join(f'{port.number}: {port.state}' for port in device.ports)})",
        remedy=carrier_remedy(device.ports[0].netdev) if device.ports and device.ports[0].netdev else "",
    )


def _place(device: Device, port: Port, gid_index: int | None = None) -> Place:
    gids = [gid for gid in port.gids if gid.type == "RoCE v2"] or port.gids
    # IPv4 before IPv6, and an address that can be reached from elsewhere before one that cannot
    gids = sorted(gids, key=lambda gid: (not gid.routable, ":" in gid.address, gid.index))
    if gid_index is not None:
        gids = [gid for gid in port.gids if gid.index == gid_index]
    if not gids:
        raise MachineError(
            f"port {port.number} of {device.name} has no GID" + (f" {gid_index}" if gid_index is not None else ""),
            remedy=f"give {port.netdev or 'its netdev'} an IP address, and look at: hwrx devices",
        )
    # of a port with VLANs each GID has a netdev of its own: what sockets send by another is not the same wire
    address, netdev = gids[0].address, gids[0].netdev or port.netdev
    if ipaddress.ip_address(address).is_link_local and netdev:
        address = f"{address}%{netdev}"
    return Place(address=address, netdev=netdev, verbs=device.name, port=port.number)


def hardware_ends() -> tuple[Place, Place]:
    """Return two active ports of verbs NICs, for both ends: of two devices, or else two of one. No software counts.

    MachineError says in words what is missing.
    """
    found = verbs_devices()
    nics = [device for device in found if not device.software]
    if not nics:
        there = ", ".join(device.name for device in found) or "none"
        raise MachineError(f"this machine has no verbs NIC (its verbs devices: {there})")
    active = [[_place(nic, port) for port in nic.ports if port.state == "ACTIVE"] for nic in nics]
    one_each = [places[0] for places in active if places]
    of_one = next((places[:2] for places in active if len(places) > 1), [])
    chosen = one_each[:2] if len(one_each) > 1 else of_one
    if len(chosen) < 2:
        states = ", ".join(f"{nic.name} port {port.number}: {port.state}" for nic in nics for port in nic.ports)
        raise MachineError(
            f"two active ports of verbs NICs are needed, one for each end, and this machine has {len(one_each)}"
            f" ({states})",
            remedy="cable and raise a second port: ip link set NETDEV up",
        )
    return chosen[0], chosen[1]


def _from_pyverbs(name: str, context: Any) -> Device:
    # Any: pyverbs is Cython that comes without types
    about = context.query_device()
    ports = []
    for number in range(1, about.phys_port_cnt + 1):
        asked = context.query_port(number)
        gids = [
            Gid(entry.gid_index, str(entry.gid_str()), _of(GID_TYPES, entry.gid_type), _netdev(entry.ndev_ifindex))
            for entry in context.query_gid_table(max(1, asked.gid_tbl_len * about.phys_port_cnt))
            if entry.port_num == number
        ]
        ports.append(
            Port(
                number=number,
                state=_of(STATES, asked.state),
                link_layer=_of(LINK_LAYERS, asked.link_layer),
                rate=_read(VERBS / name / "ports" / str(number) / "rate"),
                netdev=next((gid.netdev for gid in gids if gid.netdev), None),
                active_mtu=128 << asked.active_mtu,  # enum ibv_mtu: 1 is 256
                max_mtu=128 << asked.max_mtu,
                gids=gids,
            )
        )
    return Device(
        name=name,
        driver=driver_of(name),
        software=is_software(name),
        firmware=_text(about.fw_version),
        node_guid=_read(VERBS / name / "node_guid"),
        ports=ports,
        limits={limit: int(getattr(about, limit)) for limit in LIMITS},
        asked="pyverbs",
    )


def _from_sysfs(name: str, note: str) -> Device:
    folder = VERBS / name
    ports = []
    for port in sorted((folder / "ports").glob("*"), key=lambda path: int(path.name)):
        gids = list(_gids(port))
        ports.append(
            Port(
                number=int(port.name),
                state=_read(port / "state").partition(": ")[2],  # "4: ACTIVE"
                link_layer=_read(port / "link_layer"),
                rate=_read(port / "rate"),
                netdev=next((gid.netdev for gid in gids if gid.netdev), None),
                gids=gids,
            )
        )
    return Device(
        name=name,
        driver=driver_of(name),
        software=is_software(name),
        firmware=_read(folder / "fw_ver"),
        node_guid=_read(folder / "node_guid"),
        ports=ports,
        limits={},
        asked="sysfs",
        note=note,
    )


def _gids(port: Path) -> Iterator[Gid]:
    for index in sorted(int(path.name) for path in (port / "gids").glob("[0-9]*")):
        gid = _read(port / "gids" / str(index))
        kind = _read(port / "gid_attrs/types" / str(index))
        if kind and gid:  # an entry that is not in use has no type, or no GID
            kind = "IB" if kind.startswith("IB") else kind
            yield Gid(index, gid, kind, _read(port / "gid_attrs/ndevs" / str(index)) or None)


def driver_of(name: str) -> str:
    """Return the name of the driver behind a verbs device, "unknown" if its device in sysfs names none.

    rxe and siw stand on a netdev and have no device: both are told as rdma_rxe.
    """
    link = VERBS / name / "device/driver"
    if link.exists():
        return link.resolve().name
    return "rdma_rxe" if is_software(name) else "unknown"


def is_software(name: str) -> bool:
    """Whether it is rxe or siw: those name the netdev on which they stand, and have no device beneath them."""
    return (VERBS / name / "parent").exists() or not (VERBS / name / "device").exists()


def _of(texts: tuple[str, ...], value: int) -> str:
    return texts[value] if value < len(texts) else str(value)


def _netdev(index: int) -> str | None:
    with contextlib.suppress(OSError):  # gone meanwhile, or in another namespace
        return socket.if_indextoname(index) if index else None
    return None


def _text(value: object) -> str:
    return value.decode(errors="replace").rstrip("\0") if isinstance(value, bytes) else str(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
