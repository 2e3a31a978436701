"""What the kernel's network device of a NIC has, and what is given back to it when it comes back.

It goes with its driver: names, addresses, routes, flags, features, rings, queues, sysctls, all. What differs from what
the driver begins with again is set; the rest is left as it came.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.verbs import rxe

NETDEVS = Path("/sys/class/net")
SYSCTLS = tuple(Path("/proc/sys/net") / room for room in ("ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"))
# files beneath /sys/class/net/NAME that can be written and say something of the device itself
ATTRIBUTES = ("gro_flush_timeout", "napi_defer_hard_irqs", "threaded", "ifalias", "netdev_group")
QUEUE_ATTRIBUTES = ("rps_cpus", "rps_flow_cnt", "xps_cpus", "xps_rxqs")
# flags of netdevice(7) that `ip link set` knows by a word
FLAGS = {"promisc": ("PROMISC", True), "allmulticast": ("ALLMULTI", True), "arp": ("NOARP", False),
         "multicast": ("MULTICAST", True), "dynamic": ("DYNAMIC", True)}  # fmt: skip
# linux/ethtool.h: name, the command that gets, the one that sets, and the length of both in 32-bit words
SIOCETHTOOL = 0x8946
SETTINGS = (
    ("rings", 0x10, 0x11, 9),  # struct ethtool_ringparam
    ("channels", 0x3C, 0x3D, 9),  # struct ethtool_channels
    ("coalescing", 0x0E, 0x0F, 23),  # struct ethtool_coalesce
    ("pause", 0x12, 0x13, 4),  # struct ethtool_pauseparam
    ("wake on LAN", 0x05, 0x06, 5),  # struct ethtool_wolinfo
    ("message level", 0x07, 0x08, 2),  # struct ethtool_value
)
ETHTOOL_GSSET_INFO, ETHTOOL_GFEATURES, ETHTOOL_SFEATURES, ETH_SS_FEATURES = 0x37, 0x3A, 0x3B, 4
LOCAL_ROUTES = ("local", "broadcast", "anycast")
ROUTE_WORDS = (("gateway", "via"), ("table", "table"), ("protocol", "proto"), ("scope", "scope"), ("prefsrc", "src"),
               ("metric", "metric"), ("pref", "pref"))  # fmt: skip


class Belongings(Struct, kw_only=True):
    """What a network device had; texts as the kernel's files and tools have them."""

    netdev: str
    mac: str | None = None
    up: bool = False
    carrier: bool = False
    mtu: int = 1500
    queue_length: int = 1000
    addresses: list[str] = []  # 192.0.2.1/24, with the prefix
    neighbours: dict[str, str] = {}  # address and MAC of the permanent ones
    routes: list[str] = []  # those that the kernel does not make itself, in the words of `ip route`
    flags: dict[str, bool] = {}  # those of FLAGS
    qdisc: str = ""  # the root's, in the words of `tc`; "": the kernel's own choice
    settings: dict[str, str] = {}  # those of SETTINGS, in hexadecimal digits
    features: str = ""  # bits that were asked for, in hexadecimal digits
    files: dict[str, str] = {}  # of /sys and /proc/sys
    rxe: str | None = None  # SoftRoCE device on the network device: it goes with it


class Tables(Struct, frozen=True):
    """What `ip` and `tc` show of a network device, each a list of JSON objects."""

    link: dict[str, Any]
    routes: list[dict[str, Any]]  # of both families, all tables
    addresses: list[dict[str, Any]]
    neighbours: list[dict[str, Any]]
    qdiscs: list[dict[str, Any]]

    def addresses_given(self) -> list[str]:
        """Addresses with prefix; those that the kernel gives every IPv6 device by itself (link-local) are left out."""
        return [
            f"{entry['local']}/{entry['prefixlen']}" for entry in self.addresses if entry.get("scope") != "link"
        ]  # fmt: skip

    def routes_given(self) -> list[dict[str, Any]]:
        """Routes that the kernel does not make itself for an address of the device."""
        return [
            route
            for route in self.routes
            if route.get("protocol") != "kernel" and route.get("type", "unicast") not in LOCAL_ROUTES
        ]


def read_tables(netdev: str) -> Tables:
    """Ask `ip` and `tc` for what a network device has.

    :raises MachineError: if a tool fails.
    """
    # of all tables, or `ip route` would show IPv4 alone; one process: each takes an emulated guest 0.1 s. `addr show`
    # shows the link, too; after a `link show` in the same process it would show no addresses
    words = ("route show table all", "addr show", "neighbour show")
    answers = call_ip([f"{each} dev {netdev}" for each in words], "-json", "-details").splitlines()
    routes, addr, neighbours = ([entry for entry in json.loads(answer) if entry] for answer in answers)
    qdiscs = json.loads(tools.run_tool("tc", "-json", "qdisc", "show", "dev", netdev) or "[]")
    return Tables(addr[0], routes, addr[0].get("addr_info", []), neighbours, qdiscs)


def call_ip(commands: Sequence[str], *options: str) -> str:
    """Have `ip` do all of them in one process; return what it printed, a line a command with `-json`.

    :raises MachineError: with its own words.
    """
    return tools.run_tool("ip", *options, "-batch", "-", given="\n".join(commands))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_belongings(netdev: str, tables: Tables) -> Belongings:
    """Return all that a network device has, for `restore_belongings`."""
    folder = NETDEVS / netdev
    flags = tables.link.get("flags", [])
    up = "UP" in flags
    return Belongings(
        netdev=netdev,
        mac=tables.link.get("address"),
        up=up,
        carrier=up and _text(folder / "carrier") == "1",
        mtu=int(tables.link.get("mtu", 1500)),
        queue_length=int(tables.link.get("txqlen", 1000)),
        addresses=tables.addresses_given(),
        neighbours={
            entry["dst"]: entry["lladdr"]
            for entry in tables.neighbours
            if "PERMANENT" in entry.get("state", []) and "lladdr" in entry
        },
        routes=[_route_words(route) for route in tables.routes_given()],
        flags={word: (flag in flags) is meaning for word, (flag, meaning) in FLAGS.items()},
        qdisc=_qdisc_words(netdev, tables),
        settings=_read_settings(netdev),
        features=_read_features(netdev),
        files=_read_files(netdev),
        rxe=rxe.on_netdev(netdev),
    )


def _route_words(route: Mapping[str, object]) -> str:
    """A route in the words of `ip route`, which can be given to it again."""
    words = [] if route.get("type", "unicast") == "unicast" else [str(route["type"])]
    words.append(str(route["dst"]))
    for key, word in ROUTE_WORDS:
        if key in route:
            words += [word, str(route[key])]
    via, metrics, flags = (route.get(key) for key in ("via", "metrics", "flags"))
    if isinstance(via, dict):
        words += ["via", via["family"], via["host"]]
    for metric in metrics if isinstance(metrics, list) else []:
        for name, value in metric.items():
            words += [name, str(value)]
    return " ".join([*words, *(flag for flag in ("onlink", "pervasive") if isinstance(flags, list) and flag in flags)])


def _qdisc_words(netdev: str, tables: Tables) -> str:
    """The root's queueing discipline in the words of `tc`, if somebody chose it: the kernel's own has the handle 0."""
    root = next((each for each in tables.qdiscs if each.get("root") and each.get("handle") not in (None, "0:")), None)
    if root is None:
        return ""
    said = tools.run_tool("tc", "qdisc", "show", "dev", netdev, "root").splitlines()[0]
    options = re.sub(r"^.* root( refcnt \d+)?", "", said)
    # packets are printed as `1000p`, and taken as `1000`
    return " ".join([root["handle"], root["kind"], re.sub(r"\b(\d+)p\b", r"\1", options).strip()])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # some can be read only while the device is up, or not at all
        return ""


def _read_files(netdev: str) -> dict[str, str]:
    """Return the files that say something of the device, and what stands in them."""
    found = {}
    for path in _files(netdev):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # of what the driver or the kernel does not have
            # 150 files: an emulated guest has no time for more than these three calls
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found[path] = os.read(descriptor, 4096).decode().strip()
            finally:
                os.close(descriptor)
    return found


def _files(netdev: str) -> Iterator[str]:
    folder = f"{NETDEVS}/{netdev}"
    for name in ATTRIBUTES:
        yield f"{folder}/{name}"
    with contextlib.suppress(OSError):
        for queue in sorted(Path(folder, "queues").iterdir()):
            for name in QUEUE_ATTRIBUTES:
                yield f"{queue}/{name}"
    for room in SYSCTLS:
        with contextlib.suppress(OSError):
            for path in sorted((room / netdev).iterdir()):
                if path.name != "mtu":  # of IPv6: that of the device, unless a router said something else
                    yield str(path)


class _Asking:
    """A socket through which a driver is asked, and told, what it does (ioctl SIOCETHTOOL of netdevice(7))."""

    def __init__(self, netdev: str) -> None:
        self._name = netdev.encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def ask(self, content: bytes) -> bytes:
        """Give the driver a struct of linux/ethtool.h, return what it has made of it; OSError if it cannot do that."""
        buffer = ctypes.create_string_buffer(content, len(content))
        request = struct.pack("16sP", self._name, ctypes.addressof(buffer)).ljust(40, b"\0")  # struct ifreq
        fcntl.ioctl(self._socket.fileno(), SIOCETHTOOL, request)
        return buffer.raw


def _read_settings(netdev: str) -> dict[str, str]:
    found = {}
    with _Asking(netdev) as driver:
        for name, get, _, length in SETTINGS:
            with contextlib.suppress(OSError):  # the driver has none
                found[name] = driver.ask(struct.pack("I", get).ljust(4 * length, b"\0"))[4:].hex()
    return found


def _feature_blocks(driver: _Asking) -> int:
    """How many 32-bit words of features the kernel knows (ETHTOOL_GSSET_INFO)."""
    answer = driver.ask(struct.pack("IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0).ljust(24, b"\0"))
    return (int(struct.unpack_from("I", answer, 16)[0]) + 31) // 32


def _read_features(netdev: str) -> str:
    """Return the bits of the features that were asked for: struct ethtool_get_features_block, `requested`."""
    with contextlib.suppress(OSError), _Asking(netdev) as driver:
        count = _feature_blocks(driver)
        answer = driver.ask(struct.pack("II", ETHTOOL_GFEATURES, count).ljust(8 + 16 * count, b"\0"))
        blocks = [struct.unpack_from("4I", answer, 8 + 16 * each) for each in range(count)]
        return struct.pack(f"{count}I", *(requested for _, requested, _, _ in blocks)).hex()
    return ""


# --- giving back -----------------------------------------------------------------------------------------------------


def restore_belongings(had: Belongings) -> None:
    """Give a network device that has come back, under its name, all that it had; return when its link is up again.

    :raises MachineError: if something cannot be given back, naming all that cannot. The rest is given back.
    """
    problems: list[str] = []

    @contextlib.contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except (MachineError, OSError) as error:
            problems.append(str(error.args[0] if isinstance(error, MachineError) else error))

    device = f"dev {had.netdev}"
    with noted():
        _restore_settings(had)
    with noted():
        call_ip(_link_commands(had, device))
    with noted():
        _restore_files(had)  # before the link is up: disable_ipv6, accept_ra and their kind act then
    commands = [f"addr replace {address} {device}{' nodad' if ':' in address else ''}" for address in had.addresses]
    commands += [f"link set {device} up"] if had.up else []
    for address, mac in had.neighbours.items():
        commands.append(f"neighbour replace {address} lladdr {mac} {device} nud permanent")
    commands += [f"route replace {route} {device}" for route in had.routes]
    with noted():
        if commands:
            call_ip(commands, "-force")
    with noted():
        if had.qdisc:
            handle, *words = had.qdisc.split()
            tools.run_tool("tc", "qdisc", "replace", "dev", had.netdev, "root", "handle", handle, *words)
    with noted():
        if had.up and had.carrier:
            carrier = NETDEVS / had.netdev / "carrier"
            tools.wait_until(lambda: _text(carrier) == "1", f"the carrier of {had.netdev}")
        if had.rxe is not None:
            rxe.restore_rxe(had.rxe, had.netdev, [address.split("/")[0] for address in had.addresses])
    if problems:
        raise MachineError(f"{had.netdev} is back, but not as it was: {'; '.join(problems)}")


def _link_commands(had: Belongings, device: str) -> list[str]:
    commands = [f"link set {device} mtu {had.mtu}", f"link set {device} txqueuelen {had.queue_length}"]
    if had.mac and _text(NETDEVS / had.netdev / "address") != had.mac:
        commands.append(f"link set {device} address {had.mac}")
    return commands + [f"link set {device} {word} {'on' if on else 'off'}" for word, on in had.flags.items()]


def _restore_files(had: Belongings) -> None:
    now = _read_files(had.netdev)
    for path, value in had.files.items():
        if now.get(path) != value:
            with contextlib.suppress(FileNotFoundError):  # a queue that is no more
                Path(path).write_text(f"{value}\n", encoding="utf-8")


def _restore_settings(had: Belongings) -> None:
    now = _read_settings(had.netdev)
    with _Asking(had.netdev) as driver:
        for name, _, set_, _ in SETTINGS:
            if name in had.settings and now.get(name) != had.settings[name]:
                _tell(driver, struct.pack("I", set_) + bytes.fromhex(had.settings[name]), f"its {name}")
        if had.features and _read_features(had.netdev) != had.features:
            count = _feature_blocks(driver)
            answer = driver.ask(struct.pack("II", ETHTOOL_GFEATURES, count).ljust(8 + 16 * count, b"\0"))
            wanted = struct.unpack(f"{len(had.features) // 8}I", bytes.fromhex(had.features))
            content = struct.pack("II", ETHTOOL_SFEATURES, min(count, len(wanted)))
            for each, requested in enumerate(wanted[:count]):
                available, *_ = struct.unpack_from("4I", answer, 8 + 16 * each)
                content += struct.pack("II", available, requested & available)  # ethtool_set_features_block
            _tell(driver, content, "its features")


def _tell(driver: _Asking, content: bytes, what: str) -> None:
    try:
        driver.ask(content)
    except OSError as error:
        raise MachineError(f"{what}: {error.strerror}") from None
