"""Paths of whole frames: UDP datagrams that the endpoint builds and takes apart itself.

`packet-ring` and `xdp` share the kernel's driver. `nic-ring` drives the NIC: the one beneath the place's network device
is taken from the kernel for the trial and given back after it, so that other paths of the same run can use it; unless
the next trial is of `nic-ring`, too (`Prepare.hold`), for taking it and giving it back takes longer than a trial.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import socket
from typing import TYPE_CHECKING, Any, Literal

from hwrx.errors import MachineError, UsageError
from hwrx.paths.model import MIXED, POLLED, WINDOW, Flooding, Look, Path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cython_ext.frames.datagram import DatagramTransport
    from cython_ext.frames.link import FrameLink
    from hwrx.control.messages import Prepare, Setting
    from hwrx.nic import Access
    from hwrx.nic.driver import Driver
    from hwrx.nic.pci import HeldNic

PATHS = (
    Path(
        name="packet-ring",
        needs="root",
        sentence="AF_PACKET, TPACKET_V3: the kernel copies each frame into a shared ring",
        way="packet-ring",
        look=Look("#0f9468", "<", (0, (8, 2))),
        reads=POLLED | MIXED | {"netem", "senders"},
        reads_in={"stream": WINDOW},
        # behind the tap the stack has a copy of its own, which is for nobody; the message is the tap's
        flooding=Flooding(
            losses={"tp_drops": "af-packet"}, copies=frozenset({"header", "no-socket", "not-local", "af-packet"})
        ),
        copied_out="skb_copy_bits",
    ),
    Path(
        name="xdp",
        needs="root",
        sentence="AF_XDP: frames from the driver, or the NIC, to our memory, in front of the stack",
        way="xdp",
        look=Look("#6f8f1c", ">", (0, (3, 3))),
        reads=POLLED | MIXED | {"xdp_mode"},
        reads_in={"stream": WINDOW},
        # a frame that found no room in the socket is freed as an XDP drop, which the socket has counted
        flooding=Flooding(
            losses={"rx_dropped": "xdp-ring", "rx_ring_full": "xdp-ring"}, told_twice={"xdp": "xdp-ring"}
        ),
        copied_in=("skb_store_bits",),
        copied_out="xsk_generic_rcv",
    ),
    Path(
        name="nic-pio",
        needs="nic",
        sentence="an NE2000, the old way: interrupt, and the CPU carries each word by a port",
        way="nic-pio",
        look=Look("#7d8288", "h", (0, (1, 2))),
        reads=MIXED,
        reads_in={"stream": WINDOW},
        copied_out="port read",
        unflooded="an NE2000 loses what it has no room for, and no counter of it says how much",
    ),
    Path(
        name="nic-ring",
        needs="nic",
        sentence="hwrx drives the NIC: DMA into the user's pinned buffers, UDP done in place",
        way="nic-ring",
        look=Look(None, "*", "-"),
        reads=MIXED,
        reads_in={"stream": WINDOW},
        holding=True,
        flooding=Flooding(losses={"MPC": "nic-ring", "RNBC": "nic-ring"}),
        copied_out="DMA",
    ),
)
LARGEST = 1472  # 1500 bytes of an Ethernet frame less IPv4's header and UDP's
RING = 1024  # descriptors
ZERO_COPY = {"auto": None, "zero-copy": True, "copy": False}  # of a setting -> as XdpRing has it
PIO_WIDTH: Literal[1, 2, 4] = 2  # bytes of a port access; the NE2000's own bus had 16 lines
BLOCK_MS = 1  # of a packet ring: the kernel hands over a block after so long, full or not
WAITS = ("poll", "event")
ENDPOINT_MODULES = (  # that `open_endpoint` imports, each where it is needed
    "cython_ext.frames.datagram",
    "cython_ext.nics.e1000e_link",
    "cython_ext.frames.packet_ring",
    "cython_ext.frames.xdp_ring",
    "hwrx.nic",
    "hwrx.nic.uio",
    "hwrx.nic.vfio",
    "hwrx.nic.ne2k",
)
# By the trial's number, so that stragglers of another trial are nobody's; by the sender, so that each request has one
# end that answers it; and by the role, by which a packet on the wire tells its direction.
FIRST_PORT = 40_000
TRIALS, SENDERS = 192, 64


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be."""
    if setting.size > LARGEST:
        raise UsageError(
            f"{setting.path} sends one Ethernet frame a message, which carries at most {LARGEST} bytes,"
            f" not {setting.size}",
            remedy="choose a smaller size",
        )
    check_loop(setting)


def check_loop(setting: Setting) -> None:
    """UsageError where an end that drives a link of frames cannot wait, or be paced, as the setting says."""
    if setting.wait not in WAITS:
        raise UsageError(f"{setting.path} cannot wait by {setting.wait}", remedy=f"choose of: {', '.join(WAITS)}")
    if setting.pattern == "paced" and setting.rate is None:
        raise UsageError("paced needs a rate in messages a second", remedy="set rate")


def preload_endpoints() -> None:
    """Import what endpoints need, so that whoever is forked from this process has it."""
    preload_modules(ENDPOINT_MODULES)


def preload_modules(names: Sequence[str]) -> None:
    """Import modules of endpoints, as far as they are there."""
    for name in names:
        with contextlib.suppress(ImportError):  # without libbpf there is no `xdp`, and all others are
            importlib.import_module(name)


def open_endpoint(prepare: Prepare) -> DatagramTransport:
    """Return one end of a trial; the caller closes it, which gives the NIC back."""
    from cython_ext.frames.datagram import DatagramTransport

    setting = prepare.setting
    check_setting(setting)
    link, notes = LINKS[setting.path](prepare)
    try:
        return DatagramTransport(
            link,
            address=prepare.here.address,
            port=_port(prepare),
            size=setting.size,
            window=setting.window,
            batch=1 if setting.pattern == "pingpong" else setting.batch,
            stream=setting.pattern == "stream",
            trial=prepare.trial,
            patience=min(setting.patience, setting.limit),
            limit=setting.limit,
            notes=notes,
        )
    except BaseException:
        link.close()
        raise


def _ring(prepare: Prepare) -> tuple[FrameLink, dict[str, Any]]:
    """The NIC's own rings."""
    # an endpoint in an emulated guest starts without what drives NICs, unless its path does
    import hwrx.nic

    here = prepare.here
    if prepare.hold:
        keep_taken(named_netdev(prepare), here.address)
    nic = hwrx.nic.open_nic(
        named_netdev(prepare),
        own=(here.address,),
        rx=RING,
        tx=RING,
        interrupt="auto" if prepare.setting.wait == "event" else None,
    )
    return nic.frame_link(), describe_ring(nic)


def describe_ring(nic: Driver) -> dict[str, str | int]:
    """Return what was chosen of a NIC that is driven, for the manifest."""
    interrupt = nic.rx.interrupt
    return {
        "nic": nic.device.address,
        "access": nic.device.access,
        "mac": nic.mac,
        "link_mbit": nic.link,
        "descriptors": RING,
        "wait": interrupt.kind if interrupt is not None else "poll",
    }


_held: list[HeldNic] = []  # NICs that stay taken between trials


def keep_taken(netdev: str, address: str, access: Access = "auto") -> None:
    """Take the NIC beneath a network device, until `release_held`; `access` as for `hwrx.nic.open_device`."""
    # as above
    from hwrx.nic import pci

    nic = pci.find_nic(netdev)
    if nic.driver in pci.USER_DRIVERS or not nic.supported:
        return
    if not _held:
        atexit.register(release_held)
    if access == "auto":
        access = "uio" if nic.group is None else "vfio"
    _held.append(pci.HeldNic(nic, pci.DRIVER_OF[access], own=(address,)))


def release_held() -> None:
    """Give all NICs that stayed taken back to their drivers; harmless if there is none."""
    while _held:
        _held.pop().give_back()


def open_packet_ring(prepare: Prepare, largest: int = 1514) -> tuple[FrameLink, dict[str, Any]]:
    """The kernel's ring for packet sockets, at an address of its own, so that the stack leaves our frames alone.

    :param largest: bytes of a frame
    """
    from cython_ext.frames.packet_ring import PacketRing

    netdev = named_netdev(prepare)
    mac = bytearray(_hardware(netdev))
    mac[0] |= 0x02  # locally administered
    mac[1] ^= 0x40
    setting = prepare.setting
    # every packet socket sees every frame: of several senders' each takes only its own, as if it were alone
    only_port = _port(prepare) if setting.senders > 1 else None
    ring = PacketRing(
        netdev,
        mac.hex(":"),
        poll=setting.wait == "poll",
        block_ms=BLOCK_MS,
        bypass=not setting.netem,  # netem is a queueing discipline: what bypasses it is not spoiled
        only_port=only_port,
        largest=largest,
    )
    return ring, {
        "netdev": netdev,
        "mac": ring.mac,
        "version": "TPACKET_V3",
        "block_ms": BLOCK_MS,
        "queueing_discipline": "passed" if setting.netem else "bypassed",
        "filter": None if only_port is None else f"UDP to port {only_port}, ARP",
    }


def open_xdp_ring(
    prepare: Prepare, port: int | None = None, *, largest: int = 1514, qpn: int | None = None
) -> tuple[FrameLink, dict[str, Any]]:
    """An AF_XDP socket, in front of the stack, to which UDP datagrams are steered; and what was chosen for it.

    :param port: of the datagrams; None: this end's
    :param largest: bytes of a frame
    :param qpn: number of the one queue pair of RoCEv2 whose packets are; None: all datagrams
    :raises MachineError: if this kernel or device has none, or this build of hwrx
    """
    try:
        from cython_ext.frames.xdp_ring import XdpRing
    except ImportError as error:
        raise MachineError(
            "hwrx was built without AF_XDP, as libbpf was not there", remedy="apt install libbpf-dev, and ./lab/run"
        ) from error
    netdev = named_netdev(prepare)
    mac = _hardware(netdev).hex(":")
    at = _port(prepare) if port is None else port
    setting = prepare.setting
    zero_copy = ZERO_COPY[setting.xdp_mode]
    ring = XdpRing(netdev, mac, at, poll=setting.wait == "poll", largest=largest, qpn=qpn, zero_copy=zero_copy)
    notes = {"netdev": netdev, "mac": mac, "mode": ring.mode, "zero_copy": ring.zero_copy}
    return ring, notes | ({"copies_because": ring.why_copy} if ring.why_copy else {})


def _pio(prepare: Prepare) -> tuple[FrameLink, dict[str, Any]]:
    """An NE2000: interrupt, and every word carried by the CPU."""
    # as above
    from hwrx.nic.ne2k import open_link

    if prepare.here.pio is None:
        raise UsageError("nic-pio needs an NE2000, and this place names none", remedy="use the topology `nic`")
    link = open_link(prepare.here.pio, width=PIO_WIDTH, event=prepare.setting.wait == "event")
    return link, {"nic": prepare.here.pio, "mac": link.mac, "port_access_bytes": PIO_WIDTH}


def named_netdev(prepare: Prepare) -> str:
    """Return the network device of the place; UsageError if it names none."""
    if prepare.here.netdev is None:
        raise UsageError(
            f"{prepare.setting.path} needs a network device, and this place names none",
            remedy="use a topology that has one: netns, pair or nic",
        )
    return prepare.here.netdev


def _hardware(netdev: str) -> bytes:
    """The MAC address of a network device of this namespace."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as asking:
            asking.bind((netdev, 0))
            return bytes(asking.getsockname()[4])
    except OSError as error:
        raise MachineError(
            f"no packet socket on {netdev}: {error.strerror}",
            remedy="run as root, and see whether it is there: ip link",
        ) from error


def _port(prepare: Prepare) -> int:
    """The UDP port of this end of one sender of a trial; no two ends of a trial have the same."""
    return FIRST_PORT + (prepare.trial % TRIALS * SENDERS + prepare.sender) * 2 + (prepare.role == "client")


LINKS: dict[str, Callable[[Prepare], tuple[FrameLink, dict[str, Any]]]] = {
    "nic-ring": _ring,
    "packet-ring": open_packet_ring,
    "xdp": open_xdp_ring,
    "nic-pio": _pio,
}
