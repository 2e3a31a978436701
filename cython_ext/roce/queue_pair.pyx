# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""RoceQueuePair: posts requests, drives both sides of the connection with what the link brings, hands completions out.

The hot part is `drive`, in driving.pyx.
"""

import os
from typing import NamedTuple

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.core.clock cimport now
from cython_ext.frames.link cimport FrameLink
from cython_ext.headers.infiniband_verbs cimport *
from cython_ext.roce.connection cimport (
    SIGNALED,
    SOLICITS,
    WITH_IMMEDIATE,
    Completion,
    CompletionQueue,
    Connection,
    ReceiveRequest,
    Response,
    SavedAtomic,
    SendRequest,
    enter_error,
)
from cython_ext.roce.driving cimport drive, learn_plain
from cython_ext.roce.icrc cimport quick_icrc
from cython_ext.roce.memory_region cimport MemoryRegion, ProtectionDomain
from cython_ext.roce.packet cimport (
    PSN_MASK,
    fill_address_vector,
    psn_distance,
)
from cython_ext.roce.requester cimport post_request
from cython_ext.roce.timer cimport next_event, timeout_of_code

from cython_ext.roce.memory_region import EVERY_ACCESS, access_flags
from cython_ext.verbs.verbs_device import WC_STATUS
from hwrx.errors import PathError, UsageError

cdef enum:
    DEEPEST = 1 << 16

MTUS = (256, 512, 1024, 2048, 4096)
VERBS = {
    "send": IBV_WR_SEND,
    "send-imm": IBV_WR_SEND_WITH_IMM,
    "write": IBV_WR_RDMA_WRITE,
    "write-imm": IBV_WR_RDMA_WRITE_WITH_IMM,
    "read": IBV_WR_RDMA_READ,
    "compare-swap": IBV_WR_ATOMIC_CMP_AND_SWP,
    "fetch-add": IBV_WR_ATOMIC_FETCH_AND_ADD,
}
OPCODES = {
    IBV_WC_SEND: "IBV_WC_SEND",
    IBV_WC_RDMA_WRITE: "IBV_WC_RDMA_WRITE",
    IBV_WC_RDMA_READ: "IBV_WC_RDMA_READ",
    IBV_WC_COMP_SWAP: "IBV_WC_COMP_SWAP",
    IBV_WC_FETCH_ADD: "IBV_WC_FETCH_ADD",
    IBV_WC_RECV: "IBV_WC_RECV",
    IBV_WC_RECV_RDMA_WITH_IMM: "IBV_WC_RECV_RDMA_WITH_IMM",
}
STATES = {
    IBV_QPS_RESET: "IBV_QPS_RESET",
    IBV_QPS_INIT: "IBV_QPS_INIT",
    IBV_QPS_RTS: "IBV_QPS_RTS",
    IBV_QPS_ERR: "IBV_QPS_ERR",
}
STATUS = {value: name for name, value in WC_STATUS.items()}  # ibv_wc_status


class WorkCompletion(NamedTuple):
    """What became of a request: an `ibv_wc` in words. A bad status is data; nothing is raised."""

    wr_id: int
    status: str             # an ibv_wc_status by name
    opcode: str             # an ibv_wc_opcode by name
    size: int               # bytes of the message
    immediate: int | None   # as a number


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class RoceQueuePair:
    """A reliable connection of RoCEv2 in user space: requester and responder, over a link of frames.

    It does not run by itself: `progress` takes what has come and sends what is to be sent, and whoever waits calls it
    again at `next_event` at the latest. Not for several threads at once.

    What it leaves out: end-to-end credits (it offers and asks for none), SEND with invalidate, memory windows, and path
    migration.

    :param link: carries the frames; stays the caller's
    :param domain: whose memory its requests and the other end may name
    :param qpn: its number, 2 to 2^24 - 2
    :param mtu: bytes of payload of a whole packet, one of MTUS; both ends have the same
    :param send_depth, receive_depth: requests that may be posted and not polled, rounded up to a power of two
    :param reads: READs and atomics that either end may have outstanding, 1 to 128
    :param window: packets that may be sent and not acknowledged, 1 to 2^22
    :param access: what the other end may do at all, some of ACCESS
    :raises UsageError: if one of them is out of its range, or a packet of that MTU does not fit a frame of the link
    """

    def __cinit__(self):
        memset(&self.connection, 0, sizeof(Connection))

    def __init__(self, FrameLink link not None, ProtectionDomain domain not None, *, qpn, mtu=1024, send_depth=128,
                 receive_depth=128, reads=4, window=64, access=EVERY_ACCESS):
        cdef Connection *c = &self.connection
        check_number("a queue pair's number", qpn, 2, PSN_MASK - 1)
        check_number("send_depth", send_depth, 1, DEEPEST)
        check_number("receive_depth", receive_depth, 1, DEEPEST)
        check_number("reads", reads, 1, 128)
        check_number("window", window, 1, 1 << 22)
        if mtu not in MTUS:
            raise UsageError(f"there is no path MTU of {mtu}", remedy=f"choose of: {', '.join(map(str, MTUS))}")
        if c.sends != NULL:
            raise UsageError("a queue pair is made once", remedy="make another one")
        sends, receives = power_of_two(send_depth), power_of_two(receive_depth)
        c.sends = <SendRequest *> calloc(sends, sizeof(SendRequest))
        c.done.ring = <Completion *> calloc(sends, sizeof(Completion))
        c.receives = <ReceiveRequest *> calloc(receives, sizeof(ReceiveRequest))
        c.received.ring = <Completion *> calloc(receives, sizeof(Completion))
        # beside those that are outstanding, as many again for duplicates
        c.response_room, c.atomic_room = power_of_two(2 * reads), power_of_two(reads)
        c.responses = <Response *> calloc(c.response_room, sizeof(Response))
        c.atomics = <SavedAtomic *> calloc(c.atomic_room, sizeof(SavedAtomic))
        if (c.sends == NULL or c.done.ring == NULL or c.receives == NULL or c.received.ring == NULL
                or c.responses == NULL or c.atomics == NULL):
            raise MemoryError
        c.send_mask = c.done.mask = sends - 1
        c.receive_mask = c.received.mask = receives - 1
        c.reads = reads
        c.qpn, c.mtu, c.window = qpn, mtu, window
        c.access = access_flags(access)
        c.link = &link.table
        c.gather = &link.gather if link.gather.append != NULL else NULL
        c.regions = &domain.regions
        c.state = IBV_QPS_INIT
        self.link = link
        self.domain = domain

    def __dealloc__(self):
        cdef Connection *c = &self.connection
        free(c.sends)
        free(c.done.ring)
        free(c.receives)
        free(c.received.ring)
        free(c.responses)
        free(c.atomics)

    def connect(self, headers, qpn, *, expects, begins, mtu=None, timeout=14, retry_count=7, rnr_retry=7,
                min_rnr_timer=12):
        """Connect with a queue pair of the other end; from now on both sides work (INIT to RTR to RTS, 10.3.1).

        :param headers: the way there, as `address_vector` makes it
        :param qpn: the other end's number
        :param expects: the number of the first packet that comes from there (rq_psn)
        :param begins: the number of our first packet (sq_psn)
        :param mtu: the one that both ends have agreed on; None: as it was made with
        :param timeout: code of the time after which an unanswered packet is sent again: 4.096 µs times 2 to it; 0: no
        :param retry_count: how often, 0 to 7, before the connection is given up
        :param rnr_retry: how often after an RNR NAK, 0 to 6; 7: for ever
        :param min_rnr_timer: code of the time that our own RNR NAKs ask for, 0 to 31
        :raises UsageError: if one of them is out of its range, it is connected, or a packet does not fit the link
        """
        cdef Connection *c = &self.connection
        if c.state != IBV_QPS_INIT:
            raise UsageError(f"a queue pair in {self.state} cannot be connected", remedy="make another one")
        for what, value, most in (
            ("the other end's queue pair", qpn, PSN_MASK), ("expects", expects, PSN_MASK), ("begins", begins, PSN_MASK),
            ("timeout", timeout, 31), ("retry_count", retry_count, 7), ("rnr_retry", rnr_retry, 7),
            ("min_rnr_timer", min_rnr_timer, 31),
        ):
            check_number(what, value, 0, most)
        if mtu is not None and mtu not in MTUS:
            raise UsageError(f"there is no path MTU of {mtu}", remedy=f"choose of: {', '.join(map(str, MTUS))}")
        c.mtu = mtu or c.mtu
        try:
            fill_address_vector(&c.way, bytes(headers))
        except ValueError as error:
            raise UsageError(str(error), remedy="cython_ext.roce.packet.address_vector makes one") from error
        if c.way.size + 12 + 16 + 4 + c.mtu + 4 > self.link.largest:
            raise UsageError(
                f"a packet of {c.mtu} bytes does not fit a frame of this link, which has {self.link.largest}",
                remedy="choose a smaller MTU",
            )
        c.remote_qpn = qpn
        c.quick = quick_icrc()
        learn_plain(c)
        c.expected_psn = c.answered_psn = expects
        c.new_psn = c.send_psn = c.unacked_psn = c.highest_psn = begins
        c.timeout_ns = timeout_of_code(timeout)
        c.retry_count = c.retries_left = retry_count
        c.rnr_retry = c.rnr_left = rnr_retry
        c.min_rnr_timer = min_rnr_timer
        c.state = IBV_QPS_RTS

    def use_landing(self):
        """Tell the link from now on which packet comes next: it was prepared to receive messages in place.

        :raises UsageError: if it was not
        """
        if self.link.landing == NULL:
            raise UsageError("messages land nowhere on this link", remedy="prepare that first, if the link can")
        self.connection.landing = self.link.landing

    # --- requests

    def post_receive(self, MemoryRegion region not None, offset=0, size=None, *, wr_id=0):
        """Post memory for a SEND, or, for a WRITE with immediate, a place for its completion.

        :param region: of this queue pair's domain
        :param offset, size: bytes of it; None: up to its end
        :param wr_id: comes back in the completion
        :raises UsageError: if the range is outside of the region, or too many are posted or not polled
        """
        cdef Connection *c = &self.connection
        cdef ReceiveRequest *request = &c.receives[c.receive_posted & c.receive_mask]
        length = checked_range(region, offset, size)
        self.check_postable(region)
        if c.receive_posted - c.receive_oldest + c.received.head - c.received.tail > c.receive_mask:
            raise UsageError(f"{c.receive_mask + 1} receive requests are posted or not polled", remedy="poll first")
        request.wr_id, request.local, request.lkey, request.length = wr_id, region.address + offset, region.key, length
        c.receive_posted += 1

    def post_send(self, str verb not None, MemoryRegion region=None, offset=0, size=None, *, wr_id=0, key=0, address=0,
                  immediate=0, compare=0, swap=0, signaled=True, solicited=False):
        """Post a request. `progress` sends it.

        :param verb: one of VERBS
        :param region, offset, size: what is sent, or where a READ's or an atomic's result goes; no region: 0 bytes
        :param wr_id: comes back in the completion
        :param key, address: the other end's memory, for all but SENDs
        :param immediate: a number of 32 bits, for the verbs that have one
        :param compare, swap: of an atomic; `fetch-add` adds `swap`
        :param signaled: whether success is to have a completion; an error always has
        :param solicited: ask for the other end's event
        :raises UsageError: if there is no such verb, a number or range cannot be, or too many are posted or not polled
        """
        cdef Connection *c = &self.connection
        cdef SendRequest *request = &c.sends[c.posted & c.send_mask]
        if verb not in VERBS:
            raise UsageError(f"there is no verb '{verb}'", remedy=f"choose of: {', '.join(VERBS)}")
        length = 0 if region is None else checked_range(region, offset, size)
        self.check_postable(region)
        if c.state == IBV_QPS_INIT:
            raise UsageError("this queue pair is not connected", remedy="connect it first")
        for what, value, bits in (("key", key, 32), ("address", address, 64), ("immediate", immediate, 32),
                                  ("compare", compare, 64), ("swap", swap, 64), ("wr_id", wr_id, 64)):
            check_number(what, value, 0, (1 << bits) - 1)
        atomic = verb in ("compare-swap", "fetch-add")
        if atomic and length != 8:
            raise UsageError(f"an atomic's result has 8 bytes, not {length}", remedy="give a range of 8 bytes")
        if atomic and address % 8:
            raise UsageError(f"{address:#x} is not a multiple of 8", remedy="atomics need such an address")
        if c.posted - c.oldest + c.done.head - c.done.tail > c.send_mask:
            raise UsageError(f"{c.send_mask + 1} send requests are posted or not polled", remedy="poll first")
        # of half the circle no number is told to be before or behind (9.7.1)
        if psn_distance(c.new_psn, c.unacked_psn) + max(1, -(-length // c.mtu)) >= 1 << 23:
            raise UsageError(
                "the packets of the posted requests would need more than half of all sequence numbers",
                remedy="post smaller messages, or wait until some are done",
            )
        request.wr_id = wr_id
        request.verb = VERBS[verb]
        request.flags = (SIGNALED if signaled else 0) | (SOLICITS if solicited else 0)
        request.local = 0 if region is None else region.address + offset
        request.lkey = 0 if region is None else region.key
        request.length = length
        request.remote, request.rkey, request.immediate = address, key, immediate
        request.compare, request.swap = compare, swap
        post_request(c)

    cdef int check_postable(self, MemoryRegion region) except -1:
        """UsageError if nothing can be posted, or not with this region."""
        if self.connection.state == IBV_QPS_ERR:
            raise UsageError("this queue pair is in the error state", remedy="make and connect another one")
        if region is not None and region.domain is not self.domain:
            raise UsageError("this region is of another protection domain", remedy="register it with the pair's own")
        return 0

    # --- driving

    def progress(self, at=None, *, uint32_t most=64) -> int:
        """Take frames that have come, and send what is to be sent. Never waits.

        :param at: nanoseconds of the clock that times-out are counted by; None: CLOCK_MONOTONIC
        :param most: frames; 64 in any case
        :return: how many frames came
        :raises PathError: if the link fails
        """
        cdef int64_t time = now() if at is None else at
        cdef int count
        if self.connection.state == IBV_QPS_INIT:
            raise UsageError("this queue pair is not connected", remedy="connect it first")
        with nogil:
            count = drive(&self.connection, time, most)
        if count < 0:
            raise link_error(count)
        return count

    def wait(self, double seconds) -> bool:
        """Sleep until a frame is there, or a timer expires, at most so many seconds.

        :return: whether a frame is there
        :raises PathError: if the link fails
        """
        cdef int64_t until = now() + <int64_t> (seconds * 1e9), event = next_event(&self.connection)
        cdef int status
        if event:
            until = min(until, event)
        with nogil:
            status = self.connection.link.wait(self.connection.link.me, until)
        if status < 0:
            raise link_error(status)
        return status > 0

    def take_aside(self):
        """Hand out a frame that came and is not this queue pair's, but whoever has its address must answer.

        :return: bytes of an Ethernet frame with ARP, ICMPv6, or a packet to queue pair 1; None if none came. One is
            kept, those that come meanwhile are lost
        """
        cdef uint32_t size = self.connection.aside_size
        self.connection.aside_size = 0
        return self.connection.aside[:size] if size else None

    def poll_sends(self, most=64) -> list:
        """Completions of send requests, oldest first.

        :return: at most so many WorkCompletions
        """
        return polled(&self.connection.done, most)

    def poll_receives(self, most=64) -> list:
        """Completions of receive requests, oldest first.

        :return: at most so many WorkCompletions
        """
        return polled(&self.connection.received, most)

    # --- looking

    @property
    def state(self) -> str:
        """An ibv_qp_state by name."""
        return STATES[self.connection.state]

    @property
    def qpn(self) -> int:
        """Its number."""
        return self.connection.qpn

    @property
    def unfinished(self) -> int:
        """Send requests that are posted and not complete."""
        return self.connection.posted - self.connection.oldest

    @property
    def next_event(self):
        """When `progress` has to be called although nothing comes: nanoseconds of its clock; None: never."""
        return next_event(&self.connection) or None

    @property
    def counters(self) -> dict:
        """What has happened so far, by name: packets and bytes of each kind (see connection.pxd)."""
        return dict(self.connection.counters)

    def close(self):
        """Flush what is posted and take nothing more; harmless when called twice. The link stays open."""
        if self.connection.state != IBV_QPS_ERR and self.connection.sends != NULL:
            enter_error(&self.connection)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def link_error(status) -> PathError:
    """What to raise for a link's -errno."""
    return PathError(
        f"the link of this queue pair failed: {os.strerror(-status)}", remedy="see what the link's diagnose() says"
    )


cdef list polled(CompletionQueue *queue, most):
    cdef Completion *entry
    found = []
    while queue.tail != queue.head and len(found) < most:
        entry = &queue.ring[queue.tail & queue.mask]
        found.append(WorkCompletion(entry.wr_id, STATUS[entry.status], OPCODES[entry.opcode], entry.size,
                                    entry.immediate if entry.flags & WITH_IMMEDIATE else None))
        queue.tail += 1
    return found


def check_number(what, value, least, most):
    """UsageError if a number is out of its range."""
    if not least <= value <= most:
        raise UsageError(f"{what} is between {least} and {most}, not {value}", remedy="give a number of that range")


cdef checked_range(MemoryRegion region, offset, size):
    """Bytes of a range of a region; UsageError if it is not within it."""
    length = region.size - offset if size is None else size
    if offset < 0 or length < 0 or offset + length > region.size or length > 1 << 31:
        raise UsageError(
            f"bytes {offset} to {offset + length} are not within a region of {region.size}",
            remedy="give a range of the region, of at most 2^31 bytes",
        )
    return length


cdef power_of_two(depth):
    return 1 << (depth - 1).bit_length()
