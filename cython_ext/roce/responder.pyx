# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The responder of a reliable connection, as the checks of the specification follow one another (9.7.4.1).

The number first: an earlier one is a duplicate, a later one tells of a loss. Then whether the opcode may come here,
whether the length is what it must be, whether there is a receive request, and whether the memory may be touched. Only
then a byte is written. What fails is answered by a NAK, after which nothing more is taken; a missing receive request is
answered by an RNR NAK, and the same packet is awaited again.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cython_ext.frames.packet cimport IPV4, UDP_HEADER
from cython_ext.headers.infiniband_verbs cimport *
from cython_ext.roce.connection cimport *
from cython_ext.roce.icrc cimport ICRC, icrc_before_psn
from cython_ext.roce.memory_region cimport find_memory
from cython_ext.roce.packet cimport *

cdef enum:
    LONGEST_MESSAGE = 0x80000000U   # 2^31 bytes (9.7.1)

cdef extern from *:
    """
    #include <stdint.h>

    /* In one step for every CPU: the memory is shared with whoever else changes it. */
    static inline uint64_t hwrx_fetch_add(char *at, uint64_t value)
    {
        return __atomic_fetch_add((uint64_t *)at, value, __ATOMIC_SEQ_CST);
    }
    static inline uint64_t hwrx_compare_swap(char *at, uint64_t expected, uint64_t value)
    {
        __atomic_compare_exchange_n((uint64_t *)at, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        return expected;
    }
    """
    uint64_t fetch_add "hwrx_fetch_add"(char *at, uint64_t value) noexcept nogil
    uint64_t compare_swap "hwrx_compare_swap"(char *at, uint64_t expected, uint64_t value) noexcept nogil


# --- what is to be said --------------------------------------------------------------------------------------------

cdef inline void owe_nak(Connection *c, uint8_t syndrome) noexcept nogil:
    """Refuse the packet that is expected. Nothing is said of those behind it until it comes (9.7.5.2.8)."""
    # an ACK that has not gone is told by the NAK: it acknowledges all before its number
    c.ack_due = True
    c.ack_syndrome = syndrome
    c.ack_psn = c.expected_psn
    c.nak_sent = True


cdef void refuse(Connection *c, uint8_t syndrome, ibv_wc_status status) noexcept nogil:
    """A request that cannot be executed: a NAK, and the error state; a bad status is the receive request's."""
    # before the flush, which would take the request for one that nothing had happened to
    if status != IBV_WC_SUCCESS and c.receive_oldest != c.receive_posted:
        complete_receive(c, status, IBV_WC_RECV, c.offset, 0, 0)
    owe_nak(c, syndrome)
    # The NAK is sent from this state too; without it the other end would only see silence.
    enter_error(c)


# --- taking requests -----------------------------------------------------------------------------------------------

cdef void take_request(Connection *c, const Packet *p) noexcept nogil:
    cdef int ahead = psn_distance(p.psn, c.expected_psn)
    if ahead < 0:
        # sent again because our answer was lost or late, or doubled by the network
        c.counters.duplicates += 1
        take_duplicate(c, p)
        return
    if ahead > 0:
        c.counters.out_of_order += 1
        # Once. What is still under way behind the gap would else cause a NAK, and a repetition, for each packet.
        if not c.nak_sent:
            owe_nak(c, NAK_PSN_SEQUENCE_ERROR)
        return
    # The expected packet: from here on a gap is a new one.
    c.nak_sent = False
    # Opcode before length before memory, as the specification orders them: the first that fails names the NAK.
    if not opcode_fits(c, p) or not length_fits(c, p):
        refuse(c, NAK_INVALID_REQUEST, IBV_WC_SUCCESS)
    elif p.kind & IS_SEND:
        take_send(c, p)
    elif p.kind & IS_WRITE:
        take_write(c, p)
    elif p.kind & IS_READ:
        take_read(c, p)
    else:
        take_atomic(c, p)


cdef inline bint opcode_fits(const Connection *c, const Packet *p) noexcept nogil:
    """Whether the opcode may follow the last one (9.7.4.1.2). To make a key invalid is not offered here."""
    if p.kind & HAS_IETH:
        return False
    if c.message:
        # within a message only its own kind goes on, and does not begin anew
        return p.kind & c.message and not p.kind & IS_FIRST
    return p.kind & (IS_FIRST | IS_READ | IS_ATOMIC) != 0


cdef inline bint length_fits(const Connection *c, const Packet *p) noexcept nogil:
    """Whether the payload has as many bytes as its place in the message asks for (9.7.4.1.6)."""
    if not p.kind & (IS_SEND | IS_WRITE):
        return True
    if not p.kind & IS_LAST:
        # FIRST and MIDDLE are whole; by that a number tells the place in the message
        return p.size == c.mtu
    if p.kind & IS_FIRST:
        # ONLY: also nothing
        return p.size <= c.mtu
    # LAST: something, or the message would have ended with the packet before
    return 1 <= p.size <= c.mtu


cdef inline void message_ends(Connection *c) noexcept nogil:
    """The last packet was executed."""
    c.message = 0
    c.offset = 0
    # of which a landing's prediction is made
    c.messages += 1
    # told to the requester in every AETH (9.7.5.2)
    c.msn = psn_after(c.msn, 1)


cdef inline void packet_executed(Connection *c, const Packet *p) noexcept nogil:
    c.expected_psn = psn_after(p.psn, 1)
    # Without the bit nothing is owed: a later packet's ACK stands for this one.
    if p.ack_request:
        owe_ack(c, p.psn)


cdef inline bint receiver_ready(Connection *c) noexcept nogil:
    """Whether there is a receive request; if not, the other end is told to come again."""
    if c.receive_oldest != c.receive_posted:
        return True
    # the expected number stays what it is
    owe_nak(c, <uint8_t> (SYNDROME_RNR_NAK | c.min_rnr_timer & VALUE_MASK))
    return False


cdef void take_send(Connection *c, const Packet *p) noexcept nogil:
    cdef const ReceiveRequest *request
    cdef uint32_t flags = WITH_IMMEDIATE if p.kind & HAS_IMMDT else 0
    cdef char *data = NULL
    cdef int placed
    # For a later packet of the message the request is the same: only its end takes it off.
    if not receiver_ready(c):
        return
    request = &c.receives[c.receive_oldest & c.receive_mask]
    # offset never exceeds length, so this cannot wrap
    if p.size > request.length - c.offset:
        refuse(c, NAK_INVALID_REQUEST, IBV_WC_LOC_LEN_ERR)
        return
    if c.in_frames and p.kind & IS_FIRST and p.kind & IS_LAST:
        # The link's buffer is the receive buffer: it is the user's until it is given back.
        c.kept = True
        c.counters.in_frames += p.size
        c.landed = 0 if c.stamps == NULL else written_by_device(c.stamps, p.payload, p.size)
        data = <char *> p.payload
        flags |= IN_FRAME
    else:
        placed = place_payload(c, p, request.lkey, request.local + c.offset, IBV_ACCESS_LOCAL_WRITE)
        # its own place is still the NIC's, which would write the next frame over it: it is to come again
        if placed == CLASHES:
            owe_nak(c, NAK_PSN_SEQUENCE_ERROR)
            return
        if placed == FORBIDDEN:
            refuse(c, NAK_REMOTE_OPERATIONAL_ERROR, IBV_WC_LOC_PROT_ERR)
            return
    c.message = IS_SEND
    c.offset += p.size
    if p.kind & IS_LAST:
        if c.stamps != NULL:
            stamp_message(c, data if data != NULL else find_memory(c.regions, request.lkey, request.local, c.offset, 0),
                          c.offset)
        # behind the payload: who polls the completion finds the message
        complete_receive(c, IBV_WC_SUCCESS, IBV_WC_RECV, c.offset, p.immediate if p.kind & HAS_IMMDT else 0, flags,
                         data)
        message_ends(c)
    packet_executed(c, p)


cdef void take_write(Connection *c, const Packet *p) noexcept nogil:
    cdef uint32_t offset = c.offset
    cdef int placed
    if p.kind & HAS_RETH:
        # The lengths agree, or no packet of the message is executed.
        if p.length > LONGEST_MESSAGE or (p.length != p.size if p.kind & IS_LAST else p.length <= c.mtu):
            refuse(c, NAK_INVALID_REQUEST, IBV_WC_SUCCESS)
            return
        # All of the range at once; a WRITE of nothing touches nothing, and its key is not looked at (9.7.4.1.5).
        if p.length and (not c.access & IBV_ACCESS_REMOTE_WRITE or find_memory(
                c.regions, p.key, p.address, p.length, IBV_ACCESS_REMOTE_WRITE) == NULL):
            refuse(c, NAK_REMOTE_ACCESS_ERROR, IBV_WC_SUCCESS)
            return
        c.write_address, c.write_key, c.write_length = p.address, p.key, p.length
        offset = 0
    # what the RETH promised comes to its end with the LAST packet, and not before it
    elif (p.size != c.write_length - offset if p.kind & IS_LAST else p.size >= c.write_length - offset):
        refuse(c, NAK_INVALID_REQUEST, IBV_WC_SUCCESS)
        return
    if p.kind & HAS_IMMDT and not receiver_ready(c):
        return  # nothing of this packet is executed before it comes again
    # checked once more for this packet
    placed = place_payload(c, p, c.write_key, c.write_address + offset, IBV_ACCESS_REMOTE_WRITE)
    # As of a SEND: there the NIC may still write another frame, so it is to come again. The number that is expected
    # stays what it is, and so does the message, of which nothing more was executed.
    if placed == CLASHES:
        owe_nak(c, NAK_PSN_SEQUENCE_ERROR)
        return
    if placed == FORBIDDEN:
        refuse(c, NAK_REMOTE_ACCESS_ERROR, IBV_WC_SUCCESS)
        return
    # only now: until here the packet may come again as if it had not come
    c.message = IS_WRITE
    c.offset = offset + p.size
    if p.kind & IS_LAST:
        if c.stamps != NULL:
            stamp_message(c, find_memory(c.regions, c.write_key, c.write_address, c.write_length, 0), c.write_length)
        # a WRITE alone is seen by nobody here but who looks at the memory
        if p.kind & HAS_IMMDT:
            complete_receive(c, IBV_WC_SUCCESS, IBV_WC_RECV_RDMA_WITH_IMM, c.write_length, p.immediate, WITH_IMMEDIATE)
        message_ends(c)
    packet_executed(c, p)


cdef inline Response *owe_response(Connection *c) noexcept nogil:
    """A place among the responses, or NULL. An ACK that has not gone is told by the response itself (9.7.5.1.1)."""
    if c.response_head - c.response_tail == c.response_room:
        return NULL
    # a NAK stays: it is of a later number, and goes behind the response
    if c.ack_due and c.ack_syndrome == SYNDROME_ACK:
        c.ack_due = False
        c.counters.acks_coalesced += 1
    c.response_head += 1
    return &c.responses[(c.response_head - 1) % c.response_room]


cdef inline bint may_read(const Connection *c, const Packet *p) noexcept nogil:
    return p.length == 0 or c.access & IBV_ACCESS_REMOTE_READ and find_memory(
        c.regions, p.key, p.address, p.length, IBV_ACCESS_REMOTE_READ) != NULL


cdef inline uint32_t owed_first(const Connection *c) noexcept nogil:
    """Responses that answer no duplicate: as many as the other end may have outstanding (9.7.4.1.4)."""
    cdef uint32_t count = 0, k
    for k in range(c.response_tail, c.response_head):
        count += not c.responses[k % c.response_room].again
    return count


cdef void take_read(Connection *c, const Packet *p) noexcept nogil:
    cdef Response *response
    if p.length > LONGEST_MESSAGE or owed_first(c) >= c.reads:
        refuse(c, NAK_INVALID_REQUEST, IBV_WC_SUCCESS)
        return
    if not may_read(c, p):
        refuse(c, NAK_REMOTE_ACCESS_ERROR, IBV_WC_SUCCESS)
        return
    response = owe_response(c)
    if response == NULL:
        return  # full of duplicates' responses: as if it had been lost
    c.msn = psn_after(c.msn, 1)
    # nobody completes a READ here: who drives the pair for the other end's sake counts them
    c.reads_answered += 1
    # The response's packets take the numbers; the next request comes behind them (9.7.3.1).
    c.expected_psn = c.answered_psn = psn_after(p.psn, packets_of(p.length, c.mtu))
    fill_read(c, response, p, False)


cdef inline void fill_read(Connection *c, Response *response, const Packet *p, bint again) noexcept nogil:
    response.atomic = response.begun = False
    response.again = again
    response.address, response.key, response.left = p.address, p.key, p.length
    response.psn = p.psn
    response.msn = c.msn


cdef void take_atomic(Connection *c, const Packet *p) noexcept nogil:
    cdef char *at
    cdef Response *response
    cdef SavedAtomic *saved
    if p.address & 7 or owed_first(c) >= c.reads:  # it is on a boundary of 8 bytes (9.4.5)
        refuse(c, NAK_INVALID_REQUEST, IBV_WC_SUCCESS)
        return
    at = find_memory(c.regions, p.key, p.address, 8, IBV_ACCESS_REMOTE_ATOMIC)
    if at == NULL or not c.access & IBV_ACCESS_REMOTE_ATOMIC:
        refuse(c, NAK_REMOTE_ACCESS_ERROR, IBV_WC_SUCCESS)
        return
    # a place for the answer first: what is executed must be answered
    response = owe_response(c)
    if response == NULL:
        return
    # Kept until as many others have come as may be outstanding: the same packet again is answered, not executed.
    saved = &c.atomics[c.atomic_next % c.atomic_room]
    c.atomic_next += 1
    saved.used = True
    saved.psn = p.psn
    if p.opcode == RC_COMPARE_SWAP:
        saved.original = compare_swap(at, p.compare, p.swap)
    else:
        saved.original = fetch_add(at, p.swap)
    c.msn = psn_after(c.msn, 1)
    c.expected_psn = c.answered_psn = psn_after(p.psn, 1)
    fill_atomic(c, response, saved, False)


cdef inline void fill_atomic(Connection *c, Response *response, const SavedAtomic *saved, bint again) noexcept nogil:
    response.atomic = True
    response.begun = False
    response.again = again
    response.original = saved.original
    response.psn = saved.psn
    response.msn = c.msn
    response.left = 0


cdef inline bint will_answer(const Connection *c, const Packet *p) noexcept nogil:
    """Whether the response to this very READ is owed, and nothing of it has gone."""
    cdef const Response *response
    cdef uint32_t k
    for k in range(c.response_tail, c.response_head):
        response = &c.responses[k % c.response_room]
        if (not response.begun and not response.atomic and response.psn == p.psn and response.left == p.length
                and response.address == p.address and response.key == p.key):
            return True
    return False


cdef void take_duplicate(Connection *c, const Packet *p) noexcept nogil:
    """A request that was executed before (9.7.4.2): it is answered again, and nothing of it is executed twice.

    A READ is: it changes nothing. Of an atomic the result was kept.
    """
    cdef Response *response
    cdef uint32_t k
    if p.kind & (IS_SEND | IS_WRITE):
        # With the newest number, unless that is a READ's or an atomic's, whose answer is its response: if that was
        # lost, an ACK instead completes the request at a careless requester (rxe's check_ack), without its data.
        owe_ack(c, p.psn if c.expected_psn == c.answered_psn else psn_after(c.expected_psn, 0xFFFFFF))
        return
    if p.kind & IS_READ:
        # of what was executed, and not a byte more: a number beyond it would be another request
        if (p.length > LONGEST_MESSAGE or not may_read(c, p)
                or psn_distance(psn_after(p.psn, packets_of(p.length, c.mtu)), c.expected_psn) > 0):
            return
        # what is still to be sent answers this one too; twice, the second one would only cross what is asked for next
        if will_answer(c, p):
            return
        response = owe_response(c)
        if response != NULL:
            fill_read(c, response, p, True)
        return
    for k in range(c.atomic_room):
        if c.atomics[k].used and c.atomics[k].psn == p.psn:
            response = owe_response(c)
            if response != NULL:
                fill_atomic(c, response, &c.atomics[k], True)
            return


# --- answering -----------------------------------------------------------------------------------------------------

cdef void send_responses(Connection *c) noexcept nogil:
    cdef char *frame
    cdef char *at
    c.free_frames = 0
    # Responses first: an ACK of a later request that overtook them would tell the other end that they are lost.
    while c.response_tail != c.response_head:
        frame = next_frame(c)
        if frame == NULL:
            return  # the link is full: the next call goes on at this packet
        if not send_response(c, frame, &c.responses[c.response_tail % c.response_room]):
            c.response_tail += 1
    if c.ack_due:
        frame = next_frame(c)
        if frame == NULL:
            return
        at = begin_packet(c, frame, RC_ACKNOWLEDGE, 0, c.ack_psn, AETH, 0)
        end_packet(c, frame, write_aeth(at, c.ack_syndrome, c.msn), NULL, 0)
        c.ack_due = False
        if c.ack_syndrome == SYNDROME_ACK:
            c.counters.acks_sent += 1
        elif c.ack_syndrome & KIND_MASK == KIND_RNR_NAK:
            c.counters.rnr_naks_sent += 1
        else:
            c.counters.naks_sent += 1


cdef void learn_ack(Connection *c) noexcept nogil:
    c.ack.shared.version = 0
    # over IPv6 the headers are longer than what is kept of them
    if c.gather == NULL or c.way.network != IPV4:
        return
    c.gather.versions[0] += 1
    c.ack.shared.version = c.gather.versions[0]
    c.ack.shared.head, c.ack.shared.tail = ETHERNET + IPV4 + UDP_HEADER + BTH, AETH + ICRC
    # the number comes last in the BTH, so that what stands in front of it is summed once for all
    begin_packet(c, c.ack.shared.headers, RC_ACKNOWLEDGE, 0, 0, AETH, 0)
    c.ack.register = icrc_before_psn(c.ack.shared.headers + ETHERNET, IPV4)


cdef bint send_response(Connection *c, char *frame, Response *response) noexcept nogil:
    """One packet of it. Whether there are more to come."""
    cdef uint32_t size = min(response.left, c.mtu)
    cdef bint last = response.left <= c.mtu
    cdef uint8_t opcode
    cdef char *payload = NULL
    cdef char *at
    if response.atomic:
        at = begin_packet(c, frame, RC_ATOMIC_ACKNOWLEDGE, 0, response.psn, AETH + ATOMIC_ACK_ETH, 0)
        at = write_aeth(at, SYNDROME_ACK, response.msn)
        put64(at, response.original)
        end_packet(c, frame, at + ATOMIC_ACK_ETH, NULL, 0)
        return False
    if size:
        payload = find_memory(c.regions, response.key, response.address, size, IBV_ACCESS_REMOTE_READ)
        if payload == NULL:
            # the region was closed under the READ: the other end hears it at the number where its data stop
            c.response_head = c.response_tail + 1
            c.expected_psn = response.psn
            if c.state != IBV_QPS_ERR:
                refuse(c, NAK_REMOTE_ACCESS_ERROR, IBV_WC_SUCCESS)
            return False
    # A READ that is resumed begins with FIRST or ONLY again, whatever its number.
    if response.begun:
        opcode = RC_RDMA_READ_RESPONSE_LAST if last else RC_RDMA_READ_RESPONSE_MIDDLE
    else:
        opcode = RC_RDMA_READ_RESPONSE_ONLY if last else RC_RDMA_READ_RESPONSE_FIRST
    at = begin_packet(c, frame, opcode, 0, response.psn, 0 if opcode == RC_RDMA_READ_RESPONSE_MIDDLE else AETH, size)
    if opcode != RC_RDMA_READ_RESPONSE_MIDDLE:
        at = write_aeth(at, SYNDROME_ACK, response.msn)
    end_packet(c, frame, at, payload, size)
    # The responder keeps no data: what a READ returns is what stands there when it is sent.
    response.begun = True
    response.address += size
    response.left -= size
    response.psn = psn_after(response.psn, 1)
    return not last
