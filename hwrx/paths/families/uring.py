"""The kernel's sockets through io_uring: `udp` and `tcp` whose sends and receives are asked for in a shared ring.

The sockets are those of the family `sockets`, with the same options; what differs is how a message is handed over and
how its end waits. So the difference between `udp` and `udp-uring` is that of the two interfaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwrx.errors import UsageError
from hwrx.paths.families import sockets
from hwrx.paths.model import MIXED, WINDOW, Look, Path

if TYPE_CHECKING:
    from cython_ext.sockets.socket_transport import SocketTransport
    from hwrx.control.messages import Prepare, Setting

_READS = (
    frozenset({"socket_buffer", "zerocopy_send", "huge_pages", "hook", "senders", "netem", "traffic_class"}) | MIXED
)
_STRADDLES = (
    "it fills provided buffers with whatever bytes of the stream are there, and a message that lies in two of them"
    " would have to be copied into one piece",
    "",
)
_ONE_RING = (
    "its reader waits on the ring of one socket, where a flood's readers wait for several by epoll; where its messages"
    " are lost, on the way to the socket's queue, they are lost over udp and tcp, too"
)
PATHS = (
    Path(
        name="udp-uring",
        needs="nothing",
        sentence="kernel UDP sockets through io_uring: one call sends, and waits for what comes",
        way="udp-uring",
        look=Look("#4a6fb5", "4", (0, (7, 1, 1, 1))),
        reads=_READS | {"multishot"},
        reads_in={"stream": WINDOW},
        copied_out="copied to the user",
        unflooded=_ONE_RING,
    ),
    Path(
        name="tcp-uring",
        needs="nothing",
        sentence="kernel TCP sockets through io_uring: one call sends, and waits for what comes",
        way="tcp-uring",
        look=Look("#b0486a", "1", (0, (3, 1, 3, 3))),
        reads=_READS,
        reads_in={"paced": WINDOW},
        unread={
            ("multishot", "pingpong"): _STRADDLES,
            ("multishot", "stream"): _STRADDLES,
            ("multishot", "paced"): _STRADDLES,
            **sockets.UNBOUNDED,
        },
        copied_out="copied to the user",
        unflooded=_ONE_RING,
    ),
)
# of a setting -> how the ring is waited on, in the sockets' words
WAITS = {"event": "block", "block": "block", "poll": "spin", "spin": "spin"}


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be."""
    if setting.wait not in WAITS:
        raise UsageError(
            f"{setting.path} waits on its own completion ring, and not by '{setting.wait}'",
            remedy="event (asleep in io_uring_enter), or poll (looking at the ring); or the paths udp and tcp",
        )
    sockets.check_setting(setting)


def preload_endpoints() -> None:
    """Import what endpoints need, so that whoever is forked from this process has it."""
    import cython_ext.sockets.tcp_uring  # noqa: F401 -- they are wanted in the process, not here
    import cython_ext.sockets.udp_uring  # noqa: F401


def open_endpoint(prepare: Prepare) -> SocketTransport:
    """Return one end of a trial, bound and (a TCP server's) listening; the caller closes it.

    :raises MachineError: if this kernel has no io_uring, not enough of it, or does not let this process use it
    """
    from cython_ext.sockets.tcp_uring import UringTcpTransport
    from cython_ext.sockets.udp_uring import UringUdpTransport

    setting = prepare.setting
    check_setting(setting)
    sock, common = sockets.ready_socket(prepare)
    common["manner"] = WAITS[setting.wait]
    try:
        if setting.path == "udp-uring":
            return UringUdpTransport(
                sock, trial=prepare.trial, pattern=setting.pattern, multishot=setting.multishot, **common
            )
        listens = prepare.role == "server"
        if listens:
            sock.listen(1)
        return UringTcpTransport(sock, pattern=setting.pattern, listens=listens, **common)
    except BaseException:
        sock.close()
        raise
