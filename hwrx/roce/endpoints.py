"""An endpoint of RoCEv2 in user space: hwrx's queue pair with an address, a link and memory, for programs in Python.

with hwrx.roce.endpoint("eth1", "198.18.77.70") as qp:
    print(qp.parameters.to_line())         # what the other end must know
    qp.connect(input())                    # what the other end says of itself
    buffer = qp.register(bytearray(4096))
    qp.post_receive(buffer)
    print(qp.next_receive(timeout=10))
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cython_ext.frames.link import FrameLink
from cython_ext.frames.packet_ring import PacketRing
from cython_ext.roce.memory_region import EVERY_ACCESS, MemoryRegion, ProtectionDomain
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import MTUS, RoceQueuePair, WorkCompletion
from cython_ext.verbs.wc_words import SENTENCES
from hwrx.errors import PathError, UsageError
from hwrx.host.carrier import carrier_remedy
from hwrx.roce.neighbours import answer_neighbour, ask_neighbour, read_neighbour, solicited_node
from hwrx.roce.parameters import LARGEST_NUMBER, Parameters, gid_of, parse_parameters

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from hwrx.nic.driver import Driver

NETDEVS = Path("/sys/class/net")
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST = 263, 1, 0  # linux/if_packet.h
ROCE_PORT = 4791
SLICE = 0.2  # seconds after which a wait looks whether Ctrl-C has come
SUCCESS = "IBV_WC_SUCCESS"


class Endpoint:
    """A reliable connection's end. Made by `endpoint`; a context manager, whose end gives everything back.

    It does not run by itself: packets are taken and sent inside of `drive` and of the methods that wait. Not for
    several threads at once.

    Attributes: `parameters`, what the other end must know; `link`, which carries the frames; `queue_pair`, the
    RoceQueuePair itself, with `state` and `counters`; `peer`, the other end once it is connected; `management`, which
    is called with each frame that is set aside, if it is set (`hwrx.roce.connecting`).
    """

    def __init__(
        self, link: FrameLink, own: Parameters, resources: contextlib.ExitStack, *, reads: int, window: int, depth: int
    ) -> None:
        self.link = link
        self.parameters = own
        self.domain = ProtectionDomain()
        self.peer: Parameters | None = None
        self.management: Callable[[bytes], None] | None = None
        self._early: list[tuple[MemoryRegion, int, int | None, int]] = []  # receive requests posted before `connect`
        self._resources = resources
        self._reads, self._window, self._depth = reads, window, depth
        self.queue_pair = self._make(own.mtu)

    def _make(self, mtu: int) -> RoceQueuePair:
        return RoceQueuePair(
            self.link, self.domain, qpn=self.parameters.qpn, mtu=mtu, reads=self._reads, window=self._window,
            send_depth=self._depth, receive_depth=self._depth,
        )  # fmt: skip

    # --- memory and connection

    def register(self, buffer: Buffer, *, access: Iterable[str] = EVERY_ACCESS) -> MemoryRegion:
        """Let requests of this endpoint, and the other end, use a buffer.

        :param buffer: writable and contiguous: a PinnedBuffer, a bytearray, a NumPy array. It is held until the region
            is closed
        :param access: what may be done with it, of "local write", "remote write", "remote read", "remote atomic"
        :return: the region, with `key` and `address` for the other end
        :raises UsageError: if the buffer is empty or read-only, or there is no such right
        """
        return self.domain.register(buffer, access=access)

    def offer(self, region: MemoryRegion) -> None:
        """Tell of a region in `parameters`, so that the other end may read and write it.

        :raises UsageError: if it is not one of this endpoint's
        """
        self._check_region(region)
        own = self.parameters
        fields = {name: getattr(own, name) for name in own.__struct_fields__}
        fields |= {"key": region.key, "address": region.address, "size": region.size}
        self.parameters = Parameters(**fields)

    def connect(
        self,
        peer: Parameters | str,
        *,
        mac: str = "",
        begins: int | None = None,
        timeout: int = 14,
        retry_count: int = 7,
        rnr_retry: int = 7,
        min_rnr_timer: int = 12,
        reads: int | None = None,
        patience: float = 5.0,
    ) -> None:
        """Connect with the other end.

        :param peer: what it says of itself, or the line that says so. Its MTU, if it tells one, is the path's if it is
            the smaller
        :param mac: of the peer, or of the router towards it; "" asks by ARP or neighbour discovery, if the peer's
            parameters have none
        :param begins: number of our first packet; None: the one in `parameters`
        :param timeout: code of the time after which an unanswered packet is sent again: 4.096 µs times 2 to it
        :param retry_count: how often, 0 to 7
        :param rnr_retry: how often after the other end had no receive request, 0 to 6; 7: for ever
        :param min_rnr_timer: code of the time that our own RNR NAKs ask for
        :param reads: READs and atomics that the other end can bear at once; None: as many as the endpoint was opened
            with, which is also the most
        :param patience: seconds in which the question for the MAC address must be answered
        :raises UsageError: if a number is out of its range, or the peer's address is of the other version of IP
        :raises PathError: if nobody answers for the peer's address
        """
        there = parse_parameters(peer) if isinstance(peer, str) else peer
        own = self.parameters
        if (":" in there.ip) != (":" in own.ip):
            raise UsageError(
                f"{own.ip} and {there.ip} are not of one version of IP", remedy="give the endpoint an address like it"
            )
        mtu, most = min(there.mtu or own.mtu, own.mtu), self._reads if reads is None else min(reads, self._reads)
        if (mtu, most) != (own.mtu, self._reads):
            # of a peer that bears none, a READ is refused by the peer itself
            self._reads = max(1, most)
            self.queue_pair = self._make(mtu)
            for region, offset, size, number in self._early:
                self.queue_pair.post_receive(region, offset, size, wr_id=number)
        hardware = mac or there.mac or self.find_mac(there.ip, patience)
        way = address_vector(self.link.mac, hardware, own.ip, there.ip, source_port=0xC000 | own.qpn & 0x3FFF)
        self.queue_pair.connect(
            way, there.qpn, expects=there.psn, begins=own.psn if begins is None else begins, timeout=timeout,
            retry_count=retry_count, rnr_retry=rnr_retry, min_rnr_timer=min_rnr_timer,
        )  # fmt: skip
        self.peer = there

    def find_mac(self, address: str, patience: float = 5.0) -> str:
        """Ask on the link who has an address, and answer who asks for ours meanwhile. Before `connect`.

        :param address: of the peer
        :param patience: seconds
        :raises PathError: if nobody answers
        """
        own = self.parameters.ip
        asked, deadline = 0.0, time.monotonic() + patience
        while (now := time.monotonic()) < deadline:
            if now - asked > 0.5:
                asked = now
                self.link.send(ask_neighbour(self.link.mac, own, address))
            for frame in self.link.receive(0.05):
                if (found := read_neighbour(frame, address)) is not None:
                    return found
                self.answer_neighbours(frame)
        raise PathError(
            f"nobody on this link says to have {address}, asked for {patience:g} s",
            remedy="is the peer up, and on this network? Otherwise give mac: the peer's, or the router's towards it",
        )

    def idle(self, seconds: float = 0.0) -> None:
        """Do what has to be done while the program waits for something else: answer who asks for our address.

        :param seconds: how long to wait if nothing is there
        :raises PathError: if the link fails
        """
        if self.peer is not None:
            self.drive(seconds)
            return
        for frame in self.link.receive(seconds):
            self._take_aside(frame)

    def _take_aside(self, frame: bytes) -> None:
        self.answer_neighbours(frame)
        if self.management is not None:
            self.management(frame)

    def answer_neighbours(self, frame: bytes) -> None:
        """Answer a frame that asks who has our address; others are passed over."""
        reply = answer_neighbour(frame, self.link.mac, self.parameters.ip)
        if reply is not None:
            self.link.send(reply)

    # --- requests

    def post_receive(self, buffer: MemoryRegion, offset: int = 0, size: int | None = None, *, wr_id: int = 0) -> None:
        """Post memory for a SEND, or a place for the completion of a WRITE with immediate.

        :param buffer: registered memory; `offset` and `size` are bytes of it, None: up to its end
        :param wr_id: comes back in the completion
        :raises UsageError: if the memory is not registered, the range is outside of it, or too many are posted
        """
        self._check_region(buffer)
        self.queue_pair.post_receive(buffer, offset, size, wr_id=wr_id)
        if self.peer is None:
            self._early.append((buffer, offset, size, wr_id))

    def post_send(
        self,
        verb: str,
        buffer: MemoryRegion | None = None,
        offset: int = 0,
        size: int | None = None,
        *,
        wr_id: int = 0,
        key: int = 0,
        address: int = 0,
        immediate: int = 0,
        compare: int = 0,
        swap: int = 0,
    ) -> None:
        """Post a request, and send as much of it as can be sent now.

        :param verb: send, send-imm, write, write-imm, read, compare-swap, fetch-add
        :param buffer: registered memory that is sent, or that gets the result; None: 0 bytes
        :param key, address: of the other end's memory, for all but the SENDs
        :param immediate, compare, swap: see RoceQueuePair.post_send
        :raises UsageError: if the memory is not registered, a number is out of its range, or too many are posted
        """
        if buffer is not None:
            self._check_region(buffer)
        self.queue_pair.post_send(
            verb, buffer, offset, size, wr_id=wr_id, key=key, address=address, immediate=immediate, compare=compare,
            swap=swap,
        )  # fmt: skip
        self.drive()

    def _check_region(self, region: object) -> None:
        if not isinstance(region, MemoryRegion):
            raise UsageError(
                f"this memory is not registered: it is a {type(region).__name__}",
                remedy="region = qp.register(buffer), and give the region",
            )

    # --- driving

    def drive(self, seconds: float = 0.0) -> int:
        """Take packets that have come and send what is to be sent.

        :param seconds: how long to wait if nothing is there; it ends earlier when a timer expires
        :return: how many frames came
        :raises PathError: if the link fails
        """
        came = self.queue_pair.progress()
        if not came and seconds > 0:
            self.queue_pair.wait(min(seconds, SLICE))
            came = self.queue_pair.progress()
        frame = self.queue_pair.take_aside()
        if frame is not None:
            self._take_aside(frame)
        return came

    def next_send(self, timeout: float | None = None) -> WorkCompletion:
        """Drive until the next send request completes; a bad status is returned like a good one.

        :param timeout: seconds; None: as long as it takes
        :raises PathError: if none completes in time
        """
        return self._next(self.queue_pair.poll_sends, "send request completed", timeout)

    def next_receive(self, timeout: float | None = None) -> WorkCompletion:
        """Drive until the next receive request completes; a bad status is returned like a good one.

        :param timeout: seconds; None: as long as it takes
        :raises PathError: if none completes in time
        """
        return self._next(self.queue_pair.poll_receives, "message came", timeout)

    def _next(self, poll: Callable[[int], list[WorkCompletion]], what: str, timeout: float | None) -> WorkCompletion:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (found := poll(1)):
            left = SLICE if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise PathError(f"no {what} within {timeout:g} s; {self.describe_traffic()}", remedy=self._remedy())
            self.drive(left)
        return found[0]

    def check_completion(self, completion: WorkCompletion) -> WorkCompletion:
        """Return a completion that is good.

        :raises PathError: for another one, with what its status means and what was seen of the other end
        """
        if completion.status == SUCCESS:
            return completion
        says, cause = SENTENCES[completion.status]
        raise PathError(
            f"{completion.opcode} ended with {completion.status}: {says} ({cause}); {self.describe_traffic()}",
            remedy=self._remedy(),
        )

    def describe_traffic(self) -> str:
        """Say what came from the other end, and what came and was not taken."""
        counted = self.queue_pair.counters
        words = [f"{counted['packets']} packets came from the peer"]
        words += [f"{counted[name]} {label}" for name, label in _NOT_TAKEN.items() if counted[name]]
        return ", ".join(words)

    def _remedy(self) -> str:
        counted = self.queue_pair.counters
        if counted["wrong_icrc"]:
            return "the path changes packets, or the peer's ICRC is wrong: hwrx roce dump --device …"
        if counted["strangers"]:
            return "compare the peer's QPN and GID with those that it was given: hwrx roce dump --device …"
        return "is the peer connected, with this endpoint's QPN, PSN and GID? hwrx roce dump --device … shows packets"

    def close(self) -> None:
        """Give the link, the number and the memory back; harmless when called twice."""
        self.queue_pair.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_NOT_TAKEN = {
    "strangers": "from strangers or to another queue pair",
    "wrong_icrc": "with a wrong ICRC",
    "malformed": "that are not valid",
    "stale": "to what nobody waits for",
}


def endpoint(
    device: str | Driver | FrameLink,
    address: str,
    *,
    mac: str = "",
    qpn: int | None = None,
    psn: int | None = None,
    mtu: int = 1024,
    reads: int = 4,
    window: int = 64,
    depth: int = 128,
    poll: bool = False,
) -> Endpoint:
    """Open an endpoint of RoCEv2 with an address of its own.

    :param device: a network device of the kernel (shared with it over an AF_PACKET ring; needs root), a NIC that hwrx
        drives (`hwrx.nic.open_nic`), which belongs to the endpoint from now on, or any link, which stays the caller's
    :param address: IPv4 or IPv6, which must not be one of the kernel's: the kernel would answer for it too
    :param mac: of the endpoint on a network device; "": one that is made of the address. A NIC and a link have theirs
    :param qpn: its queue pair's number, 2 to 2^24 - 2; None: one that nobody has here
    :param psn: of the first packet that it sends, 24 bits; None: by chance
    :param mtu: bytes of payload of a whole packet: 256, 512, 1024, 2048 or 4096
    :param reads: READs and atomics that either end may have outstanding, 1 to 128
    :param window: packets that may be sent and not acknowledged
    :param depth: requests of either kind that may be posted and not polled
    :param poll: look into the ring instead of sleeping; of a network device
    :raises UsageError: if a number is out of its range, the address is the kernel's, or another endpoint has this
        number on this device
    :raises MachineError: if there is no such device, or it may not be used
    """
    own_gid = gid_of(address)
    _check_numbers(qpn, psn, mtu)
    with contextlib.ExitStack() as stack:
        if isinstance(device, str):
            _check_foreign(device, address)
            number = _hold_number(device, address, qpn, stack)
            _check_fits(device, address, mtu)
            link: FrameLink = _open_ring(device, address, mac or _mac_of(address), poll, mtu, stack)
        else:
            number = qpn or random.randrange(2, LARGEST_NUMBER)
            link = device if isinstance(device, FrameLink) else stack.enter_context(device.frame_link())
        begins = random.randrange(LARGEST_NUMBER + 1) if psn is None else psn
        own = Parameters(gid=own_gid, qpn=number, psn=begins, mtu=mtu, mac=link.mac)
        made = Endpoint(link, own, stack, reads=reads, window=window, depth=depth)
        made._resources = stack.pop_all()
    return made


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


def _hold_number(netdev: str, address: str, qpn: int | None, stack: contextlib.ExitStack) -> int:
    """Take a number for this device and address until the stack is closed; the kernel gives it back if we die.

    The name of a socket in the abstract namespace is each network namespace's own, as devices are.
    """
    for _ in range(64):
        number = qpn if qpn is not None else random.randrange(2, LARGEST_NUMBER)
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0hwrx-roce/{netdev}/{address}/{number:#x}")
        except OSError:
            held.close()
            if qpn is not None:
                break
            continue
        stack.enter_context(held)
        return number
    raise UsageError(
        f"another endpoint has queue pair {qpn:#x} of {address} on {netdev}", remedy="choose another number, or none"
    )


def _mac_of(address: str) -> str:
    """A locally administered address that ends as the IP address does, and so is as unique as that."""
    return f"02:68:{socket.inet_pton(socket.AF_INET6, gid_of(address))[-4:].hex(':')}"


def _check_fits(netdev: str, address: str, mtu: int) -> None:
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
