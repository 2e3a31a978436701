"""Wires made of software: what lies between the two ends of a comparison, put up and taken down.

`netns` is two network namespaces with a veth pair between them, for the socket paths. `pair` is a veth pair in the
initial namespace with an rxe device on each end, for verbs and sockets alike: rxe owns UDP port 4791 of the initial
namespace only, so both its ends must be there.

Everything that is changed is first written to a note in /run/hwrx. Leaving the context undoes it, whatever happened; a
process that was killed leaves its note, and the next one, or `hwrx lab down`, undoes it from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from msgspec import Struct

from hwrx.errors import HwrxError, MachineError
from hwrx.messages import Place, Role

NOTES = Path("/run/hwrx")
SYSCTL = Path("/proc/sys")
VERBS = Path("/sys/class/infiniband")
# The first netdev sends from .1, the second from .2. 198.18.0.0/15 is set aside for benchmarks of networks (RFC 2544),
# and so is 2001:2::/48 (RFC 5180): no real network of the user's is hidden by them.
ADDRESSES = (("198.18.77.1", "2001:2:0:77::1"), ("198.18.77.2", "2001:2:0:77::2"))
PAIR = ("hwrx0", "hwrx1")
PAIR_VERBS = ("rxe0", "rxe1")
# rxe takes the largest MTU of {256 … 4096} that leaves room for its headers: 1500 gives 1024, 4200 gives 4096.
LARGE_MTU = 4200
RXE_MODULE = "rdma_rxe"


class Made(Struct, frozen=True):
    """A topology that is up: where each end lives, and the peer that reaches it."""

    places: dict[Role, Place]
    peers: dict[Role, str]


class Note(Struct):
    """What a process changed, so that anybody can undo it. `started` tells its pid from a later process's."""

    pid: int
    started: str
    sysctls: list[tuple[str, str]] = []  # path below /proc/sys, value before
    links: list[str] = []  # netdevs; with them go their rxe devices and addresses
    namespaces: list[str] = []

    @property
    def file(self) -> Path:
        """Where the note is kept."""
        return NOTES / f"topology-{self.pid}.json"

    def save(self) -> None:
        """Write it down, before the change that it speaks of."""
        NOTES.mkdir(exist_ok=True)
        self.file.write_bytes(msgspec.json.encode(self))

    def undo(self) -> None:
        """Take everything back that is still there, and forget the note."""
        for name in self.namespaces:
            if Path("/run/netns", name).exists():
                _command("ip", "netns", "del", name)
        for link in self.links:
            if Path("/sys/class/net", link).exists():
                _command("ip", "link", "del", link)
        for path, value in reversed(self.sysctls):
            with contextlib.suppress(FileNotFoundError):  # of a netdev that is gone
                (SYSCTL / path).write_text(value)
        self.file.unlink(missing_ok=True)


def mend() -> list[str]:
    """Undo what processes that are dead have left behind; return a line for each."""
    mended = []
    for file in sorted(NOTES.glob("topology-*.json")) if NOTES.is_dir() else []:
        try:
            note = msgspec.json.decode(file.read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            continue  # being written, or gone meanwhile
        if _started(note.pid) != note.started:
            note.undo()
            what = ", ".join([*note.namespaces, *note.links]) or "settings"
            mended.append(f"{what}, left by process {note.pid}")
    return mended


@contextlib.contextmanager
def _noted() -> Iterator[Note]:
    if os.geteuid() != 0:
        raise MachineError("network namespaces and devices are made by root", remedy="run it as root, or with sudo")
    if shutil.which("ip") is None:
        raise MachineError("there is no command `ip`", remedy="apt install iproute2")
    mend()
    note = Note(pid=os.getpid(), started=_started(os.getpid()))
    if note.file.exists():
        raise MachineError("this process has put up a topology already", remedy="leave the first one before the next")
    try:
        yield note
    finally:
        note.undo()


@contextlib.contextmanager
def netns(*, mtu: int | None = None) -> Iterator[Made]:
    """Two namespaces, `hwrx-PID-a` for the client and `hwrx-PID-b` for the server, and a veth pair between them."""
    with _noted() as note:
        names = [f"hwrx-{os.getpid()}-{end}" for end in "ab"]
        note.namespaces = names
        note.save()
        for name in names:
            _command("ip", "netns", "add", name)
            _command("ip", "-n", name, "link", "set", "lo", "up")
        # the peer is created inside the second namespace: at no time is either end visible outside
        _command(
            "ip", "-n", names[0], "link", "add", "veth0", *_mtu(mtu),
            "type", "veth", "peer", "name", "veth0", "netns", names[1], *_mtu(mtu),
        )  # fmt: skip
        for name, addresses in zip(names, ADDRESSES, strict=True):
            _address(["ip", "-n", name], "veth0", addresses)
        _wait_until(lambda: all(_carrier(name) for name in names), "the veth pair to get its carrier")
        client, server = (Place(address=addresses[0], netdev="veth0") for addresses in ADDRESSES)
        yield Made({"client": client, "server": server}, {"client": f"netns:{names[0]}", "server": f"netns:{names[1]}"})


@contextlib.contextmanager
def pair(*, mtu: int | None = None) -> Iterator[Made]:
    """A veth pair hwrx0, hwrx1 in this namespace, and rxe0, rxe1 on its ends.

    `accept_local` lets the kernel take a packet that comes over the wire from an address of its own, and `rp_filter`
    must not drop it as spoofed. Sockets are bound to their netdev, or the kernel would route local to local over `lo`.
    """
    with _noted() as note:
        load_rxe()
        for name in PAIR:
            if Path("/sys/class/net", name).exists():
                raise MachineError(
                    f"there is a netdev {name} that this process did not make",
                    remedy=f"ip link del {name}, if it is left over from an experiment",
                )
        note.links = [PAIR[0]]  # its peer goes with it
        note.save()
        _command(
            "ip", "link", "add", PAIR[0], *_mtu(mtu), "type", "veth", "peer", "name", PAIR[1], *_mtu(mtu)
        )  # fmt: skip
        for name in ("all", *PAIR):
            _sysctl(note, f"net/ipv4/conf/{name}/accept_local", "1")
            _sysctl(note, f"net/ipv4/conf/{name}/rp_filter", "0")
        for name, addresses in zip(PAIR, ADDRESSES, strict=True):
            _address(["ip"], name, addresses)
        for device, name in zip(PAIR_VERBS, PAIR, strict=True):
            add_rxe(device, name)
        for device, addresses in zip(PAIR_VERBS, ADDRESSES, strict=True):
            _wait_until(lambda d=device, a=addresses: _has_gid(d, a[0]), f"{device} to learn its GIDs")  # type: ignore[misc]
        client, server = (
            Place(address=addresses[0], netdev=name, verbs=device)
            for addresses, name, device in zip(ADDRESSES, PAIR, PAIR_VERBS, strict=True)
        )
        yield Made({"client": client, "server": server}, {"client": "local", "server": "local"})


TOPOLOGIES: dict[str, Callable[..., AbstractContextManager[Made]]] = {"netns": netns, "pair": pair}


# --- rxe -----------------------------------------------------------------------------------------------------------


def load_rxe() -> None:
    """Load the rdma_rxe module; MachineError where this kernel has none."""
    if Path("/sys/module", RXE_MODULE).exists():
        return
    if shutil.which("modprobe") is None:
        raise MachineError("there is no command `modprobe`", remedy="apt install kmod")
    if subprocess.run(["modprobe", RXE_MODULE], capture_output=True).returncode != 0:
        raise MachineError(
            f"the kernel {os.uname().release} has no module {RXE_MODULE} (SoftRoCE)",
            remedy="use the lab's virtual machine (leave out --here), or a distribution kernel with rdma_rxe",
        )


def add_rxe(device: str, netdev: str) -> None:
    """Put an rxe device on a netdev (`rdma link add`)."""
    if shutil.which("rdma") is None:
        raise MachineError("there is no command `rdma`", remedy="apt install iproute2")
    _command("rdma", "link", "add", device, "type", "rxe", "netdev", netdev)


def remove_rxe(device: str) -> None:
    """Take an rxe device away (`rdma link delete`)."""
    _command("rdma", "link", "delete", device)


# --- small things --------------------------------------------------------------------------------------------------


def _mtu(mtu: int | None) -> list[str]:
    return [] if mtu is None else ["mtu", str(mtu)]


def _address(ip: Sequence[str], netdev: str, addresses: tuple[str, str]) -> None:
    four, six = addresses
    _command(*ip, "address", "add", f"{four}/24", "dev", netdev)
    # nodad: nobody else is on this wire, and an address that is still being checked cannot be bound
    _command(*ip, "address", "add", f"{six}/64", "dev", netdev, "nodad")
    _command(*ip, "link", "set", netdev, "up")


def _sysctl(note: Note, path: str, value: str) -> None:
    file = SYSCTL / path
    note.sysctls.append((path, file.read_text().strip()))
    note.save()
    file.write_text(value)


def _carrier(namespace: str) -> bool:
    shown = _command("ip", "-n", namespace, "link", "show", "veth0")
    return "LOWER_UP" in shown


def _has_gid(device: str, address: str) -> bool:
    wanted = "0000:0000:0000:0000:0000:ffff:" + re.sub(r"(..)(..)", r"\1\2:", _hex(address)).rstrip(":")
    gids = VERBS / device / "ports/1/gids"
    return gids.is_dir() and any(_read(gid) == wanted for gid in gids.iterdir())


def _read(gid: Path) -> str:
    try:
        return gid.read_text().strip()
    except OSError:  # an empty entry of the table reads as an error
        return ""


def _hex(address: str) -> str:
    return "".join(f"{int(part):02x}" for part in address.split("."))


def _wait_until(ready: Callable[[], bool], what: str, limit: float = 20.0) -> None:
    deadline = time.monotonic() + limit
    while not ready():
        if time.monotonic() > deadline:
            raise MachineError(f"waited {limit:g} s in vain for {what}")
        time.sleep(0.02)


def _started(pid: int) -> str:
    """Return the start time of a process, "" where there is none: with it a pid that was used again is told apart."""
    try:
        # the 22nd field of /proc/PID/stat; the second, the name, may hold blanks and parentheses
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _command(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise HwrxError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
