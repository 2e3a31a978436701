"""The kernel's sockets: what may be asked of `udp` and `tcp`, and the sockets made ready for the loops.

Other families deliver through such sockets in another way; they take theirs from `ready_socket`.

The server of a trial listens and the client connects; UDP connects both ends, so that each hears only the other. What
is chosen here stands in the manifest of a run by way of `Transport.chosen`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import pathlib
import socket
import struct
from typing import TYPE_CHECKING, Any, TypedDict

from hwrx.errors import MachineError, PathError, UsageError
from hwrx.host import tools
from hwrx.lookup.crowd import SPARE, Crowded, allow_descriptors
from hwrx.paths import hooks
from hwrx.paths.model import CONNECTIONS, MIXED, POLLED, WINDOW, Flooding, Look, Path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cython_ext.sockets.socket_transport import SocketTransport
    from hwrx.control.messages import Pattern, Prepare, Setting
    from hwrx.control.places import Place

_OPTIONS = frozenset({"socket_buffer", "huge_pages", "hook", "senders", "netem", "traffic_class"}) | POLLED | MIXED
_READS = _OPTIONS | {"zerocopy_send"}
# of every path over a TCP socket
UNBOUNDED: Mapping[tuple[str, Pattern], tuple[str, str]] = {
    ("window", "stream"): (
        "how far a stream runs ahead is decided by the kernel's congestion window and both socket buffers",
        "or bound it with socket_buffer",
    ),
    ("window", "pingpong"): ("", "or bound it with socket_buffer"),
}
PATHS = (
    Path(
        name="udp",
        needs="nothing",
        sentence="kernel UDP sockets, connected, one datagram a message",
        way="udp",
        look=Look("#1b75c4", "o", "-"),
        reads=_READS | {"crowd", "crowd_on"},
        reads_in={"stream": WINDOW, "pingpong": CONNECTIONS},
        flooding=Flooding(sockets=True),
        copied_in=("ip_generic_getfrag", "sock_send_length"),
        copied_out="copied to the user",
    ),
    Path(
        name="tcp",
        needs="nothing",
        sentence="kernel TCP sockets, messages of fixed length in the stream, TCP_NODELAY",
        way="tcp",
        look=Look("#0e96a3", "s", (0, (5, 1.5))),
        reads=_READS | {"zerocopy_receive"},
        reads_in={"paced": WINDOW, "pingpong": CONNECTIONS},
        unread=UNBOUNDED,
        flooding=Flooding(sockets=True, stops=True),
        copied_in=("tcp_sendmsg",),
        copied_out="copied to the user",
    ),
    Path(
        name="tcp-ktls",
        needs="nothing",
        sentence="TCP sockets with the kernel's own TLS 1.3: each record is encrypted and decrypted by the CPU",
        way="tls",
        look=Look("#8a5fb3", "2", (0, (1, 1, 4, 1))),
        reads=_OPTIONS,
        reads_in={"paced": WINDOW},
        unread=UNBOUNDED,
        copied_out="tls_sw_recvmsg",
        unflooded="what passes the kernel is ciphertext, in which no message can be told; its sender waits as tcp's",
    ),
    Path(
        name="mptcp",
        needs="nothing",
        sentence="Multipath TCP sockets; a connection that fell back to TCP is refused",
        way="mptcp",
        look=Look("#a8611c", "3", (0, (6, 1, 2, 1))),
        reads=_OPTIONS,
        reads_in={"paced": WINDOW},
        unread=UNBOUNDED,
        copied_out="mptcp_recvmsg",
        unflooded="its queues are those of subflows, not those of the socket whose account is kept; each is of TCP",
    ),
)
IPPROTO_MPTCP = 262  # linux/in.h; Python's socket module has it since 3.12
# path -> kind of its sockets and protocol; all others have datagrams
STREAMS = {
    "tcp": socket.IPPROTO_TCP,
    "tcp-uring": socket.IPPROTO_TCP,
    "tcp-ktls": socket.IPPROTO_TCP,
    "mptcp": IPPROTO_MPTCP,
}
TCP_ULP = 31  # linux/tcp.h
# 65,535 bytes of an IPv4 packet less its header and UDP's: the smaller of both families'
LARGEST_DATAGRAM = 65507
PAGE = mmap.PAGESIZE
ECN = 3  # the two bits of a traffic class that TCP sets itself (RFC 3168)
TIMESTAMPS = 12  # bytes of TCP's time stamp option, which Linux sends with every segment
# Microseconds that a busy-polling receive looks at the device's queue before it sleeps
BUSY_POLL = 50
# of asm-generic/socket.h; Python's socket module does not have them
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_BUSY_POLL = 46
# linux/sockios.h, linux/ethtool.h
SIOCETHTOOL = 0x8946
ETHTOOL_GRXCSUM, ETHTOOL_GTXCSUM = 0x14, 0x16

# poll and event are every path's words
MANNERS = {"poll": "spin", "event": "block"}


def socket_manner(setting: Setting) -> str:
    """How the socket waits, in the sockets' own words: block, busy-poll, epoll, select or spin."""
    return MANNERS.get(setting.wait, setting.wait)


def check_setting(setting: Setting) -> None:
    """UsageError where the setting cannot be."""
    if setting.path not in STREAMS and setting.size > LARGEST_DATAGRAM:
        raise UsageError(
            f"a UDP datagram carries at most {LARGEST_DATAGRAM} bytes, not {setting.size}",
            remedy="choose a smaller size, or tcp",
        )
    if setting.pattern == "paced" and setting.rate is None:
        raise UsageError("paced needs a rate in messages a second", remedy="set rate")
    if setting.path in STREAMS and setting.traffic_class & ECN:
        raise UsageError(
            f"{setting.path} keeps the two lowest bits of the traffic class (ECN) for its congestion control, and"
            f" {setting.traffic_class} has some of them",
            remedy=f"--traffic-class {setting.traffic_class & ~ECN}, that is DSCP {setting.traffic_class >> 2} times 4",
        )
    if setting.connections > 1:
        _check_many(setting)
    if setting.zerocopy_receive and setting.mix:
        raise UsageError(
            "zerocopy_receive maps whole pages, and messages that differ in size do not end with them",
            remedy="leave zerocopy_receive out, or give sizes one by one",
        )
    if setting.zerocopy_receive and setting.size % PAGE:
        raise UsageError(
            f"zerocopy_receive maps whole pages: the size must be a multiple of {PAGE} bytes, not {setting.size}",
            remedy=f"for example {-(-setting.size // PAGE) * PAGE}",
        )
    hooks.find_hook(setting.hook)


def _check_many(setting: Setting) -> None:
    """UsageError if many connections cannot have the setting."""
    if socket_manner(setting) not in ("block", "epoll", "spin"):
        raise UsageError(
            f"many sockets are waited for by epoll, or polled, not by '{setting.wait}'", remedy="event, epoll or poll"
        )
    for field in ("zerocopy_send", "zerocopy_receive"):
        if getattr(setting, field):
            raise UsageError(f"{field} is of a single connection", remedy=f"leave {field} out, or connections = 1")
    for field, other in (("hook", "none"), ("crowd", 0)):
        if getattr(setting, field) != other:
            raise UsageError(f"a {field} stands beside a single socket", remedy=f"leave {field} out")


def preload_endpoints() -> None:
    """Import what endpoints need, so that whoever is forked from this process has it."""
    import cython_ext.sockets.many_sockets  # noqa: F401 -- they are wanted in the process, not here
    import cython_ext.sockets.mptcp  # noqa: F401
    import cython_ext.sockets.tcp  # noqa: F401
    import cython_ext.sockets.tcp_mapped  # noqa: F401
    import cython_ext.sockets.tcp_tls  # noqa: F401
    import cython_ext.sockets.udp  # noqa: F401

    "".encode("idna")  # getaddrinfo's codec for names of hosts, which it imports when it is first called


class Common(TypedDict):
    """The arguments that all SocketTransports have in common: see cython_ext.sockets."""

    size: int
    window: int
    batch: int
    manner: str
    patience: float
    limit: float
    huge: bool
    zerocopy: bool
    notes: dict[str, object]


def ready_socket(prepare: Prepare) -> tuple[Crowded, Common]:
    """Return the socket of one end, bound, with its options and its hook, and what every transport over it is told.

    A server's stream does not listen yet.
    """
    setting = prepare.setting
    sock, notes = _open_socket(setting, prepare.here)
    try:
        if setting.crowd and prepare.role == "server":
            sock.gather(setting.crowd, setting.crowd_on)
            notes["crowd"] = f"{setting.crowd} {setting.crowd_on}"
        if setting.hook != "none":
            hooks.put_hook(setting.hook, sock, prepare.here.netdev, sock.along, first=prepare.role == "server")
            notes["hook"] = setting.hook
    except BaseException:
        sock.close()
        raise
    return sock, {
        "size": setting.size,
        "window": setting.window,
        # ping-pong has one message on its way
        "batch": 1 if setting.pattern == "pingpong" else setting.batch,
        "manner": socket_manner(setting),
        "patience": min(setting.patience, setting.limit),
        "limit": setting.limit,
        "huge": setting.huge_pages,
        "zerocopy": setting.zerocopy_send,
        "notes": notes,
    }


def open_endpoint(prepare: Prepare) -> SocketTransport:
    """Return one end of a trial, bound and (a TCP server's) listening; the caller closes it."""
    from cython_ext.sockets.tcp import TcpTransport
    from cython_ext.sockets.udp import UdpTransport

    setting = prepare.setting
    check_setting(setting)
    if setting.connections > 1:
        return _open_many(prepare)
    if setting.path == "tcp-ktls":
        _load_tls()
    sock, common = ready_socket(prepare)
    try:
        if setting.path == "udp":
            return UdpTransport(sock, stream=setting.pattern == "stream", trial=prepare.trial, **common)
        listens = prepare.role == "server"
        if listens:
            sock.listen(1)
        make: Callable[..., SocketTransport] = TcpTransport
        if setting.zerocopy_receive:
            from cython_ext.sockets.tcp_mapped import MappedTcpTransport

            make = MappedTcpTransport
        elif setting.path == "tcp-ktls":
            from cython_ext.sockets.tcp_tls import TlsTransport

            make = functools.partial(TlsTransport, key=_trial_key(prepare))
        elif setting.path == "mptcp":
            from cython_ext.sockets.mptcp import MptcpTransport

            make = MptcpTransport
        return make(sock, pattern=setting.pattern, listens=listens, **common)
    except BaseException:
        sock.close()
        raise


def _open_many(prepare: Prepare) -> SocketTransport:
    """Return one end of many connections: a socket each; a TCP server's are accepted when it connects."""
    from cython_ext.sockets.many_sockets import ManySocketsTransport

    setting = prepare.setting
    listens = setting.path == "tcp" and prepare.role == "server"
    allow_descriptors(setting.connections + SPARE)
    with contextlib.ExitStack() as opened:
        socks: list[socket.socket] = []
        notes: dict[str, Any] = {}
        for _ in range(1 if listens else setting.connections):
            sock, notes = _open_socket(setting, prepare.here)
            socks.append(opened.enter_context(sock))
        if listens:
            socks[0].listen(setting.connections)
        manner = "spin" if socket_manner(setting) == "spin" else "epoll"
        endpoint = ManySocketsTransport(
            socks, size=setting.size, count=setting.connections, listens=listens, manner=manner, limit=setting.limit,
            huge=setting.huge_pages, notes={**notes, "wait": manner},
        )  # fmt: skip
        opened.pop_all()  # they are the endpoint's now
        return endpoint


def _load_tls() -> None:
    """See that the kernel has its module for TLS, and the processor's for the cipher; MachineError without the first.

    The processor's are loaded by udev where there is one: a lab's guest has none.
    """
    for module in ("aesni_intel", "ghash_clmulni_intel"):
        if not pathlib.Path("/sys/module", module).exists():
            with contextlib.suppress(MachineError):
                tools.run_tool("modprobe", module)
    for attempt in ("as it is", "loaded"):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as asking:
            try:
                asking.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            except OSError as error:
                if error.errno == errno.ENOTCONN:  # it is there, and wants a connection (tls_init)
                    return
        if attempt == "as it is":
            with contextlib.suppress(MachineError):
                tools.run_tool("modprobe", "tls")
    raise MachineError(
        "this kernel has no TLS of its own (CONFIG_TLS, the module tls)",
        remedy="a kernel that has it, with its modules; run as root, so that it can be loaded; or the path tcp",
    )


def _trial_key(prepare: Prepare) -> bytes:
    """Return what this end encrypts with: the same in every run, so that runs do the same, and nobody's secret."""
    from cython_ext.sockets.tcp_tls import KEY_BYTES

    return hashlib.sha512(f"hwrx trial {prepare.trial} {prepare.role}".encode()).digest()[:KEY_BYTES]


def _open_socket(setting: Setting, here: Place) -> tuple[Crowded, dict[str, Any]]:
    """Return a bound socket with all its options, and what there is to tell about them."""
    stream = setting.path in STREAMS
    family, address = _address(here)
    notes: dict[str, Any] = {
        "wait": socket_manner(setting),
        "family": "IPv6" if family == socket.AF_INET6 else "IPv4",
        "device": here.netdev,
        **checksummed_by(here.netdev or "lo"),
    }
    try:
        sock = (
            Crowded(family, socket.SOCK_STREAM, STREAMS[setting.path]) if stream else Crowded(family, socket.SOCK_DGRAM)
        )
    except OSError as error:
        if setting.path != "mptcp" or error.errno not in (errno.ENOPROTOOPT, errno.EPROTONOSUPPORT):
            raise
        off = error.errno == errno.ENOPROTOOPT
        why = "net.mptcp.enabled is 0" if off else "this kernel has none (CONFIG_MPTCP)"
        raise MachineError(
            f"no Multipath TCP socket here: {why}",
            remedy="sysctl -w net.mptcp.enabled=1" if off else "a kernel that has it, or the path tcp",
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if here.netdev is not None:
            _bind_to_device(sock, here.netdev)
        if setting.socket_buffer is not None:
            _set_buffers(sock, setting.socket_buffer)
        if stream:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notes["nodelay"] = True
            if setting.zerocopy_receive:
                # whole pages in every segment, where the MTU lets them: the option's value counts the timestamps
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PAGE + TIMESTAMPS)
        if setting.traffic_class:
            notes["traffic_class"] = _classify(sock, family, setting.traffic_class)
        if setting.wait == "busy-poll":
            notes["busy_poll"] = _busy_poll(sock)
        try:
            sock.bind(address)
        except OSError as error:
            raise PathError(
                f"cannot bind a {setting.path} socket to {here.address}: {error.strerror} ({_name(error)})",
                remedy="see whether the address belongs to this machine: ip address show",
            ) from error
    except BaseException:
        sock.close()
        raise
    return sock, notes


def checksummed_by(netdev: str) -> dict[str, str]:
    """Tell who sums what a socket sends and receives: `device` if the kernel leaves it to that, else `kernel`.

    Between the ends of a veth pair, or on `lo`, what is left to the device is summed by nobody. Paths that build frames
    themselves sum them on their own CPU, which a comparison has to know. Empty if the device does not tell.
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name, command in (("checksum_sent_by", ETHTOOL_GTXCSUM), ("checksum_verified_by", ETHTOOL_GRXCSUM)):
            value = array.array("I", [command, 0])
            request = struct.pack("16sP16x", os.fsencode(netdev)[:15], value.buffer_info()[0])
            with contextlib.suppress(OSError):
                fcntl.ioctl(asking, SIOCETHTOOL, request)
                found[name] = "device" if value[1] else "kernel"
    return found


def _address(here: Place) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the socket address, port 0, of a place."""
    text = here.address
    if here.netdev is not None and text.lower().startswith("fe80:") and "%" not in text:
        text = f"{text}%{here.netdev}"  # a link-local address means nothing without its link
    try:
        found = socket.getaddrinfo(text, 0, 0, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)
    except socket.gaierror as error:
        raise UsageError(
            f"'{here.address}' is no IPv4 or IPv6 address: {error.strerror}", remedy="give numbers, not a name"
        ) from error
    return found[0][0], found[0][4]


def _bind_to_device(sock: socket.socket, netdev: str) -> None:
    """All paths of a comparison cross the same wire: without this, local to local goes over lo."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(netdev))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise MachineError(
                f"there is no network device '{netdev}'", remedy="ip link show names those there are"
            ) from error
        raise MachineError(
            f"cannot bind a socket to {netdev}: {error.strerror} ({_name(error)})",
            remedy="run as root, or with CAP_NET_RAW",
        ) from error


def _set_buffers(sock: socket.socket, size: int) -> None:
    """Set SO_SNDBUF and SO_RCVBUF; beyond net.core.wmem_max and rmem_max if the privilege allows that.

    MachineError if the kernel grants less: it would cut the size off in silence. `chosen` tells what it made of it:
    twice what was asked for, or its own least.
    """
    for option, forced, limit in (
        (socket.SO_SNDBUF, SO_SNDBUFFORCE, "wmem_max"),
        (socket.SO_RCVBUF, SO_RCVBUFFORCE, "rmem_max"),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        granted = sock.getsockopt(socket.SOL_SOCKET, option) // 2
        if granted < size:
            raise MachineError(
                f"the kernel grants a socket buffer of {granted} bytes, not {size}",
                remedy=f"run as root, or sysctl -w net.core.{limit}={size}, or a smaller socket_buffer",
            )


def _classify(sock: socket.socket, family: socket.AddressFamily, traffic_class: int) -> int:
    """Set IP_TOS or IPV6_TCLASS of all that the socket sends; return what the kernel has of it.

    A connection that is accepted has its listener's. MachineError if the kernel refuses it, or keeps another.
    """
    level, option, name = (
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, "IPV6_TCLASS")
        if family == socket.AF_INET6
        else (socket.IPPROTO_IP, socket.IP_TOS, "IP_TOS")
    )
    try:
        sock.setsockopt(level, option, traffic_class)
        granted = sock.getsockopt(level, option)
    except OSError as error:
        raise MachineError(
            f"the kernel refuses traffic class {traffic_class}: {name}: {error.strerror} ({_name(error)})",
            remedy="run as root (a precedence above 5 may want CAP_NET_ADMIN), or leave traffic_class out",
        ) from error
    if granted != traffic_class:
        raise MachineError(
            f"the socket was given traffic class {traffic_class} and has {granted}: this kernel does not keep it",
            remedy=f"--traffic-class {granted}, or leave traffic_class out",
        )
    return granted


def _busy_poll(sock: socket.socket) -> str:
    """Set SO_BUSY_POLL; MachineError if it is refused: the receiver would block without polling, under another name."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, BUSY_POLL)
    except OSError as error:
        raise MachineError(
            f"a socket cannot poll its device: SO_BUSY_POLL: {error.strerror} ({_name(error)})",
            remedy="run as root, on a kernel with CONFIG_NET_RX_BUSY_POLL; or wait by block or poll",
        ) from error
    return f"{BUSY_POLL} µs"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))
