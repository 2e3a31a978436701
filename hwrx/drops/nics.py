"""Making a NIC's receive ring drop messages: nobody serves it while more comes than there is room for.

Of two 82574L on one segment the first sends, through the kernel. The second is driven by hwrx, which looks away for so
long, or by the kernel, whose polling thread is kept from its CPU. What the NIC had no room for it counts itself (MPC);
what left the one NIC and never came to the other was lost between them, and is the difference of their counters: an
emulated 82574L lets frames wait in the segment instead, ten thousand of them, and the segment loses the rest.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hwrx.drops.books import Balance, Books, Told
from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.host.ipv6 import why_no_ipv6
from hwrx.host.undo import Undo
from hwrx.nic import pci
from hwrx.wires import guest_nics, topology

PORT = 40_778
SIZE = 64
RING = 64  # descriptors of our own ring
ROUND = 12_000  # frames sent while nobody serves: more than ring and segment keep
QUIET = 0.5  # seconds without a frame after which none is on its way any more
PAYLOAD = 42  # where a message begins in a frame: Ethernet, IPv4, UDP
SO_RCVBUFFORCE = 33
FIFO_PRIORITY = 50

Counters = dict[str, int]
Take = Callable[[], list[bytes]]  # the messages that came, once the ring is served again


@contextlib.contextmanager
def nic_wire() -> Iterator[None]:
    """The two NICs: those that are up, or for so long. Of their own accord neither sends anything meanwhile."""
    nics_there()
    with topology.at_hand("nic"), Undo("NICs without IPv6") as undo:
        for netdev in guest_nics.NICS.values() if not why_no_ipv6() else ():
            undo.sysctl(f"net/ipv6/conf/{netdev}/disable_ipv6", "1")
        yield


def nics_there() -> None:
    """MachineError where this machine has not the lab's two 82574L."""
    if [nic.model for nic in pci.list_nics()].count("82574L") < 2:
        raise MachineError("there are no two 82574L on one segment", remedy="hwrx drops --guest nic-ring")


def ring_full(place: str, books: Books, messages: int, trial: int, told: Told) -> Balance:
    """Send so many messages in bursts that nobody serves, and balance what became of them."""
    sent = delivered = missed = between = 0
    seen: set[int] = set()
    with OVERRUN[place]() as receiver:
        while sent < messages:
            before = receiver.counters()
            with receiver.unserved():
                sent += _burst(min(ROUND, messages - sent), sent, trial)
            fresh = {_number(message, trial) for message in receiver.take()} - seen - {-1}
            delivered += len(fresh)
            seen |= fresh
            grown = {name: value - before[name] for name, value in receiver.counters().items()}
            missed += grown["missed"]
            between += grown["sent"] - grown["received"] - grown["missed"]
            told(sent)
    return books.close(sent, delivered, {"nic-ring": missed, "segment": between})


def _number(message: bytes, trial: int) -> int:
    from cython_ext.core import payload

    return payload.sequence(message) if payload.check(message, trial) == payload.VERDICTS[0] else -1


def _burst(count: int, first: int, trial: int) -> int:
    """Send frames through the kernel's driver, past its stack; returns how many it took."""
    from cython_ext.core import payload
    from cython_ext.frames.packet import udp_frame, udp_template

    template = udp_template(
        guest_nics.NIC_HARDWARE["client"], guest_nics.NIC_HARDWARE["server"], guest_nics.NIC_ADDRESSES["client"],
        guest_nics.NIC_ADDRESSES["server"], PORT, PORT,
    )  # fmt: skip
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((guest_nics.NICS["client"], 0))
        for number in range(first, first + count):
            sender.send(udp_frame(template, payload.make(SIZE, number, trial)))
    return count


def _statistics(netdev: str) -> Counters:
    """The driver's own counters (ethtool -S)."""
    found = re.findall(r"^\s*(\S+): (\d+)$", tools.run_tool("ethtool", "-S", netdev), re.MULTILINE)
    return {name: int(value) for name, value in found}


def _sent() -> int:
    return _statistics(guest_nics.NICS["client"])["tx_packets"]


class Ours:
    """The second NIC in hwrx's hands. A context manager; the kernel has it back afterwards."""

    def __enter__(self) -> Ours:
        # in an emulated guest: of all places that drop only this one drives a NIC
        import hwrx.nic

        self._nic = hwrx.nic.open_nic(
            guest_nics.NIC_HARDWARE["server"], own=(guest_nics.NIC_ADDRESSES["server"],), rx=RING, promiscuous=True
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._nic.close()

    def unserved(self) -> contextlib.AbstractContextManager[None]:
        """Nobody takes frames from the ring unless it is asked to."""
        return contextlib.nullcontext()

    def take(self) -> list[bytes]:
        """Serve the ring until nothing comes any more."""
        return [bytes(packet)[PAYLOAD : PAYLOAD + SIZE] for packet in self._nic.receive(timeout=QUIET)]

    def counters(self) -> Counters:
        """Frames sent by the one NIC; received, and missed for want of room, by the other."""
        now = self._nic.statistics()
        return {"sent": _sent(), "received": now["GPRC"], "missed": now["MPC"]}


class Kernels:
    """The second NIC in the kernel's hands, with a polling thread that can be kept from its CPU."""

    def __enter__(self) -> Kernels:
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise MachineError("the polling thread is kept from a CPU of its own, and there is one CPU only")
        self._cpu, self._home = cpus[-1], set(cpus)
        self._stack = contextlib.ExitStack()
        netdev = guest_nics.NICS["server"]
        threaded = Path("/sys/class/net", netdev, "threaded")
        try:
            threaded.write_text("1", encoding="utf-8")
        except OSError as error:
            raise MachineError(f"{netdev} cannot poll in a thread: {error.strerror}") from None
        self._stack.callback(threaded.write_text, "0")
        undo = self._stack.enter_context(Undo("a CPU without a limit for real-time threads"))
        undo.sysctl("kernel/sched_rt_runtime_us", "-1")
        # else a multicast that the one sends and the other does not want would seem lost
        undo.plan("ip", "link", "set", netdev, "promisc", "off")
        tools.run_tool("ip", "link", "set", netdev, "promisc", "on")
        for thread in _threads(f"napi/{netdev}"):
            os.sched_setaffinity(thread, {self._cpu})
        os.sched_setaffinity(0, {cpus[0]})
        self._stack.callback(os.sched_setaffinity, 0, self._home)
        self._reader = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 28)
        self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, netdev.encode())
        self._reader.bind((guest_nics.NIC_ADDRESSES["server"], PORT))
        self._reader.settimeout(QUIET)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def unserved(self) -> Iterator[None]:
        """Give the polling thread's CPU to one that never lets go of it."""
        pid = os.fork()
        if pid == 0:
            try:
                os.sched_setaffinity(0, {self._cpu})
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
                until = time.monotonic() + 10  # whatever becomes of the one who is to end it
                while time.monotonic() < until:
                    pass
            finally:
                os._exit(0)
        try:
            time.sleep(0.05)
            yield
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def take(self) -> list[bytes]:
        """Read until nothing comes any more."""
        found: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            while True:
                found.append(self._reader.recv(SIZE))
        return found

    def counters(self) -> Counters:
        """As those of `Ours`, from the drivers' statistics."""
        now = _statistics(guest_nics.NICS["server"])
        return {"sent": _sent(), "received": now["rx_packets"], "missed": now["rx_missed_errors"]}


def _threads(name: str) -> list[int]:
    """The kernel's threads whose name begins with `name`."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if comm.read_text(encoding="utf-8", errors="replace").startswith(name):
                found.append(int(comm.parent.name))
    return found


OVERRUN: dict[str, Callable[[], Ours | Kernels]] = {"nic-ring": Kernels, "nic-ring-ours": Ours}
