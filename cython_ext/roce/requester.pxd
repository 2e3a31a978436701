"""The requester: numbers packets, sends them, and sees them acknowledged (9.7.3, 9.7.6)."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.frames.packet cimport IPV4, UDP_HEADER, load32, load64
from cython_ext.headers.infiniband_verbs cimport IBV_QPS_RTS, IBV_WC_SUCCESS
from cython_ext.roce.connection cimport Connection, SendRequest, complete_oldest, psn_after
from cython_ext.roce.icrc cimport icrc_end
from cython_ext.roce.memory_region cimport find_memory
from cython_ext.roce.packet cimport (
    ACK_REQUEST,
    AETH,
    BTH,
    ETHERNET,
    KIND_ACK,
    KIND_MASK,
    PSN_MASK,
    Packet,
    big32,
    psn_distance,
    swap32,
)
from cython_ext.roce.timer cimport restart_timer, start_timer

cdef enum:
    PLAIN_SEND = ETHERNET + IPV4 + UDP_HEADER + BTH     # bytes of headers

# Give the request at `posted` its numbers, and post it.
cdef void post_request(Connection *c) noexcept nogil
# Say what the request at `posted`, which is filled, has in common with the one before it.
cdef void liken(Connection *c, SendRequest *request) noexcept nogil
# A response that has come, whole and with the right ICRC; `at` is the time, in nanoseconds.
cdef void take_response(Connection *c, const Packet *p, int64_t at) noexcept nogil
# Look at the timer, and send what may be sent.
cdef void send_requests(Connection *c, int64_t at) noexcept nogil


cdef inline void number_request(Connection *c, SendRequest *request, bint answered, uint32_t packets) noexcept nogil:
    """The request at `posted` is whole. Numbered when it is posted, so that sending, and sending again, is the same."""
    request.answered = answered
    request.first = c.new_psn
    request.packets = packets
    c.new_psn = psn_after(c.new_psn, packets)
    c.posted += 1


# --- the quick ways, of one plain request and of its ACK -----------------------------------------------------------

cdef inline bint send_plain_one(Connection *c, int64_t at) noexcept nogil:
    """As `send_requests`, where one plain request is to be sent, and nothing else. False: nothing was done."""
    cdef const SendRequest *request = &c.sends[c.next & c.send_mask]
    cdef uint32_t psn = c.send_psn, raw = swap32(psn | ACK_REQUEST)
    cdef const char *payload
    # headers that are made, a new number within the window, and no pause that the other end asked for
    if (request.like == 0 or request.like != c.plain_send.like or c.next + 1 != c.posted or psn != c.highest_psn
            or psn_distance(psn, c.unacked_psn) >= <int> c.window or c.rnr_until or c.state != IBV_QPS_RTS):
        return False
    payload = find_memory(c.regions, request.lkey, request.local, request.length, 0)
    if payload == NULL or not c.gather.append_one(
            c.gather.me, &c.plain_send.shared, payload, request.length, raw,
            c.quick.one(c.plain_send.sum, raw, payload, request.length)):
        return False
    c.send_psn = c.highest_psn = psn_after(psn, 1)
    c.next += 1
    c.counters.sent += 1
    c.counters.gathered += request.length
    start_timer(c, at)
    return True


cdef inline void moved_to(Connection *c, uint32_t psn, int64_t at) noexcept nogil:
    """Everything before `psn` is acknowledged: the retry counts and the timer begin anew (9.7.6.1.3)."""
    c.unacked_psn = psn
    # acknowledged while we had gone back: there is no need to send it again
    if psn_distance(c.send_psn, psn) < 0:
        c.send_psn = psn
    if <int> (c.next - c.oldest) < 0:
        c.next = c.oldest
    c.retries_left, c.rnr_left, c.resumed = c.retry_count, c.rnr_retry, False
    restart_timer(c, at)


cdef inline void acknowledge_before(Connection *c, uint32_t psn, int64_t at) noexcept nogil:
    """The other end has executed everything before `psn`. A READ or an atomic is done when its data have come."""
    cdef const SendRequest *request
    cdef uint32_t end, reached = c.unacked_psn
    while c.oldest != c.posted and psn_distance(psn, reached) > 0:
        request = &c.sends[c.oldest & c.send_mask]
        # an ACK that has overtaken a response, or tells that it is lost: the caller sees that nothing moved
        if request.answered:
            break
        end = psn_after(request.first, request.packets)
        # within a message: progress, but no completion
        if psn_distance(psn, end) < 0:
            reached = psn
            break
        complete_oldest(c, IBV_WC_SUCCESS)
        reached = end
    if reached != c.unacked_psn:
        # once for all that one ACK tells of
        moved_to(c, reached, at)


cdef inline bint take_plain_ack(Connection *c, const char *bth, uint32_t register, int64_t at) noexcept nogil:
    """An ACK with this BTH and AETH, if nothing but requests without data in answer is under way.

    False: nothing was done. `register`: the ICRC's in front of the PSN.
    """
    cdef uint32_t psn = big32(bth + 8) & PSN_MASK
    # number and AETH: all that the ICRC covers besides
    if icrc_end(c.quick.word(register, load64(bth + BTH - 4))) != load32(bth + BTH + AETH):
        return False
    # What is more than an ACK of plain requests is for `take_acknowledge`: a NAK, a READ in between, an old number.
    if (bth[BTH] & (0x80 | KIND_MASK) != KIND_ACK or c.outstanding or psn_distance(psn, c.unacked_psn) < 0
            or psn_distance(psn, c.highest_psn) >= 0):
        return False
    acknowledge_before(c, psn_after(psn, 1), at)
    c.counters.acks += 1
    return True
