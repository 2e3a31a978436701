# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The requester of a reliable connection.

What was sent is not kept: a packet that is to be sent again is built again, from the request and the user's memory. The
place of a packet in its message follows from its number, so that going back is setting one number.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.headers.infiniband_verbs cimport *
from cython_ext.frames.link cimport Piece
from cython_ext.frames.packet cimport IPV4
from cython_ext.roce.connection cimport *
from cython_ext.roce.icrc cimport ICRC
from cython_ext.roce.memory_region cimport Region, find_memory, region_of
from cython_ext.roce.packet cimport *
from cython_ext.roce.timer cimport start_timer, still_waits, timer_expired, wait_for_receiver

cdef enum:
    TOGETHER = 64           # plain requests at a time


cdef void post_request(Connection *c) noexcept nogil:
    cdef SendRequest *request = &c.sends[c.posted & c.send_mask]
    liken(c, request)
    # those whose response carries data, which no ACK completes
    number_request(c, request, request.verb == IBV_WR_RDMA_READ or request.verb == IBV_WR_ATOMIC_CMP_AND_SWP
                   or request.verb == IBV_WR_ATOMIC_FETCH_AND_ADD, packets_of(request.length, c.mtu))


# --- sending -------------------------------------------------------------------------------------------------------

cdef void send_requests(Connection *c, int64_t at) noexcept nogil:
    cdef const SendRequest *request
    cdef char *frame
    c.free_frames = 0
    # The other end asked for this pause; nothing goes, new or old, before it is over.
    if c.rnr_until and still_waits(c, at):
        return
    # Before anything new: what is sent again comes first, and uses the same loop.
    if timer_expired(c, at):
        retry_from(c, c.unacked_psn)
    while c.next != c.posted and c.state != IBV_QPS_ERR:
        request = &c.sends[c.next & c.send_mask]
        if request.answered:
            # as many as the other end keeps room for (9.7.3.1)
            if c.outstanding >= c.reads:
                return
        # by number, so that what is sent again counts as it did
        elif psn_distance(c.send_psn, c.unacked_psn) >= <int> c.window:
            return
        # what is sent again goes packet by packet
        if request.like and c.send_psn == c.highest_psn and send_plain(c):
            start_timer(c, at)
            continue
        frame = next_frame(c)
        if frame == NULL:
            return
        if not send_packet(c, frame, request):
            return
        # runs from the oldest packet on; a later one does not start it anew
        start_timer(c, at)


cdef void liken(Connection *c, SendRequest *request) noexcept nogil:
    cdef const SendRequest *before = &c.sends[(c.posted - 1) & c.send_mask]
    request.like = 0
    # one packet without padding, over IPv4, and a link that has a quick way for it
    if (request.verb != IBV_WR_SEND or not 0 < request.length <= c.mtu or request.length & 3 or c.gather == NULL
            or c.way.network != IPV4):
        return
    if (before.like and before.length == request.length and before.flags == request.flags
            and before.lkey == request.lkey):
        request.like = before.like
    else:
        c.likes += 1
        request.like = c.likes


cdef void learn_send(Connection *c, const SendRequest *request) noexcept nogil:
    cdef PlainSend *plain = &c.plain_send
    # another one for the link: what stands in its buffers is of other packets
    c.gather.versions[0] += 1
    plain.like, plain.shared.version = request.like, c.gather.versions[0]
    plain.shared.head, plain.shared.tail = PLAIN_SEND, ICRC
    begin_packet(c, plain.shared.headers, RC_SEND_ONLY, SOLICITED if request.flags & SOLICITS else 0, ACK_REQUEST, 0,
                 request.length)
    # of a PSN of 0 and nothing else in its word: that is each packet's
    memset(plain.shared.headers + PLAIN_SEND - 4, 0, 4)
    c.quick.sum(plain.shared.headers + ETHERNET, plain.sum)


cdef uint32_t send_plain(Connection *c) noexcept nogil:
    """As `send_packet`, for plain requests behind one another that are alike: how many were sent.

    The headers of all of them are the same but for the PSN, and so is the sum up to it. 0: the link is full, or
    `send_packet` has to say what is wrong.
    """
    cdef Piece[TOGETHER] pieces
    cdef Piece *piece = pieces
    cdef const SendRequest *request = &c.sends[c.next & c.send_mask]
    cdef const SendRequest *last = &c.sends[c.send_mask]
    cdef const Region *region = region_of(c.regions, request.lkey)
    cdef uint32_t size = request.length, like = request.like, psn = c.send_psn, n, done = 0
    cdef uint64_t offset, from_address = region.address, furthest = region.size - size
    cdef const char *base = region.base
    cdef int most = c.link.room(c.link.me, TOGETHER)
    if region.key != request.lkey or region.key == 0 or region.size < size:
        return 0
    if c.plain_send.like != like:
        learn_send(c, request)
    most = min(most, <int> (c.posted - c.next), <int> c.window - psn_distance(psn, c.unacked_psn))
    while most > 0:
        # as find_memory has it: an address below the region's has become a very large offset
        offset = request.local - from_address
        if request.like != like or offset > furthest:
            break
        # the memory stays the device's until the other end has acknowledged it
        piece.payload = base + offset
        piece.psn = swap32(psn | ACK_REQUEST)
        piece += 1
        psn = psn_after(psn, 1)
        request = request + 1 if request != last else c.sends
        most -= 1
    n = piece - pieces
    if n:
        c.quick.run(c.plain_send.sum, pieces, n, size)
    # numbers and sums are made; from here on the link has the frames, in their order
    while done < n:
        done += append_run(c, pieces + done, n - done, size)
    c.send_psn = c.highest_psn = psn
    c.next += n
    c.counters.sent += n
    # asked for anew by whoever needs it
    c.free_frames = 0
    return n


cdef uint32_t append_run(Connection *c, const Piece *pieces, uint32_t count, uint32_t size) noexcept nogil:
    """As many as go the same way, at least one."""
    cdef uint32_t run = c.gather.append_all(c.gather.me, &c.plain_send.shared, pieces, count, size)
    c.counters.gathered += <uint64_t> run * size
    if run:
        return run
    append_plain(c, pieces, size)
    return 1


cdef void append_plain(Connection *c, const Piece *piece, uint32_t size) noexcept nogil:
    # across the end of a page or of the ring, or memory that the device does not reach
    cdef char *frame = c.link.buffer(c.link.me, 0)
    cdef int status
    memcpy(frame, c.plain_send.shared.headers, 64)
    memcpy(frame + PLAIN_SEND - 4, &piece.psn, 4)
    status = c.gather.append(c.gather.me, PLAIN_SEND, piece.payload, size, piece.end, ICRC)
    if status > 0:
        c.counters.gathered += size
    elif status == 0:
        c.counters.copied_out += size
    elif c.link_status == 0:
        c.link_status = status


cdef bint send_packet(Connection *c, char *frame, const SendRequest *request) noexcept nogil:
    """The packet with the next number. False if the own memory may not be read."""
    cdef uint32_t index = psn_distance(c.send_psn, request.first), count = 1
    cdef uint64_t offset = <uint64_t> index * c.mtu
    cdef uint32_t left = request.length - <uint32_t> offset, size = 0
    cdef uint8_t opcode
    cdef char *payload = NULL
    cdef char *at
    if request.verb == IBV_WR_RDMA_READ:
        # the rest of the response, where a part of it has come: a READ is resumed at the first number that is missing
        at = begin_packet(c, frame, RC_RDMA_READ_REQUEST, 0, c.send_psn | ACK_REQUEST, RETH, 0)
        at = write_reth(at, request.remote + offset, request.rkey, left)
        count = request.packets - index
    elif request.answered:
        # the result comes back in the answer, so there is nothing of ours to read
        opcode = RC_COMPARE_SWAP if request.verb == IBV_WR_ATOMIC_CMP_AND_SWP else RC_FETCH_ADD
        at = begin_packet(c, frame, opcode, 0, c.send_psn | ACK_REQUEST, ATOMIC_ETH, 0)
        at = write_atomic_eth(at, request.remote, request.rkey, request.swap, request.compare)
    else:
        size = min(left, c.mtu)
        if size:
            payload = find_memory(c.regions, request.lkey, request.local + offset, size, 0)
            if payload == NULL:
                # requests complete in their order, so those before it first
                if c.next == c.oldest:
                    fail_oldest(c, IBV_WC_LOC_PROT_ERR)
                return False
        at = begin_message_packet(c, frame, request, index, size)
    # copies the payload into the link's frame, and sums it
    end_packet(c, frame, at, payload, size)
    if psn_distance(c.send_psn, c.highest_psn) < 0:
        c.counters.sent_again += 1
    c.send_psn = psn_after(c.send_psn, count)
    if psn_distance(c.send_psn, c.highest_psn) > 0:
        c.highest_psn = c.send_psn
    # an atomic and a READ are sent by one packet, so each is counted once
    c.outstanding += request.answered
    if index + count == request.packets:
        c.next += 1
    return True


cdef inline char *begin_message_packet(Connection *c, char *frame, const SendRequest *request, uint32_t index,
                                       uint32_t size) noexcept nogil:
    """The headers of a packet of a SEND or WRITE, by its place in the message."""
    cdef bint first = index == 0, last = index + 1 == request.packets
    cdef bint writes = request.verb == IBV_WR_RDMA_WRITE or request.verb == IBV_WR_RDMA_WRITE_WITH_IMM
    cdef bint immediate = last and (request.verb == IBV_WR_SEND_WITH_IMM
                                    or request.verb == IBV_WR_RDMA_WRITE_WITH_IMM)
    # FIRST, MIDDLE, LAST, LAST with immediate, ONLY, ONLY with immediate: in this order for either verb (9.2.1)
    cdef uint32_t opcode = RC_RDMA_WRITE_FIRST if writes else RC_SEND_FIRST
    cdef uint32_t psn = c.send_psn
    cdef char *at
    if last:
        opcode += (4 if first else 2) + immediate
    elif not first:
        opcode += 1
    # The end of a message is acknowledged, and within a long one each half of the window: it never stands still.
    if last or (index + 1) % max(c.window // 2, <uint32_t> 1) == 0:
        psn |= ACK_REQUEST
    at = begin_packet(c, frame, <uint8_t> opcode, SOLICITED if last and request.flags & SOLICITS else 0, psn,
                      (RETH if writes and first else 0) + (IMMDT if immediate else 0), size)
    if writes and first:
        at = write_reth(at, request.remote, request.rkey, request.length)
    if immediate:
        put32(at, request.immediate)
        at += IMMDT
    return at


# --- going back ----------------------------------------------------------------------------------------------------

cdef void go_back(Connection *c, uint32_t psn) noexcept nogil:
    """What is sent next is the packet of this number, and all behind it again (go-back-N)."""
    cdef const SendRequest *request
    c.send_psn = psn
    # Requests in front of the number stay under way; those from it on are to be sent, and so not outstanding.
    c.next = c.oldest
    c.outstanding = 0
    while c.next != c.posted:
        request = &c.sends[c.next & c.send_mask]
        if psn_distance(psn, psn_after(request.first, request.packets)) < 0:
            return  # it is a number of this request
        c.outstanding += request.answered
        c.next += 1


cdef void retry_from(Connection *c, uint32_t psn) noexcept nogil:
    """Send again, as often as the retry count allows; each answer that brings the connection on counts anew (9.9.2)."""
    # stale: all is acknowledged
    if c.oldest == c.posted:
        return
    if c.retries_left == 0:
        fail_oldest(c, IBV_WC_RETRY_EXC_ERR)
        return
    c.retries_left -= 1
    # the first packet that is sent again starts it
    c.deadline = 0
    go_back(c, psn)


cdef void fail_oldest(Connection *c, ibv_wc_status status) noexcept nogil:
    """The oldest request ends with an error, and the connection with it."""
    if c.oldest != c.posted:
        complete_oldest(c, status)
    enter_error(c)


# --- responses -----------------------------------------------------------------------------------------------------

cdef void take_response(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    # What has a number that was never sent, or was acknowledged, answers nothing (9.7.6.1).
    if psn_distance(p.psn, c.unacked_psn) < 0 or psn_distance(p.psn, c.highest_psn) >= 0:
        c.counters.stale += 1
    elif p.kind & IS_READ:
        take_read_response(c, p, at)
    elif p.kind & HAS_ATOMIC_ACK_ETH:
        take_atomic_response(c, p, at)
    else:
        take_acknowledge(c, p, at)


cdef inline void response_lost(Connection *c) noexcept nogil:
    """A later response tells that an earlier one is lost (9.7.6.1.2): as if a NAK had said so, but once."""
    if not c.resumed:
        c.counters.lost_responses += 1
        retry_from(c, c.unacked_psn)
        c.resumed = True


cdef void take_acknowledge(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    cdef uint32_t kind = p.syndrome & KIND_MASK
    cdef bint refused = kind != KIND_ACK
    if p.syndrome & 0x80:
        c.counters.malformed += 1   # reserved
        return
    # an ACK is for its own number too, a NAK of either sort for all before it
    acknowledge_before(c, p.psn if refused else psn_after(p.psn, 1), at)
    if psn_distance(p.psn, c.unacked_psn) > 0 or not refused and p.psn == c.unacked_psn:
        response_lost(c)        # of a READ or an atomic in front of it
        return
    if not refused:
        c.counters.acks += 1
    elif kind == KIND_RNR_NAK:
        take_rnr_nak(c, p, at)
    else:
        take_nak(c, p)


cdef void take_rnr_nak(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    """The other end has no receive request: the same again after the time that it names (9.7.5.2.8)."""
    c.counters.rnr_naks += 1
    if c.rnr_retry != INFINITE_RETRIES:
        if c.rnr_left == 0:
            fail_oldest(c, IBV_WC_RNR_RETRY_EXC_ERR)
            return
        c.rnr_left -= 1
    # The whole message from the packet that was refused, once the time is over.
    go_back(c, p.psn)
    wait_for_receiver(c, at, p.syndrome & VALUE_MASK)


cdef void take_nak(Connection *c, const Packet *p) noexcept nogil:
    c.counters.naks += 1
    # A lost packet is sent again; all others are final, and the other end has left its working state too (9.9.3).
    if p.syndrome == NAK_PSN_SEQUENCE_ERROR:
        retry_from(c, p.psn)
    elif p.syndrome == NAK_INVALID_REQUEST:
        fail_oldest(c, IBV_WC_REM_INV_REQ_ERR)
    elif p.syndrome == NAK_REMOTE_ACCESS_ERROR:
        fail_oldest(c, IBV_WC_REM_ACCESS_ERR)
    elif p.syndrome == NAK_REMOTE_OPERATIONAL_ERROR:
        fail_oldest(c, IBV_WC_REM_OP_ERR)
    else:
        c.counters.malformed += 1   # reserved codes: as if it had not come


cdef inline SendRequest *awaited(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    """The READ or atomic whose data this response brings; NULL if others must come before, or it is for none."""
    cdef SendRequest *request
    # a response acknowledges what was asked for before it (9.7.5.1.1)
    acknowledge_before(c, p.psn, at)
    if c.unacked_psn != p.psn:
        response_lost(c)
        return NULL
    request = &c.sends[c.oldest & c.send_mask]
    if c.oldest == c.posted or not request.answered:
        fail_oldest(c, IBV_WC_BAD_RESP_ERR)
        return NULL
    return request


cdef void take_read_response(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    cdef SendRequest *request = awaited(c, p, at)
    cdef uint32_t index, size, offset
    cdef int placed
    if request == NULL:
        return
    index = psn_distance(p.psn, request.first)
    offset = index * c.mtu
    size = min(request.length - offset, c.mtu)
    # its last number comes with the last packet, and with no other; no packet is longer or shorter than it must be
    if (request.verb != IBV_WR_RDMA_READ or p.size != size
            or (p.kind & IS_LAST != 0) != (index + 1 == request.packets)):
        fail_oldest(c, IBV_WC_BAD_RESP_ERR)
        return
    # in its place at once, whatever may still be missing behind it
    placed = place_payload(c, p, request.lkey, request.local + offset, IBV_ACCESS_LOCAL_WRITE)
    # Its own place is still the NIC's, which would write the next frame over it. So it has not come: the READ is
    # resumed at its number, and where the answers lie then is another matter.
    if placed == CLASHES:
        response_lost(c)
        return
    if placed == FORBIDDEN:
        fail_oldest(c, IBV_WC_LOC_PROT_ERR)
        return
    # Not outstanding where we had gone back before it, and it came after all.
    if index + 1 == request.packets:
        if c.stamps != NULL:
            stamp_message(c, find_memory(c.regions, request.lkey, request.local, request.length, 0), request.length)
        c.outstanding -= c.next != c.oldest
        complete_oldest(c, IBV_WC_SUCCESS)
        c.messages += 1
    moved_to(c, psn_after(p.psn, 1), at)


cdef void take_atomic_response(Connection *c, const Packet *p, int64_t at) noexcept nogil:
    cdef SendRequest *request = awaited(c, p, at)
    cdef char *to
    if request == NULL:
        return
    if request.verb == IBV_WR_RDMA_READ:
        fail_oldest(c, IBV_WC_BAD_RESP_ERR)
        return
    # the region may have been closed since the request was posted
    to = find_memory(c.regions, request.lkey, request.local, 8, IBV_ACCESS_LOCAL_WRITE)
    if to == NULL:
        fail_oldest(c, IBV_WC_LOC_PROT_ERR)
        return
    memcpy(to, &p.original, 8)  # as a number of this machine
    c.outstanding -= c.next != c.oldest
    complete_oldest(c, IBV_WC_SUCCESS)
    moved_to(c, psn_after(p.psn, 1), at)
