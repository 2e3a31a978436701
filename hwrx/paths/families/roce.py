"""Paths over our own RoCEv2 queue pair, in user space: what rdma-* are, with no HCA and no rxe.

On a NIC that hwrx has a driver for, it drives that, as `nic-ring` does: the NIC fetches what is sent and writes what
comes by DMA, in the user's own memory. On any other network device it shares the kernel's packet ring, or, where the
setting `link` says so, an AF_XDP socket.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path as File
from typing import TYPE_CHECKING

from hwrx.errors import UsageError
from hwrx.paths import roce_port
from hwrx.paths.families import nic as frames
from hwrx.paths.model import MIXED, Look, Path

if TYPE_CHECKING:
    from collections.abc import Callable

    from cython_ext.roce.roce_path import RoceTransport
    from hwrx.control.messages import Prepare, Setting
    from hwrx.nic import Access

_READS = frozenset({"window", "mtu", "link", "xdp_mode"}) | MIXED

_HELD = "no more is under way than its window, and a receiver without room says so (RNR NAK), as over rdma-send"

PATHS = (
    Path(
        name="roce-send",
        needs="nic",
        sentence="hwrx's own RoCEv2, RC SEND: the NIC writes into the posted, pinned receive buffer",
        way="roce",
        look=Look("#2f6fd0", "p", (0, (5, 1))),
        reads=_READS,
        holding=True,
        copied_out="DMA",
        unflooded=_HELD,
    ),
    Path(
        name="roce-write",
        needs="nic",
        sentence="hwrx's own RoCEv2, RC WRITE: the NIC writes to the address that the sender names",
        way="roce",
        look=Look("#1c8a96", "d", (0, (4, 1, 1, 1))),
        reads=_READS,
        stream_seen_by="client",
        holding=True,
        copied_out="DMA",
        unflooded=_HELD,
    ),
    Path(
        name="roce-write-imm",
        needs="nic",
        sentence="hwrx's own RoCEv2, RC WRITE with immediate: as roce-write, and the receiver gets a completion",
        way="roce",
        look=Look("#5a57c9", "8", (0, (6, 2, 1, 2))),
        reads=_READS,
        holding=True,
        copied_out="DMA",
        unflooded=_HELD,
    ),
    Path(
        name="roce-read",
        needs="nic",
        sentence="hwrx's own RoCEv2, RC READ from the peer's pinned buffer (full round trip)",
        way="roce",
        look=Look("#7a8a1f", "H", (0, (2, 1))),
        reads=_READS,
        full_rtt=True,
        stream_seen_by="client",
        holding=True,
        copied_out="DMA",
        unflooded=_HELD,
    ),
)
ROCE_PORT = 4791  # of UDP
LARGEST = 1 << 24  # bytes: its slots fit the memory that an end may pin
PLAIN_BUFFER = 2048  # bytes of a NIC's receive buffer
AROUND = 128  # bytes of a frame around a packet's payload, at most
JUMBO_BUFFER = 8192  # of one that a packet of RoCE's largest MTU fits
LARGE = 2048  # bytes of payload from which on a packet needs one
ENDPOINT_MODULES = (
    *frames.ENDPOINT_MODULES,
    "cython_ext.nics.e1000e_message",
    "cython_ext.nics.interleaved",
    "cython_ext.roce.roce_path",
)


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be."""
    if setting.size > LARGEST:
        raise UsageError(
            f"{setting.path} carries messages of at most {LARGEST} bytes, not {setting.size}",
            remedy="choose a smaller size",
        )
    if setting.xdp_mode != "auto" and setting.link != "xdp":
        raise UsageError(
            f"xdp_mode = '{setting.xdp_mode}' is of AF_XDP, and {setting.path} goes over link = '{setting.link}'",
            remedy="--link xdp, or leave --xdp-mode out",
        )
    frames.check_loop(setting)


def preload_endpoints() -> None:
    """Import what endpoints need, so that whoever is forked from this process has it."""
    frames.preload_modules(ENDPOINT_MODULES)


def release_held() -> None:
    """Give all NICs that stayed taken back to their drivers; harmless if there is none."""
    frames.release_held()


def open_endpoint(prepare: Prepare) -> RoceTransport:
    """Return one end of a trial; the caller closes it, which gives the NIC back."""
    from cython_ext.roce.roce_path import RoceTransport

    check_setting(prepare.setting)
    netdev = frames.named_netdev(prepare)
    wanted = prepare.setting.link
    if wanted == "auto":
        wanted = "nic" if _is_driven(netdev) else "packet-ring"
    if wanted not in ("nic", "uio"):
        frames.release_held()  # a trial before this one may have broken off
    return RoceTransport(prepare, PORTS[wanted](prepare, netdev))


def _is_driven(netdev: str) -> bool:
    """Whether hwrx has a driver by DMA for the NIC beneath a network device."""
    # an endpoint in an emulated guest starts without what drives NICs, unless its path does
    from hwrx.nic import pci

    with contextlib.suppress(UsageError):
        known = pci.find_nic(netdev).known
        return known is not None and known.works_by == "DMA"
    return False


def _driven(prepare: Prepare, netdev: str, access: Access = "auto") -> roce_port.RocePort:
    """The NIC's own rings, which gather what is sent and receive in place."""
    # as above
    import hwrx.nic
    from hwrx.nic import pci

    found = pci.find_nic(netdev)
    kept = pci.kept_state(found.address)
    wire = kept.device.mtu if kept is not None and kept.device is not None else wire_mtu(netdev)
    # What is asked for may be more than the kernel's driver was told of the wire: this driver makes frames of its own.
    mtu = prepare.setting.mtu or roce_port.choose_roce_mtu(wire, None, netdev)
    here = prepare.here
    if prepare.hold:
        frames.keep_taken(netdev, here.address, access)
    nic = hwrx.nic.open_nic(
        netdev,
        access=access,
        own=(here.address,),
        rx=frames.RING,
        tx=frames.RING,
        interrupt="auto" if prepare.setting.wait == "event" else None,
        long_frames=mtu >= LARGE,
        buffer=JUMBO_BUFFER if mtu >= LARGE else PLAIN_BUFFER,
    )
    return roce_port.RocePort(
        nic.message_link(),
        here.address,
        mtu,
        interleaves=nic.device.access == "vfio",
        notes=frames.describe_ring(nic),
    )


def _shared(prepare: Prepare, netdev: str) -> roce_port.RocePort:
    """A ring that the kernel's driver fills: one copy on the way in, and one on the way out."""
    mtu = roce_port.choose_roce_mtu(wire_mtu(netdev), prepare.setting.mtu, netdev)
    link, notes = frames.open_packet_ring(prepare, max(1514, mtu + AROUND))
    return roce_port.RocePort(link, prepare.here.address, mtu, notes=notes)


def _steered(prepare: Prepare, netdev: str) -> roce_port.RocePort:
    """An AF_XDP socket, to which the packets of our queue pair alone are steered, in front of the stack."""
    mtu = roce_port.choose_roce_mtu(wire_mtu(netdev), prepare.setting.mtu, netdev)
    qpn = roce_port.RocePort.choose_qpn(prepare)
    link, notes = frames.open_xdp_ring(prepare, ROCE_PORT, largest=max(1514, mtu + AROUND), qpn=qpn)
    return roce_port.RocePort(link, prepare.here.address, mtu, notes=notes)


PORTS: dict[str, Callable[[Prepare, str], roce_port.RocePort]] = {
    "nic": _driven,
    "uio": functools.partial(_driven, access="uio"),
    "packet-ring": _shared,
    "xdp": _steered,
}


def wire_mtu(netdev: str) -> int:
    """Bytes of an IP packet that a network device of this namespace sends; UsageError if there is no such device."""
    try:
        return int(File(f"/sys/class/net/{netdev}/mtu").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"there is no network device {netdev}", remedy="'ip link' lists them") from error
