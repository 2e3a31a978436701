# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driving a queue pair: frames in, parsed and checked, to the responder or the requester; then what both have to send.

It allocates nothing and holds no GIL.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp

from cython_ext.core.clock cimport now
from cython_ext.frames.link cimport Frame
from cython_ext.frames.packet cimport load32
from cython_ext.headers.infiniband_verbs cimport IBV_QPS_ERR
from cython_ext.roce.connection cimport Connection, flush_frames
from cython_ext.roce.packet cimport (
    DEFAULT_PKEY,
    IS_RESPONSE,
    NOT_ROCE,
    ROCE,
    UC_SERVICE,
    UNKNOWN_OPCODE,
    Packet,
    icrc_right,
    parse_roce,
    psn_distance,
)
from cython_ext.roce.requester cimport send_requests, take_response
from cython_ext.roce.responder cimport send_responses, take_request

cdef enum:
    FRAMES = 64


cdef inline bint is_ours(const Connection *c, const Packet *p) noexcept nogil:
    """From the other end's address to ours, to this queue pair, in the default partition (9.6.1)."""
    cdef uint32_t both = 2 * p.address_size
    cdef const char *ends = c.way.headers + c.way.size - 8 - both
    if p.qpn != c.qpn or p.pkey & 0x7FFF != DEFAULT_PKEY & 0x7FFF or p.network != c.way.network:
        return False
    if both == 8:
        # IPv4: two words, without the call
        return load32(p.source) == load32(ends + 4) and load32(p.destination) == load32(ends)
    return (memcmp(p.source, ends + p.address_size, p.address_size) == 0
            and memcmp(p.destination, ends, p.address_size) == 0)


cdef inline void take_frame(Connection *c, const Frame *frame, int64_t at) noexcept nogil:
    """One frame: to the side whose it is, or counted. `c.kept` says whether it is the user's now."""
    cdef Packet packet
    cdef int verdict = parse_roce(frame.data, frame.size, &packet)
    if verdict == NOT_ROCE:
        return
    if c.stamps != NULL:
        c.parsed = now()
    if verdict != ROCE or packet.opcode >= UC_SERVICE:
        c.counters.malformed += 1
        # an opcode that nobody knows, in a packet that is otherwise right, is a request that cannot be (9.7.4.1.2)
        if verdict != UNKNOWN_OPCODE or packet.opcode >= UC_SERVICE:
            return
    if not is_ours(c, &packet):
        c.counters.strangers += 1
        return
    # A packet with a wrong ICRC is as good as lost: nothing is said of it (9.6.2).
    if not icrc_right(&packet):
        c.counters.wrong_icrc += 1
        return
    if c.stamps != NULL:
        c.verified = now()
    c.counters.packets += 1
    if c.state == IBV_QPS_ERR:
        return
    if packet.kind & IS_RESPONSE:
        if c.landing != NULL:
            c.landing.aside += 1
        take_response(c, &packet, at)
    else:
        take_request(c, &packet)


cdef inline void foresee(Connection *c) noexcept nogil:
    """Tell the link which packet comes next, for the buffers that it is about to give to the device."""
    if c.landing.message != c.messages:
        c.landing.message = c.messages
        c.landing.aside = 0
    # MIDDLE and LAST follow at whole MTUs (9.7.4.1.6); a response's packets have numbers of their request's
    if c.message:
        c.landing.packet = c.offset // c.mtu
    elif c.oldest != c.posted and c.sends[c.oldest & c.send_mask].answered:
        c.landing.packet = max(0, psn_distance(c.unacked_psn, c.sends[c.oldest & c.send_mask].first))
    else:
        c.landing.packet = 0


cdef int drive(Connection *c, int64_t at, uint32_t most) noexcept nogil:
    """Take what has come, and send what is to be sent. How many frames came, or the link's error."""
    cdef Frame[FRAMES] frames
    cdef int count = c.link.take(c.link.me, frames, min(most, <uint32_t> FRAMES)), k, status
    if count < 0:
        return count
    if c.stamps != NULL:
        c.seen = now()
    for k in range(count):
        c.kept = False
        take_frame(c, &frames[k], at)
        if c.in_frames and not c.kept:
            c.link.refuse(c.link.me, &frames[k])
    # What was received into place stands there, so the device gets new buffers first: it has no more than the other end
    # may send before it hears of the batch.
    if count and c.landing != NULL:
        foresee(c)
        status = c.link.give(c.link.me, <uint32_t> count)
        if status < 0:
            return status
    # Answers for the whole batch at once, so that one ACK stands for many, and before other frames are given back: a
    # response never refers to one of them, but the other end waits for it.
    send_responses(c)
    if c.state != IBV_QPS_ERR:
        send_requests(c, at)
    flush_frames(c)
    if count and c.landing == NULL:
        # those that are kept go back one by one, when the user has done with them
        status = c.link.give(c.link.me, 0 if c.in_frames else <uint32_t> count)
        if status < 0:
            return status
    return c.link_status if c.link_status < 0 else count
