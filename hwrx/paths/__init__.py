"""The delivery paths: what each is called, what it does, which fields of a setting it reads, and what sets it up.

A family module (`sockets`, `verbs`, …) offers two functions: `check(setting)` raises UsageError in words where a
setting cannot be, and `open_endpoint(prepare)` returns a `cython_ext.transport.Transport` for one end of a trial.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from msgspec import Struct

from hwrx.control.messages import Pattern, Role, Setting
from hwrx.errors import UsageError

if TYPE_CHECKING:
    from cython_ext.transport import Transport
    from hwrx.control.messages import Prepare

Needs = Literal["nothing", "verbs", "root", "nic"]

DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in msgspec.structs.fields(Setting) if field.default is not msgspec.NODEFAULT
}
# Fields of a Setting that only some paths or patterns read. The loops, or the agents, read all others on every path.
BY_PATTERN: dict[Pattern, frozenset[str]] = {
    "pingpong": frozenset({"rest"}),
    "stream": frozenset({"batch", "settle"}),
    "paced": frozenset({"batch", "rate", "arrivals"}),
}
HOLDING = ("nic-ring",)  # take a NIC from the kernel, which takes long: trials of theirs follow each other
MOST_BATCH = 256  # cython_ext.trial.MOST
_SOCKET = frozenset({"socket_buffer", "zerocopy_send", "huge_pages", "hook", "senders", "netem"})
_QUEUE_PAIR = frozenset({"window", "mtu", "gid_index", "huge_pages", "senders", "netem"})
_SENDING = frozenset({"signal_every", "inline"})
_RECEIVING = frozenset({"receives", "completions"})
_WINDOW = frozenset({"window"})
# What is done to a path, or beside it, and not how it is set up: where a path cannot have it, it cannot be compared
# with one that can.
CONDITIONS = ("netem", "hook", "crowd", "crowd_on", "senders")


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
    reads: frozenset[str] = frozenset()  # of the fields that not every path reads: those that it does, in any pattern
    reads_in: Mapping[Pattern, frozenset[str]] = {}  # those that it reads in one pattern only


PATHS: dict[str, Path] = {
    path.name: path
    for path in (
        Path(
            "udp",
            "sockets",
            "nothing",
            "kernel UDP sockets, connected, one datagram a message",
            reads=_SOCKET | {"crowd", "crowd_on"},
            reads_in={"stream": _WINDOW},
        ),
        Path(
            "tcp",
            "sockets",
            "nothing",
            "kernel TCP sockets, messages of fixed length in the stream, TCP_NODELAY",
            reads=_SOCKET | {"zerocopy_receive"},
            # a stream goes as far as the kernel's congestion window and both socket buffers let it
            reads_in={"paced": _WINDOW},
        ),
        Path(
            "rdma-send",
            "verbs",
            "verbs",
            "RC SEND into a posted, pinned receive buffer",
            reads=_QUEUE_PAIR | _SENDING | _RECEIVING,
        ),
        Path(
            "rdma-write",
            "verbs",
            "verbs",
            "RC WRITE into the peer's pinned buffer; the receiver polls memory",
            stream_seen_by="client",
            reads=_QUEUE_PAIR | _SENDING | {"receives"},  # the slots to write to; no completions are received
        ),
        Path(
            "rdma-write-imm",
            "verbs",
            "verbs",
            "RC WRITE with immediate: as rdma-write, and the receiver gets a CQE",
            reads=_QUEUE_PAIR | _SENDING | _RECEIVING,
        ),
        Path(
            "rdma-read",
            "verbs",
            "verbs",
            "RC READ from the peer's pinned buffer (full round trip)",
            full_rtt=True,
            stream_seen_by="client",
            reads=_QUEUE_PAIR,  # every READ is signalled, carries nothing out and takes no receive request
        ),
        Path(
            "rdma-ud",
            "verbs",
            "verbs",
            "UD SEND: unconnected datagrams between queue pairs, may be lost",
            reads=_QUEUE_PAIR | _SENDING | _RECEIVING,
        ),
        Path(
            "packet-ring",
            "nic",
            "root",
            "AF_PACKET, TPACKET_V3: the kernel copies each frame into a shared ring",
            reads=frozenset({"netem", "senders"}),
            reads_in={"stream": _WINDOW},
        ),
        Path(
            "xdp",
            "nic",
            "root",
            "AF_XDP: frames from the driver, or the NIC, to our memory, in front of the stack",
            reads_in={"stream": _WINDOW},
        ),
        Path(
            "nic-pio",
            "nic",
            "nic",
            "an NE2000, the old way: interrupt, and the CPU carries each word by a port",
            reads_in={"stream": _WINDOW},
        ),
        Path(
            "nic-ring",
            "nic",
            "nic",
            "hwrx drives the NIC: DMA into the user's pinned buffers, UDP done in place",
            reads_in={"stream": _WINDOW},
        ),
    )
}
_SELECTIVE = frozenset().union(
    *BY_PATTERN.values(), *(fields for path in PATHS.values() for fields in (path.reads, *path.reads_in.values()))
)


def find_path(name: str) -> Path:
    """Return the path called `name`; UsageError names the ones that exist."""
    try:
        return PATHS[name]
    except KeyError:
        raise UsageError(f"there is no path '{name}'", remedy=f"choose of: {', '.join(PATHS)}") from None


def reads_field(path: str, pattern: Pattern, field: str) -> bool:
    """Whether a path reads this field of a Setting in this pattern; UsageError if there is no such path."""
    found = find_path(path)
    return (
        field not in _SELECTIVE
        or field in BY_PATTERN[pattern]
        or field in found.reads
        or field in found.reads_in.get(pattern, frozenset())
    )


def settings_read(setting: Setting) -> dict[str, Any]:
    """Return the fields that a setting's path reads in its pattern, with their values: what tells two trials apart.

    A field that is left out had no influence, whatever its value.
    """
    return {
        name: getattr(setting, name)
        for name in setting.__struct_fields__
        if reads_field(setting.path, setting.pattern, name)
    }


def refuse_unread(path: str, pattern: Pattern, field: str) -> UsageError:
    """Return the error for a field that was asked for and that the path does not read in this pattern."""
    elsewhere = [other for other in BY_PATTERN if reads_field(path, other, field)]
    others = [name for name in PATHS if reads_field(name, pattern, field)]
    words = f"{path} does not read {field} in {pattern}"
    if elsewhere:
        words += f", only in {' and '.join(elsewhere)}"
    if field == "window" and path == "tcp" and pattern == "stream":
        words += ": how far a stream runs ahead is decided by the kernel's congestion window and both socket buffers"
    readers = f"; in {pattern} it is read by {', '.join(others)}" if others else ""
    bounds = ", or bound it with socket_buffer" if field == "window" and path == "tcp" else ""
    return UsageError(words, remedy=f"leave {field} out{bounds}{readers}")


def check_setting(setting: Setting) -> None:
    """Raise UsageError if the path cannot do the setting, or does not read a field that differs from its default."""
    if setting.crowd and not reads_field(setting.path, setting.pattern, "crowd"):
        raise UsageError(f"a crowd stands in UDP's table, which {setting.path} does not use", remedy="leave crowd out")
    if setting.hook != "none" and not reads_field(setting.path, setting.pattern, "hook"):
        raise UsageError(
            f"a hook lies on the way to the kernel's sockets, not on that of {setting.path}", remedy="leave hook out"
        )
    if setting.netem and not reads_field(setting.path, setting.pattern, "netem"):
        raise UsageError(
            f"netem is a queueing discipline of the kernel, and what {setting.path} sends passes none",
            remedy="leave netem out, or choose packet-ring, a socket path or a verbs path",
        )
    if setting.senders > 1 and not reads_field(setting.path, setting.pattern, "senders"):
        raise UsageError(
            f"{setting.path} takes the device's queue for itself, so several senders cannot share the device",
            remedy="senders = 1, or choose packet-ring, a socket path or a verbs path",
        )
    if setting.senders > 1 and setting.pattern == "paced":
        raise UsageError("an open loop has one sender", remedy="pingpong or stream, or senders = 1")
    if setting.batch > MOST_BATCH:
        raise UsageError(
            f"one call takes or sends at most {MOST_BATCH} messages, not {setting.batch}", remedy="a smaller batch"
        )
    for field, default in DEFAULTS.items():
        if getattr(setting, field) != default and not reads_field(setting.path, setting.pattern, field):
            raise refuse_unread(setting.path, setting.pattern, field)
    importlib.import_module(f"hwrx.paths.{find_path(setting.path).family}").check_setting(setting)


def open_endpoint(prepare: Prepare) -> Transport:
    """Create one end of a path; the caller closes it."""
    family = importlib.import_module(f"hwrx.paths.{find_path(prepare.setting.path).family}")
    return cast("Transport", family.open_endpoint(prepare))


def release_held() -> None:
    """Let go of what paths hold in this process between two trials (`Prepare.hold`)."""
    module = sys.modules.get("hwrx.paths.nic")  # not there: no trial of it was run
    if module is not None:
        module.give_back_nics()


def holds(path: str, following: str | None) -> bool:
    """Whether a trial of a path leaves what it took from the kernel to the trial that follows it, if one does."""
    return path in HOLDING and path == following
