"""The delivery paths: what each is called, what it does, and which module sets it up.

A family module (`sockets`, `verbs`, …) offers two functions: `check(setting)` raises UsageError in words where a
setting cannot be, and `open_endpoint(prepare)` returns a `cython_ext.transport.Transport` for one end of a trial.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal, cast

from msgspec import Struct

from hwrx.errors import UsageError
from hwrx.messages import Role

if TYPE_CHECKING:
    from cython_ext.transport import Transport
    from hwrx.messages import Prepare, Setting

Needs = Literal["nothing", "verbs", "root", "nic"]


class Path(Struct, frozen=True):
    """One way of delivering a message."""

    name: str
    family: str  # module of this package
    needs: Needs
    sentence: str
    # a ping-pong over READ fetches and comes back: its time is a full round trip, never halved
    full_rtt: bool = False
    # the end that sees a stream's messages become available: nobody looks at them at the receiver of a WRITE, and READ
    # has no receiver but the one who asks
    stream_seen_by: Role = "server"


PATHS: dict[str, Path] = {
    path.name: path
    for path in (
        Path("udp", "sockets", "nothing", "kernel UDP sockets, connected, one datagram a message"),
        Path("tcp", "sockets", "nothing", "kernel TCP sockets, messages of fixed length in the stream, TCP_NODELAY"),
        Path("rdma-send", "verbs", "verbs", "RC SEND into a posted, pinned receive buffer"),
        Path(
            "rdma-write",
            "verbs",
            "verbs",
            "RC WRITE into the peer's pinned buffer; the receiver polls memory",
            False,
            "client",
        ),
        Path("rdma-write-imm", "verbs", "verbs", "RC WRITE with immediate: as rdma-write, and the receiver gets a CQE"),
        Path("rdma-read", "verbs", "verbs", "RC READ from the peer's pinned buffer (full round trip)", True, "client"),
        Path("rdma-ud", "verbs", "verbs", "UD SEND: unconnected datagrams between queue pairs, may be lost"),
        Path("packet-ring", "nic", "root", "AF_PACKET, TPACKET_V3: the kernel copies each frame into a shared ring"),
        Path("xdp", "nic", "root", "AF_XDP: frames from the driver, or the NIC, to our memory, in front of the stack"),
        Path("nic-pio", "nic", "nic", "an NE2000, the old way: interrupt, and the CPU carries each word by a port"),
        Path("nic-ring", "nic", "nic", "hwrx drives the NIC: DMA into the user's pinned buffers, UDP done in place"),
    )
}


def find(name: str) -> Path:
    """Return the path called `name`; UsageError names the ones that exist."""
    try:
        return PATHS[name]
    except KeyError:
        raise UsageError(f"there is no path '{name}'", remedy=f"choose of: {', '.join(PATHS)}") from None


def check(setting: Setting) -> None:
    """UsageError where the setting cannot be, before anything is started."""
    if setting.crowd and setting.path != "udp":
        raise UsageError(f"a crowd stands in UDP's table, which {setting.path} does not use", remedy="leave crowd out")
    if setting.hook != "none" and find(setting.path).family != "sockets":
        raise UsageError(f"a hook lies on the way to the kernel's sockets, not on that of {setting.path}")
    if setting.senders > 1 and setting.pattern == "paced":
        raise UsageError("an open loop has one sender", remedy="pingpong or stream, or senders = 1")
    importlib.import_module(f"hwrx.paths.{find(setting.path).family}").check(setting)


def open_endpoint(prepare: Prepare) -> Transport:
    """Create one end of a path; the caller closes it."""
    family = importlib.import_module(f"hwrx.paths.{find(prepare.setting.path).family}")
    return cast("Transport", family.open_endpoint(prepare))
