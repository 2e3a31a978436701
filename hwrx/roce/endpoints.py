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
from typing import TYPE_CHECKING

from cython_ext.frames.link import FrameLink
from cython_ext.roce.memory_region import MemoryRegion
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import RoceQueuePair, WorkCompletion
from hwrx.roce.driven import QueuePairEndpoint
from hwrx.roce.opening import open_link
from hwrx.roce.parameters import Parameters, parse_mac, parse_parameters

if TYPE_CHECKING:
    from hwrx.nic.driver import Driver


class Endpoint(QueuePairEndpoint[WorkCompletion]):
    """A reliable connection's end. Made by `endpoint`; a context manager, whose end gives everything back.

    It does not run by itself: packets are taken and sent inside of `drive` and of the methods that wait. Not for
    several threads at once.

    Attributes: `parameters`, what the other end must know; `link`, which carries the frames; `queue_pair`, the
    RoceQueuePair itself, with `state` and `counters`; `peer`, the other end once it is connected; `management`, which
    is called with each frame that is set aside, if it is set (`hwrx.roce.connecting`).
    """

    queue_pair: RoceQueuePair

    def __init__(
        self, link: FrameLink, own: Parameters, resources: contextlib.ExitStack, *, reads: int, window: int, depth: int
    ) -> None:
        super().__init__(link, own, resources)
        self._early: list[tuple[MemoryRegion, int, int | None, int]] = []  # receive requests posted before `connect`
        self._reads, self._window, self._depth = reads, window, depth
        self.queue_pair = self._make(own.mtu)

    def _make(self, mtu: int) -> RoceQueuePair:
        return RoceQueuePair(
            self.link, self.domain, qpn=self.parameters.qpn, mtu=mtu, reads=self._reads, window=self._window,
            send_depth=self._depth, receive_depth=self._depth,
        )  # fmt: skip

    # --- memory and connection

    def offer(self, region: MemoryRegion) -> None:
        """Tell of a region in `parameters`, so that the other end may read and write it.

        :raises UsageError: if it is not one of this endpoint's
        """
        self._check_region(region)
        self.parameters = self.parameters.with_fields(key=region.key, address=region.address, size=region.size)

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
        :raises UsageError: if a number is out of its range, the peer's address is of the other version of IP, a
            group's or our own, or the MAC address is not one
        :raises PathError: if nobody answers for the peer's address
        """
        there = parse_parameters(peer) if isinstance(peer, str) else peer
        own = self.parameters
        self._check_peer(there)
        mtu, most = min(there.mtu or own.mtu, own.mtu), self._reads if reads is None else min(reads, self._reads)
        if (mtu, most) != (own.mtu, self._reads):
            # of a peer that bears none, a READ is refused by the peer itself
            self._reads = max(1, most)
            self.queue_pair = self._make(mtu)
            for region, offset, size, number in self._early:
                self.queue_pair.post_receive(region, offset, size, wr_id=number)
        hardware = parse_mac(mac or there.mac or self.find_mac(there.ip, patience))
        way = address_vector(self.link.mac, hardware, own.ip, there.ip, source_port=0xC000 | own.qpn & 0x3FFF)
        self.queue_pair.connect(
            way, there.qpn, expects=there.psn, begins=own.psn if begins is None else begins, timeout=timeout,
            retry_count=retry_count, rnr_retry=rnr_retry, min_rnr_timer=min_rnr_timer,
        )  # fmt: skip
        self.peer = there

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
        and is one endpoint's at a time: a frame is whoever's takes it
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
    with contextlib.ExitStack() as stack:
        link, own = open_link(device, address, stack, mac=mac, qpn=qpn, psn=psn, mtu=mtu, poll=poll)
        made = Endpoint(link, own, stack, reads=reads, window=window, depth=depth)
        made._resources = stack.pop_all()
    return made
