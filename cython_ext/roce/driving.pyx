# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Driving a queue pair: frames in, parsed and checked, to the responder or the requester; then what both have to send.

It allocates nothing and holds no GIL.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from cython_ext.core.clock cimport now
from cython_ext.frames.landing cimport has_come
from cython_ext.frames.link cimport Frame
from cython_ext.frames.packet cimport (
    ETHERNET,
    IPV4,
    UDP_HEADER,
    big16,
    fold,
    load32,
    load64,
    ones_add,
)
from cython_ext.headers.infiniband_verbs cimport IBV_QPS_ERR, IBV_QPS_RTS
from cython_ext.roce.aside cimport is_neighbours, set_aside
from cython_ext.roce.connection cimport FRAMES, GSI, Connection, PlainHeaders, flush_frames
from cython_ext.roce.icrc cimport ICRC, icrc_before_psn
from cython_ext.roce.packet cimport (
    AETH,
    BTH,
    DEFAULT_PKEY,
    IS_RESPONSE,
    NOT_ROCE,
    RC_ACKNOWLEDGE,
    RC_SEND_ONLY,
    ROCE,
    ROCE_PORT,
    SYNDROME_ACK,
    UC_SERVICE,
    UNKNOWN_OPCODE,
    Packet,
    icrc_right,
    parse_roce,
    psn_distance,
)
from cython_ext.roce.requester cimport send_requests, take_plain_ack, take_response
from cython_ext.roce.responder cimport (
    PLAIN,
    learn_ack,
    send_plain_ack,
    send_responses,
    take_plain_send,
    take_request,
)
from cython_ext.roce.timer cimport UNREAD, next_event

cdef enum:
    # which quick way a frame may take
    NO_QUICK_WAY = 0
    PLAIN_SENDS = 1
    PLAIN_ACKS = 2

cdef extern from *:
    """
    /* Of a BTH's first 8 bytes, the opcode first: all but resv8a, which the ICRC does not cover; and what tells its
       kind and whose it is, without solicited event, MigReq, the count of padding, and membership of the partition. */
    #define HWRX_BTH_WORD 0xFFFFFF00FFFFFFFFull
    #define HWRX_EXPECTED_BTH 0xFFFFFF00FF7F0FFFull
    /* a frame's bytes 12 to 41 */
    static const unsigned hwrx_plain_words[4] = {12, 20, 28, 34};
    """
    const uint64_t BTH_WORD "HWRX_BTH_WORD"
    const uint64_t EXPECTED_BTH "HWRX_EXPECTED_BTH"
    const uint32_t[4] WORDS "hwrx_plain_words"


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


cdef void learn_plain(Connection *c) noexcept nogil:
    cdef char[8] bth
    bth[0], bth[1], bth[2], bth[3], bth[4] = RC_SEND_ONLY, 0, 0x7F, <char> 0xFF, 0
    bth[5], bth[6], bth[7] = <char> (c.qpn >> 16), <char> (c.qpn >> 8), <char> c.qpn
    # over IPv6 none is expected: no frame has all bits
    c.expected_bth = load64(bth) if c.way.network == IPV4 else <uint64_t> -1
    # no frame has that: the first one is judged
    c.plain.bth = c.plain_ack.bth = <uint64_t> -1
    learn_ack(c)
    # source and destination change places
    if c.way.network == IPV4:
        c.ends = <uint64_t> load32(c.way.headers + 30) | <uint64_t> load32(c.way.headers + 26) << 32


cdef bint learn_headers(const Connection *c, const Frame *frame, PlainHeaders *plain,
                        uint64_t expected) noexcept nogil:
    """Judge a frame's headers; keep them if they come over IPv4, for this queue pair, with the BTH that is expected.

    All of `parse_roce` and `is_ours` is among the comparisons. False if one of them fails.
    """
    cdef const char *at = frame.data
    cdef const char *bth = at + PLAIN
    cdef char[IPV4 + UDP_HEADER + BTH] head
    cdef uint32_t length, covered, pad, k
    # Ethernet and IPv4 without options, no fragment, UDP, both addresses, RoCE's port, this queue pair
    if (load64(at + 26) != c.ends or load64(bth) & EXPECTED_BTH != expected
            or load32(at + 12) & 0x00FFFFFF != 0x00450008 or load32(at + 20) & 0xFF00FF3FU != 0x11000000
            or big16(at + 36) != ROCE_PORT):
        return False
    length = big16(at + 38)
    if (length < UDP_HEADER + BTH + ICRC or big16(at + 16) != length + IPV4
            or fold(ones_add(ones_add(load64(at + 14), load64(at + 22)), load32(at + 30))) != 0xFFFF):
        return False
    covered = length - UDP_HEADER - BTH - ICRC
    pad = <uint8_t> bth[1] >> 4 & 3
    if covered & 3 or covered <= pad or covered - pad > c.mtu:
        return False
    for k in range(4):
        plain.words[k] = load64(at + WORDS[k])
    plain.bth = load64(bth) & BTH_WORD
    plain.size, plain.covered = covered - pad, covered
    plain.register = icrc_before_psn(at + ETHERNET, IPV4)
    memcpy(head, at + ETHERNET, sizeof(head))
    memset(head + sizeof(head) - 4, 0, 4)
    c.quick.sum(head, plain.sum)
    return True


cdef inline bint has_headers(const char *at, const PlainHeaders *plain) noexcept nogil:
    """Whether a frame, of PLAIN + BTH bytes at least, has the headers that were judged."""
    return (load64(at + 34) == plain.words[3] and load64(at + 28) == plain.words[2]
            and load64(at + 20) == plain.words[1] and load64(at + 12) == plain.words[0]
            and load64(at + PLAIN) & BTH_WORD == plain.bth)


cdef int judge_headers(Connection *c, const Frame *frame, uint32_t opcode) noexcept nogil:
    """Which quick way a frame may take whose headers are not those of the one before."""
    if opcode == RC_SEND_ONLY:
        return PLAIN_SENDS if c.in_frames and learn_headers(c, frame, &c.plain, c.expected_bth) else NO_QUICK_WAY
    if not learn_headers(c, frame, &c.plain_ack, c.expected_bth ^ RC_SEND_ONLY ^ RC_ACKNOWLEDGE):
        return NO_QUICK_WAY
    # of an ACK the AETH is all that follows the BTH
    if c.plain_ack.size == AETH and c.plain_ack.covered == AETH:
        return PLAIN_ACKS
    c.plain_ack.bth = <uint64_t> -1
    return NO_QUICK_WAY


cdef inline bint has_quick_ways(const Connection *c) noexcept nogil:
    """Not where stages are stamped, nor in the error state."""
    return c.stamps == NULL and c.state == IBV_QPS_RTS


cdef inline int quick_way(Connection *c, const Frame *frame) noexcept nogil:
    """Which quick way a frame may take: what most frames have in common is compared in a few words."""
    cdef uint32_t opcode
    # first of all whether there is such a header
    if frame.size < PLAIN + BTH + AETH + ICRC:
        return NO_QUICK_WAY
    if has_headers(frame.data, &c.plain):
        return PLAIN_SENDS
    if has_headers(frame.data, &c.plain_ack):
        return PLAIN_ACKS
    opcode = <uint8_t> frame.data[PLAIN]
    if opcode != RC_SEND_ONLY and opcode != RC_ACKNOWLEDGE:
        return NO_QUICK_WAY
    return judge_headers(c, frame, opcode)


cdef void take_frame(Connection *c, const Frame *frame, int64_t at) noexcept nogil:
    """One frame: to the side whose it is, or counted. `c.kept` says whether it is the user's now."""
    cdef Packet packet
    cdef int verdict = parse_roce(frame.data, frame.size, &packet)
    if verdict == NOT_ROCE:
        if is_neighbours(frame):
            set_aside(c, frame)
        return
    if c.stamps != NULL:
        c.parsed = now()
    if verdict == ROCE and packet.qpn == GSI:
        set_aside(c, frame)
        return
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


cdef inline bint ack_can_wait(const Connection *c) noexcept nogil:
    """Nothing but an ACK is owed, and whoever drives the pair sends something soon, or looks again (9.7.5.1.2)."""
    return c.ack_waits and c.response_head == c.response_tail and c.ack_due and c.ack_syndrome == SYNDROME_ACK


cdef inline void take_ack(Connection *c, const Frame *frame, int64_t at) noexcept nogil:
    """A frame that has the headers of `c.plain_ack`."""
    if not take_plain_ack(c, frame.data + PLAIN, c.plain_ack.register, at):
        take_frame(c, frame, at)
        return
    c.counters.packets += 1
    if c.landing != NULL:
        c.landing.aside += 1


cdef inline void send_answers(Connection *c, int64_t at, bint ack_may_wait) noexcept nogil:
    """What both sides have to send."""
    cdef bint sends = False
    # Answers for the whole batch at once, so that one ACK stands for many.
    if (c.ack_due or c.response_head != c.response_tail) and not (ack_may_wait and ack_can_wait(c)):
        if not send_plain_ack(c):
            send_responses(c)
        sends = True
    # where no time was read, nothing expires
    if (c.next != c.posted or at != UNREAD) and c.state != IBV_QPS_ERR:
        send_requests(c, at)
        sends = True
    if sends:
        flush_frames(c)


cdef int drive(Connection *c, int64_t at, uint32_t most) noexcept nogil:
    """Take what has come, and send what is to be sent. How many frames came, or the link's error."""
    cdef const Frame *frame = c.frames
    cdef int count = c.link.take(c.link.me, c.frames, min(most, <uint32_t> FRAMES)), status, way
    cdef const Frame *behind = frame + count
    cdef bint refused = False, quick = has_quick_ways(c)
    if count < 0:
        return count
    if c.stamps != NULL:
        c.seen = now()
    while frame < behind:
        way = quick_way(c, frame) if quick else NO_QUICK_WAY
        if way != PLAIN_SENDS or not take_plain_send(c, frame):
            c.kept = False
            if c.landing != NULL:
                has_come(c.landing, frame.data)
            if way == PLAIN_ACKS:
                take_ack(c, frame, at)
            else:
                take_frame(c, frame, at)
            if c.in_frames and not c.kept:
                c.link.refuse(c.link.me, frame)
                refused = True
            # it may have been the one that ended the connection
            quick = has_quick_ways(c)
        frame += 1
    # What was received into place stands there, so the device gets new buffers first: it has no more than the other end
    # may send before it hears of the batch.
    if count and c.landing != NULL:
        foresee(c)
        status = c.link.give(c.link.me, <uint32_t> count)
        if status < 0:
            return status
    # Before other frames are given back: a response never refers to one of them, but the other end waits for it.
    send_answers(c, at, count != 0)
    # those that are kept go back one by one, when the user has done with them
    if refused or count and c.landing == NULL and not c.in_frames:
        status = c.link.give(c.link.me, 0 if c.in_frames else <uint32_t> count)
        if status < 0:
            return status
    return c.link_status if c.link_status < 0 else count


cdef int look_at_timers(Connection *c, int64_t at) noexcept nogil:
    cdef int64_t event
    # what has begun to count since a time was read counts from now on
    if c.deadline == UNREAD:
        c.deadline = at + c.timeout_ns
    if c.rnr_until < 0:
        c.rnr_until = at - c.rnr_until
    event = next_event(c)
    if event == 0 or at < event or c.state == IBV_QPS_ERR:
        return 0
    send_requests(c, at)
    return flush_frames(c)
