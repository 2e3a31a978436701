# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""DatagramPair: SENDs of one packet each, to any queue pair that knows the Q_Key; nothing is acknowledged (9.8.3).

Read it as a datagram goes: `send_datagrams` builds a packet for each request, `take_datagram` checks one that came and
puts it into the memory of the oldest receive request, behind the 40 bytes of the network header that it came with.
"""

import ipaddress
from typing import NamedTuple

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from cython_ext.core.clock cimport now
from cython_ext.frames.link cimport Frame, FrameLink
from cython_ext.frames.packet cimport ETHERNET
from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_WC_LOC_PROT_ERR,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    ibv_wc_status,
)
from cython_ext.roce.aside cimport is_neighbours, keep_frame
from cython_ext.roce.connection cimport ReceiveRequest
from cython_ext.roce.icrc cimport ICRC, icrc_of, write_icrc
from cython_ext.roce.memory_region cimport MemoryRegion, ProtectionDomain, find_memory
from cython_ext.roce.packet cimport (
    BTH,
    DEFAULT_PKEY,
    DETH,
    HAS_DETH,
    HAS_IMMDT,
    IMMDT,
    MIGREQ,
    NOT_ROCE,
    PSN_MASK,
    ROCE,
    UD_SEND_ONLY,
    UD_SEND_ONLY_WITH_IMMEDIATE,
    Packet,
    fill_address_vector,
    icrc_right,
    parse_roce,
    put32,
    write_addresses,
    write_bth,
)

from cython_ext.roce.queue_pair import MTUS, STATUS, check_number, link_error
from hwrx.errors import UsageError

cdef enum:
    FRAMES = 64
    DEEPEST = 1 << 16
    NETWORK_HEADER = 40     # in front of each message: the GRH, or in its last 20 bytes the IPv4 header (A17.4.5)
    CONTROLLED = 0x80000000U    # a Q_Key with this bit in a request stands for the queue pair's own (10.2.5)

GRH = NETWORK_HEADER


class DatagramCompleted(NamedTuple):
    """What became of a request. A bad status is data; nothing is raised."""

    wr_id: int
    status: str             # an ibv_wc_status by name
    size: int               # bytes; of a message that came 40 more than the message has
    source_qpn: int         # of who sent it; 0 of an own send
    immediate: int | None   # as a number


# --- the hot part --------------------------------------------------------------------------------------------------

cdef inline void complete_datagram(DatagramQueue *queue, uint64_t wr_id, ibv_wc_status status, uint32_t size,
                                   const Packet *p) noexcept nogil:
    """Write the next completion; of an own send `p` is NULL. There is room: whoever posts has seen to that."""
    cdef DatagramCompletion *entry = &queue.ring[queue.head & queue.mask]
    memset(entry, 0, sizeof(DatagramCompletion))
    entry.wr_id, entry.status, entry.size = wr_id, status, size
    if p != NULL:
        entry.source_qpn = p.source_qpn
        entry.has_immediate = p.kind & HAS_IMMDT != 0
        entry.immediate = p.immediate if entry.has_immediate else 0
    queue.head += 1


cdef inline bint is_for_us(const Datagrams *d, const Packet *p) noexcept nogil:
    """To our address and number, in the default partition (9.6.1); whoever sent it."""
    return (p.qpn == d.qpn and p.pkey & 0x7FFF == DEFAULT_PKEY & 0x7FFF and p.address_size == d.address_size
            and memcmp(p.destination, d.address, d.address_size) == 0)


cdef void take_datagram(Datagrams *d, const Frame *frame) noexcept nogil:
    """Check in the specification's order (9.8.3.1): whose it is, CRC, Q_Key, receive request, length."""
    cdef Packet p
    cdef int verdict
    cdef const ReceiveRequest *request
    cdef char *to
    p.qkey = p.source_qpn = p.immediate = 0  # a compiler does not see that HAS_DETH comes with the first two
    verdict = parse_roce(frame.data, frame.size, &p)
    if verdict == NOT_ROCE:
        if is_neighbours(frame):
            keep_frame(d.aside, &d.aside_size, frame)
        return
    if verdict != ROCE or not p.kind & HAS_DETH:
        d.counters.malformed += 1
    elif not is_for_us(d, &p):
        d.counters.strangers += 1
    elif not icrc_right(&p):
        d.counters.wrong_icrc += 1
    # Silent, all of these: there is nobody to whom an answer would be of use.
    elif p.qkey != d.qkey:
        d.counters.wrong_qkey += 1
    elif d.receive_oldest == d.receive_posted:
        d.counters.no_receive += 1
    else:
        request = &d.receives[d.receive_oldest & d.receive_mask]
        # a message that does not fit leaves the request for one that does
        if p.size > d.mtu or p.size + NETWORK_HEADER > request.length:
            d.counters.too_long += 1
            return
        to = find_memory(d.regions, request.lkey, request.local, p.size + NETWORK_HEADER, IBV_ACCESS_LOCAL_WRITE)
        d.receive_oldest += 1
        if to == NULL:
            # the region was closed since the request was posted
            complete_datagram(&d.received, request.wr_id, IBV_WC_LOC_PROT_ERR, 0, &p)
            return
        # IPv6's header is a GRH; IPv4's stands in its last bytes, and those before it are not defined
        memset(to, 0, NETWORK_HEADER)
        memcpy(to + NETWORK_HEADER - p.network, p.ip, p.network)
        memcpy(to + NETWORK_HEADER, p.payload, p.size)
        d.counters.copied += p.size + p.network
        d.counters.packets += 1
        complete_datagram(&d.received, request.wr_id, IBV_WC_SUCCESS, p.size + NETWORK_HEADER, &p)


cdef int send_datagrams(Datagrams *d) noexcept nogil:
    """Build and send a packet for each request, as far as the link has room. 0, or the link's error."""
    cdef const DatagramRequest *request
    cdef char *payload
    cdef char *frame
    cdef uint32_t size
    cdef int status
    while d.send_oldest != d.send_posted:
        request = &d.sends[d.send_oldest & d.send_mask]
        payload = NULL
        if request.length:
            payload = find_memory(d.regions, request.lkey, request.local, request.length, 0)
        if request.length and payload == NULL:
            d.send_oldest += 1
            complete_datagram(&d.done, request.wr_id, IBV_WC_LOC_PROT_ERR, request.length, NULL)
            continue
        status = d.link.room(d.link.me, 1)
        if status <= 0:
            return status
        frame = d.link.buffer(d.link.me, 0)
        size = build_datagram(d, request, frame, payload)
        # complete as soon as the link has it: nothing tells whether it arrives (9.8.3)
        status = d.link.send(d.link.me, 1, size)
        if status < 0:
            return status
        d.psn = (d.psn + 1) & PSN_MASK
        d.counters.sent += 1
        d.send_oldest += 1
        complete_datagram(&d.done, request.wr_id, IBV_WC_SUCCESS, request.length, NULL)
    return 0


cdef uint32_t build_datagram(const Datagrams *d, const DatagramRequest *request, char *frame,
                             const char *payload) noexcept nogil:
    """Bytes of the whole frame."""
    cdef uint32_t extended = DETH + (IMMDT if request.has_immediate else 0)
    cdef uint32_t pad = -request.length & 3
    cdef uint8_t opcode = UD_SEND_ONLY_WITH_IMMEDIATE if request.has_immediate else UD_SEND_ONLY
    cdef char *bth = write_addresses(frame, &request.way, BTH + extended + request.length + pad + ICRC)
    cdef char *at = write_bth(bth, opcode, MIGREQ, pad, request.qpn, d.psn)
    put32(at, request.qkey)
    put32(at + 4, d.qpn)
    at += DETH
    if request.has_immediate:
        put32(at, request.immediate)
        at += IMMDT
    if request.length:
        memcpy(at, payload, request.length)
    memset(at + request.length, 0, pad)
    at += request.length + pad
    write_icrc(at, icrc_of(frame + ETHERNET, request.way.network, bth + BTH, at - bth - BTH))
    return <uint32_t> (at + ICRC - frame)


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class DatagramPair:
    """A queue pair of unreliable datagrams (UD) in user space: SEND and SEND with immediate, of one packet each.

    It does not run by itself: `progress` takes what has come and sends what is posted. Not for several threads at once.

    :param link: carries the frames; stays the caller's
    :param domain: whose memory its requests may name
    :param address: our IP address: packets to another one are strangers'
    :param qpn: its number, 2 to 2^24 - 2
    :param qkey: 32 bits; what comes with another one is dropped
    :param mtu: bytes of the longest message, one of MTUS
    :param send_depth, receive_depth: requests that may be posted and not polled, rounded up to a power of two
    :raises UsageError: if one of them is out of its range
    """

    def __cinit__(self):
        memset(&self.datagrams, 0, sizeof(Datagrams))

    def __init__(self, FrameLink link not None, ProtectionDomain domain not None, *, str address not None, qpn,
                 qkey=0x11111111, mtu=1024, send_depth=128, receive_depth=128):
        cdef Datagrams *d = &self.datagrams
        check_number("a queue pair's number", qpn, 2, PSN_MASK - 1)
        check_number("a Q_Key", qkey, 0, 0xFFFFFFFF)
        check_number("send_depth", send_depth, 1, DEEPEST)
        check_number("receive_depth", receive_depth, 1, DEEPEST)
        if mtu not in MTUS:
            raise UsageError(f"there is no path MTU of {mtu}", remedy=f"choose of: {', '.join(map(str, MTUS))}")
        if d.sends != NULL:
            raise UsageError("a queue pair is made once", remedy="make another one")
        try:
            packed = ipaddress.ip_address(address).packed
        except ValueError as error:
            raise UsageError(f"'{address}' is not an IP address", remedy="for example 192.0.2.1") from error
        sends, receives = 1 << (send_depth - 1).bit_length(), 1 << (receive_depth - 1).bit_length()
        d.sends = <DatagramRequest *> calloc(sends, sizeof(DatagramRequest))
        d.receives = <ReceiveRequest *> calloc(receives, sizeof(ReceiveRequest))
        d.done.ring = <DatagramCompletion *> calloc(sends, sizeof(DatagramCompletion))
        d.received.ring = <DatagramCompletion *> calloc(receives, sizeof(DatagramCompletion))
        if d.sends == NULL or d.receives == NULL or d.done.ring == NULL or d.received.ring == NULL:
            raise MemoryError
        d.send_mask = d.done.mask = sends - 1
        d.receive_mask = d.received.mask = receives - 1
        d.qpn, d.qkey, d.mtu = qpn, qkey, mtu
        d.address_size = len(packed)
        memcpy(d.address, <const char *> packed, len(packed))
        d.link, d.regions = &link.table, &domain.regions
        self.link, self.domain = link, domain

    def __dealloc__(self):
        free(self.datagrams.sends)
        free(self.datagrams.receives)
        free(self.datagrams.done.ring)
        free(self.datagrams.received.ring)

    def post_receive(self, MemoryRegion region not None, offset=0, size=None, *, wr_id=0):
        """Post memory for a message, and for the 40 bytes in front of it.

        :param region: of this queue pair's domain
        :param offset, size: bytes of it, at least 40; None: up to its end
        :param wr_id: comes back in the completion
        :raises UsageError: if the range is outside of the region or too short, or too many are posted or not polled
        """
        cdef Datagrams *d = &self.datagrams
        cdef ReceiveRequest *request = &d.receives[d.receive_posted & d.receive_mask]
        length = self.checked_range(region, offset, size)
        if length < NETWORK_HEADER:
            raise UsageError(
                f"{length} bytes have no room for the {NETWORK_HEADER} of the network header",
                remedy="post the longest message and 40 bytes more",
            )
        if d.receive_posted - d.receive_oldest + d.received.head - d.received.tail > d.receive_mask:
            raise UsageError(f"{d.receive_mask + 1} receive requests are posted or not polled", remedy="poll first")
        check_number("wr_id", wr_id, 0, (1 << 64) - 1)
        request.wr_id, request.local, request.lkey, request.length = wr_id, region.address + offset, region.key, length
        d.receive_posted += 1

    def post_send(self, headers, qpn, MemoryRegion region=None, offset=0, size=None, *, qkey=0x11111111,
                  immediate=None, wr_id=0):
        """Post a message to any queue pair. `progress` sends it.

        :param headers: the way there, as `address_vector` makes it
        :param qpn: the number of the queue pair there
        :param region, offset, size: what is sent, at most the MTU; no region: 0 bytes
        :param qkey: the other end's; one with the highest bit stands for this queue pair's own
        :param immediate: a number of 32 bits; None: none
        :param wr_id: comes back in the completion
        :raises UsageError: if a number or range cannot be, or too many are posted or not polled
        """
        cdef Datagrams *d = &self.datagrams
        cdef DatagramRequest *request = &d.sends[d.send_posted & d.send_mask]
        length = 0 if region is None else self.checked_range(region, offset, size)
        if length > d.mtu:
            raise UsageError(f"a datagram has at most {d.mtu} bytes, not {length}", remedy="send it in pieces")
        for what, value, most in (("the other end's queue pair", qpn, PSN_MASK), ("a Q_Key", qkey, 0xFFFFFFFF),
                                  ("immediate", immediate or 0, 0xFFFFFFFF), ("wr_id", wr_id, (1 << 64) - 1)):
            check_number(what, value, 0, most)
        if d.send_posted - d.send_oldest + d.done.head - d.done.tail > d.send_mask:
            raise UsageError(f"{d.send_mask + 1} send requests are posted or not polled", remedy="poll first")
        try:
            fill_address_vector(&request.way, bytes(headers))
        except ValueError as error:
            raise UsageError(str(error), remedy="cython_ext.roce.packet.address_vector makes one") from error
        if request.way.size + BTH + DETH + IMMDT + d.mtu + ICRC > self.link.largest:
            raise UsageError(
                f"a packet of {d.mtu} bytes does not fit a frame of this link, which has {self.link.largest}",
                remedy="choose a smaller MTU",
            )
        request.wr_id, request.qpn, request.length = wr_id, qpn, length
        request.local = 0 if region is None else region.address + offset
        request.lkey = 0 if region is None else region.key
        request.qkey = d.qkey if qkey & CONTROLLED else qkey
        request.has_immediate, request.immediate = immediate is not None, immediate or 0
        d.send_posted += 1

    cdef checked_range(self, MemoryRegion region, offset, size):
        """Bytes of a range of a region; UsageError if it is not within it, or the region is another domain's."""
        length = region.size - offset if size is None else size
        if region.domain is not self.domain:
            raise UsageError("this region is of another protection domain", remedy="register it with the pair's own")
        if offset < 0 or length < 0 or offset + length > region.size or length > 1 << 31:
            raise UsageError(
                f"bytes {offset} to {offset + length} are not within a region of {region.size}",
                remedy="give a range of the region",
            )
        return length

    def progress(self) -> int:
        """Take up to 64 frames that have come, and send what is posted. Never waits.

        :return: how many frames came
        :raises PathError: if the link fails
        """
        cdef Datagrams *d = &self.datagrams
        cdef Frame[FRAMES] frames
        cdef int count, k, status = 0
        with nogil:
            count = d.link.take(d.link.me, frames, FRAMES)
            for k in range(count):
                take_datagram(d, &frames[k])
            # delivered by a copy, so that the frames can go back at once
            if count > 0:
                status = d.link.give(d.link.me, <uint32_t> count)
            if count >= 0 and status >= 0:
                status = send_datagrams(d)
        if count < 0 or status < 0:
            raise link_error(min(count, status))
        return count

    def wait(self, double seconds) -> bool:
        """Sleep until a frame is there, at most so many seconds.

        :return: whether a frame is there
        :raises PathError: if the link fails
        """
        cdef Datagrams *d = &self.datagrams
        cdef int64_t until = now() + <int64_t> (seconds * 1e9)
        cdef int status
        with nogil:
            status = d.link.wait(d.link.me, until)
        if status < 0:
            raise link_error(status)
        return status > 0

    def take_aside(self):
        """Hand out a frame with ARP or ICMPv6, which whoever has this queue pair's address must answer.

        :return: bytes of an Ethernet frame; None if none came. One is kept, those that come meanwhile are lost
        """
        cdef uint32_t size = self.datagrams.aside_size
        self.datagrams.aside_size = 0
        return self.datagrams.aside[:size] if size else None

    def poll_sends(self, most=64) -> list:
        """Completions of send requests, oldest first: at most so many DatagramCompleted."""
        return polled(&self.datagrams.done, most)

    def poll_receives(self, most=64) -> list:
        """Completions of receive requests, oldest first: at most so many DatagramCompleted.

        A message begins GRH = 40 bytes into its memory; before it stands the network header that it came with.
        """
        return polled(&self.datagrams.received, most)

    @property
    def qpn(self) -> int:
        """Its number."""
        return self.datagrams.qpn

    @property
    def counters(self) -> dict:
        """What has happened so far, by name: packets and bytes of each kind (see datagram_pair.pxd)."""
        return dict(self.datagrams.counters)

    def close(self):
        """Flush what is posted; harmless when called twice. The link stays open."""
        cdef Datagrams *d = &self.datagrams
        while d.send_oldest != d.send_posted:
            complete_datagram(&d.done, d.sends[d.send_oldest & d.send_mask].wr_id, IBV_WC_WR_FLUSH_ERR, 0, NULL)
            d.send_oldest += 1
        while d.receive_oldest != d.receive_posted:
            complete_datagram(&d.received, d.receives[d.receive_oldest & d.receive_mask].wr_id, IBV_WC_WR_FLUSH_ERR, 0,
                              NULL)
            d.receive_oldest += 1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


cdef list polled(DatagramQueue *queue, most):
    cdef DatagramCompletion *entry
    found = []
    while queue.tail != queue.head and len(found) < most:
        entry = &queue.ring[queue.tail & queue.mask]
        found.append(DatagramCompleted(entry.wr_id, STATUS[entry.status], entry.size, entry.source_qpn,
                                       entry.immediate if entry.has_immediate else None))
        queue.tail += 1
    return found
