"""Opening what an endpoint stands on: a link to a network device or a NIC, an address and a number of its own."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from cython_ext.frames.link import FrameLink
from cython_ext.frames.packet_ring import PacketRing
from cython_ext.roce.queue_pair import MTUS
from hwrx.errors import PathError, UsageError
from hwrx.host.carrier import carrier_remedy
from hwrx.roce.neighbours import solicited_node
from hwrx.roce.parameters import LARGEST_NUMBER, Parameters, check_station, gid_of, parse_mac

if TYPE_CHECKING:
    from hwrx.nic.driver import Driver

NETDEVS = Path("/sys/class/net")
UNIX_SOCKETS = Path("/proc/self/net/unix")
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST = 263, 1, 0  # linux/if_packet.h
ROCE_PORT = 4791


def open_link(
    device: str | Driver | FrameLink,
    address: str,
    stack: contextlib.ExitStack,
    *,
    mac: str,
    qpn: int | None,
    psn: int | None,
    mtu: int,
    poll: bool,
) -> tuple[FrameLink, Parameters]:
    """Open the link of an endpoint, and return it with what the other end must know.

    :param stack: what is opened is closed with it
    :param device, address, mac, qpn, psn, mtu, poll: see `hwrx.roce.endpoint`, also for what is raised
    """
    check_station(address)
    _check_numbers(qpn, psn, mtu)
    if isinstance(device, str):
        hardware = parse_mac(mac or _mac_of(address))
        _check_foreign(device, address)
        number = _hold_number(device, address, hardware, qpn, stack)
        check_fits(device, address, mtu)
        link: FrameLink = _open_ring(device, address, hardware, poll, mtu, stack)
    else:
        number = qpn or random.randrange(2, LARGEST_NUMBER)
        link = device if isinstance(device, FrameLink) else stack.enter_context(device.frame_link())
        if mac and parse_mac(mac) != link.mac:
            raise UsageError(f"this NIC has the MAC address {link.mac}, and not {mac}", remedy="leave --mac out")
    begins = random.randrange(LARGEST_NUMBER + 1) if psn is None else psn
    return link, Parameters(gid=gid_of(address), qpn=number, psn=begins, mtu=mtu, mac=link.mac)


def _check_numbers(qpn: int | None, psn: int | None, mtu: int) -> None:
    for what, value, least, most in (
        ("a queue pair's number", qpn, 2, LARGEST_NUMBER - 1),
        ("a PSN", psn, 0, LARGEST_NUMBER),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{what} is between {least} and {most:#x}, not {value}", remedy="leave it out")
    if mtu not in MTUS:
        raise UsageError(f"there is no path MTU of {mtu}", remedy=f"choose of: {', '.join(map(str, MTUS))}")


def _check_foreign(netdev: str, address: str) -> None:
    """UsageError if the kernel has the address: it would answer what is meant for us."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return
    raise UsageError(
        f"{address} is an address of this machine's kernel, which would answer what is meant for the endpoint",
        remedy=f"choose a free address of {netdev}'s network; other machines need no entry for it, as it answers ARP",
    )


def _hold_number(netdev: str, address: str, mac: str, qpn: int | None, stack: contextlib.ExitStack) -> int:
    """Take a number for this device and address until the stack is closed; the kernel gives it back if we die.

    The name of a socket in the abstract namespace is each network namespace's own, as devices are. It has to end with
    the number, so that one number is one socket's; who has the address by which MAC is a second socket's name.
    """
    for _ in range(64):
        number = qpn if qpn is not None else random.randrange(2, LARGEST_NUMBER)
        if (held := _bind_name(f"hwrx-roce/{netdev}/{address}/{number:#x}")) is not None:
            stack.enter_context(held)
            _check_one_mac(netdev, address, mac, number, stack)
            return number
        if qpn is not None:
            break
    raise UsageError(
        f"another endpoint has queue pair {qpn:#x} of {address} on {netdev}", remedy="choose another number, or none"
    )


def _check_one_mac(netdev: str, address: str, mac: str, number: int, stack: contextlib.ExitStack) -> None:
    """Say which MAC address has the IP address; UsageError if another endpoint has said that it is another one's.

    Both would answer who asks for it, and the other end would send to either.
    """
    said = f"hwrx-roce-mac/{netdev}/{address}/"
    if (held := _bind_name(f"{said}{mac}/{number:#x}")) is not None:
        stack.enter_context(held)
    for line in UNIX_SOCKETS.read_text(encoding="utf-8", errors="replace").splitlines():
        other = line.rpartition(f"@{said}")[2].partition("/")[0] if f"@{said}" in line else mac
        if other != mac:
            raise UsageError(
                f"another endpoint on {netdev} has {address}, with the MAC address {other} and not {mac}",
                remedy=f"choose another --address, or --mac {other}",
            )


def _bind_name(name: str) -> socket.socket | None:
    """A socket of a name in the abstract namespace; None if somebody has it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(f"\0{name}")
    except OSError:
        made.close()
        return None
    return made


def _mac_of(address: str) -> str:
    """A locally administered address that ends as the IP address does, and so is as unique as that."""
    return f"02:68:{socket.inet_pton(socket.AF_INET6, gid_of(address))[-4:].hex(':')}"


def check_fits(netdev: str, address: str, mtu: int) -> None:
    """UsageError if the kernel would send no packet of that MTU from the device."""
    with contextlib.suppress(OSError, ValueError):  # as below
        wire = int((NETDEVS / netdev / "mtu").read_text(encoding="utf-8"))
        # IP, UDP, BTH, the longest extended headers of a request with payload, padding and ICRC
        if mtu + (40 if ":" in address else 20) + 8 + 12 + 20 + 3 + 4 > wire:
            raise UsageError(
                f"packets of {mtu} bytes do not fit {netdev}, whose MTU is {wire}",
                remedy=f"a smaller --mtu, or a larger MTU of the device: ip link set {netdev} mtu {mtu + 104}",
            )


def _open_ring(netdev: str, address: str, mac: str, poll: bool, mtu: int, stack: contextlib.ExitStack) -> PacketRing:
    """A packet ring for an address of its own; with IPv6 it hears the group in which the address is asked for."""
    # the ring's filter knows IPv4 alone
    ring = PacketRing(
        netdev, mac, poll=poll, only_port=None if ":" in address else ROCE_PORT, largest=max(1514, mtu + 128)
    )
    stack.enter_context(ring)
    state = ""
    with contextlib.suppress(OSError):  # /sys may be that of another network namespace
        state = (NETDEVS / netdev / "operstate").read_text(encoding="utf-8").strip()
    if state == "down":
        raise PathError(f"the link of {netdev} is down", remedy=carrier_remedy(netdev))
    if ":" in address:
        group = bytes.fromhex(solicited_node(address).replace(":", ""))
        member = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        request = struct.pack("iHH8s", socket.if_nametoindex(netdev), PACKET_MR_MULTICAST, 6, group)
        with contextlib.suppress(OSError):  # a device without a filter has no list, and hears everything
            member.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    return ring
