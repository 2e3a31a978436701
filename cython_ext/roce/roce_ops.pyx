# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the loops call of a queue pair of our own, verb by verb; see roce_path.pyx for what it is part of.

What a hardware HCA does by itself, and rxe in the kernel, is done by the thread that wants the message: whoever
receives, or waits for room, drives the queue pair. Nothing works between two calls.
"""

from libc.errno cimport EOVERFLOW, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.lengths cimport length_of, length_of_number
from cython_ext.core.transport cimport FINISHED, WC_STATUS, Delivery
from cython_ext.headers.infiniband_verbs cimport (
    IBV_QPS_ERR,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    IBV_WR_RDMA_READ,
    IBV_WR_SEND,
)
from cython_ext.roce.connection cimport (
    FRAMES,
    SIGNALED,
    Completion,
    CompletionQueue,
    Connection,
    ReceiveRequest,
    SendRequest,
    flush_frames,
    packets_of,
    psn_after,
)
from cython_ext.roce.driving cimport drive, look_at_timers
from cython_ext.roce.requester cimport liken, send_plain_one, send_requests
from cython_ext.roce.responder cimport send_plain_ack, send_responses
from cython_ext.roce.timer cimport UNREAD, next_event

cdef enum:
    POISON = 0xA5           # of a READ's landing buffer, as RcReadTransport has it
    POISONED = 24           # bytes: the header


# --- waiting -------------------------------------------------------------------------------------------------------

cdef int failure(const CompletionQueue *queue) noexcept nogil:
    """WC_STATUS of the completion that tells most: what failed first, before the flush of all that was posted."""
    cdef uint32_t at
    cdef const Completion *entry
    for at in range(queue.tail, queue.head):
        entry = &queue.ring[at & queue.mask]
        if entry.status != IBV_WC_SUCCESS and entry.status != IBV_WC_WR_FLUSH_ERR:
            return WC_STATUS - <int> entry.status
    return 0


cdef int state_error(const RoceState *s) noexcept nogil:
    """0, or why the queue pair takes nothing more."""
    cdef int status
    if s.c.state != IBV_QPS_ERR:
        return 0
    status = failure(&s.c.done)
    if status == 0:
        status = failure(&s.c.received)
    return status if status else WC_STATUS - <int> IBV_WC_WR_FLUSH_ERR


cdef inline int look(RoceState *s) noexcept nogil:
    """Take what has come and send what is to be sent: how many frames came, or an error."""
    # A reading of the clock costs as much as taking a message. It is needed where nothing comes; and now and then,
    # so that a timer expires although something always comes.
    s.looks += 1
    return drive(s.c, UNREAD if s.looks % LOOKS else now(), FRAMES)


cdef int look_again(RoceState *s) noexcept nogil:
    """Nothing came: wait for a frame or a timer, and look, until something comes.

    How many frames came; 0 at `s.deadline`; or an error. A deadline of 0 becomes the patience from now on.
    """
    cdef int status
    cdef int64_t at, until
    while True:
        status = state_error(s)
        if status < 0:
            return status
        at = now()
        status = look_at_timers(s.c, at)
        if status < 0:
            return status
        if s.deadline == 0:
            s.deadline = at + s.patience_ns
        if at >= s.deadline:
            return 0
        until = next_event(s.c)
        if until == 0 or until > s.deadline:
            until = s.deadline
        status = s.link.wait(s.link.me, until)
        if status < 0:
            return status
        status = look(s)
        if status != 0:
            return status


cdef inline int work(RoceState *s) noexcept nogil:
    """Look, and if nothing came, wait and look again until `s.deadline`: see `look_again`."""
    cdef int status = look(s)
    return status if status != 0 else look_again(s)


# --- sending -------------------------------------------------------------------------------------------------------

cdef char *roce_outgoing(void *me, uint32_t k) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef char *at = s.next_out + <size_t> k * s.stride
    return at if at < s.behind_out else at - (s.behind_out - s.out)


cdef inline uint32_t free_buffers(const RoceState *s) noexcept nogil:
    # a buffer is free when the other end has acknowledged its message, whatever the device has done with it
    return s.window - (s.c.posted - s.c.oldest)


cdef int roce_room(void *me) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef int status
    if free_buffers(s):
        status = state_error(s)
        return status if status < 0 else <int> free_buffers(s)
    s.deadline = 0
    while free_buffers(s) == 0:
        status = work(s)
        if status <= 0:
            return status
    return <int> free_buffers(s)


cdef int roce_blind_room(void *me) noexcept nogil:
    """As `room`, but never without a look: completions are the only stamps that a stream of WRITEs gets."""
    cdef RoceState *s = <RoceState *> me
    # timers are looked at where there is no room
    cdef int status = drive(s.c, UNREAD, FRAMES)
    return status if status < 0 else roce_room(me)


cdef void prepare_requests(RoceState *s) noexcept nogil:
    cdef Connection *c = s.c
    cdef SendRequest *request
    cdef uint32_t k
    for k in range(c.send_mask + 1):
        request = &c.sends[k]
        request.verb = s.verb
        # success needs no completion: `oldest` tells how far the other end has acknowledged; a READ's is its delivery
        request.flags = SIGNALED if s.verb == IBV_WR_RDMA_READ else 0
        request.answered = s.verb == IBV_WR_RDMA_READ
        request.lkey = s.out_key
        request.length = s.size
        request.rkey = s.remote_key
        request.packets = packets_of(s.size, c.mtu)
        liken(c, request)
        request.like = c.sends[0].like


cdef void aim(RoceState *s, uint32_t count) noexcept nogil:
    """Where the next requests go to, which all but SEND have to say."""
    cdef SendRequest *request
    cdef uint32_t k
    for k in range(s.c.posted, s.c.posted + count):
        request = &s.c.sends[k & s.c.send_mask]
        request.immediate = k
        request.remote = s.remote + <uint64_t> s.remote_slot * s.remote_stride
        # in turn, as the other end gives its slots back
        s.remote_slot += 1
        if s.remote_slot >= s.remote_slots:
            s.remote_slot = 0


cdef inline void number_requests(RoceState *s, uint32_t count) noexcept nogil:
    """Post so many requests: what all of a path have in common stands there (`prepare_requests`)."""
    cdef Connection *c = s.c
    cdef SendRequest *request = &c.sends[c.posted & c.send_mask]
    cdef const SendRequest *last = &c.sends[c.send_mask]
    cdef uint32_t packets = request.packets, psn = c.new_psn, _
    cdef char *at = s.next_out
    for _ in range(count):
        request.local = <uint64_t> <uintptr_t> at
        request.first = psn
        psn = psn_after(psn, packets)
        at += s.stride
        if at == s.behind_out:
            at = s.out
        request = request + 1 if request != last else c.sends
    c.posted += count
    c.new_psn = psn
    s.next_out = at


cdef uint64_t number_varying(RoceState *s, uint32_t count) noexcept nogil:
    """As `number_requests`, of messages that differ in size: how many bytes they are together.

    Each is as long as what was built for it; a READ's as both ends know of the slot that it asks for.
    """
    cdef Connection *c = s.c
    cdef SendRequest *request
    cdef uint64_t bytes = 0
    cdef uint32_t _
    for _ in range(count):
        request = &c.sends[c.posted & c.send_mask]
        request.local = <uint64_t> <uintptr_t> s.next_out
        request.length = (length_of_number(s.lengths, c.posted) if s.verb == IBV_WR_RDMA_READ
                          else length_of(s.lengths, s.next_out))
        request.packets = packets_of(request.length, c.mtu)
        request.first = c.new_psn
        # of one size again those behind one another share their headers
        liken(c, request)
        bytes += request.length
        c.new_psn = psn_after(c.new_psn, request.packets)
        s.next_out += s.stride
        if s.next_out == s.behind_out:
            s.next_out = s.out
        c.posted += 1
    return bytes


cdef inline int post_as(RoceState *s, uint32_t count, bint vary) noexcept nogil:
    """`vary` is a constant where this is called."""
    cdef Connection *c = s.c
    cdef uint64_t bytes = <uint64_t> count * s.size
    if s.verb != IBV_WR_SEND:
        aim(s, count)
    if vary:
        bytes = number_varying(s, count)
    else:
        number_requests(s, count)
    if c.stamps != NULL:
        c.stamps.sent_bytes += bytes
        c.stamps.summed_bytes += bytes
    # an answer takes the ACK along that has waited for it
    if c.ack_due and not send_plain_ack(c):
        send_responses(c)
    if not send_plain_one(c, UNREAD):
        send_requests(c, UNREAD)
    flush_frames(c)
    return c.link_status if c.link_status < 0 else <int> count


cdef int roce_post(void *me, uint32_t count) noexcept nogil:
    return post_as(<RoceState *> me, count, False)


cdef int roce_post_varying(void *me, uint32_t count) noexcept nogil:
    return post_as(<RoceState *> me, count, True)


cdef int roce_finish(void *me) noexcept nogil:
    """Until the other end has acknowledged all; and if something was lost, a while for what it may ask again."""
    cdef RoceState *s = <RoceState *> me
    cdef int status
    s.deadline = now() + s.limit_ns
    # of the last message: nothing is sent any more that would take it along
    s.c.ack_waits = False
    send_responses(s.c)
    flush_frames(s.c)
    while s.c.oldest != s.c.posted:
        status = work(s)
        if status <= 0:
            return status if status < 0 else -ETIMEDOUT
    return linger(s)


cdef int linger(RoceState *s) noexcept nogil:
    """Answer what is asked again: our last ACK may be lost, and the other end's last message would fail with it."""
    cdef int status = 1
    if s.c.counters.duplicates + s.c.counters.out_of_order + s.c.counters.timeouts + s.c.counters.wrong_icrc == 0:
        return 0
    while status > 0:
        s.deadline = now() + 3 * s.c.timeout_ns
        status = work(s)
    # the other end is right to be gone
    return 0


# --- receiving -----------------------------------------------------------------------------------------------------

cdef void roce_post_receive(RoceState *s) noexcept nogil:
    cdef Connection *c = s.c
    cdef ReceiveRequest *request = &c.receives[c.receive_posted & c.receive_mask]
    request.local = <uint64_t> <uintptr_t> (s.landing + <size_t> s.free_slot * s.landing_stride)
    request.lkey = s.landing_key
    request.length = s.size
    c.receive_posted += 1
    s.free_slot += 1
    if s.free_slot == s.slots:
        s.free_slot = 0


cdef int hand_out(RoceState *s, Delivery *out, uint32_t most) noexcept nogil:
    """Completed receive requests: the messages of SEND and of WRITE with immediate."""
    cdef CompletionQueue *queue = &s.c.received
    cdef const Completion *ring = queue.ring
    cdef const Completion *entry
    cdef uint32_t tail = queue.tail, mask = queue.mask, n = 0, ready = min(most, queue.head - tail)
    while n < ready:
        entry = &ring[(tail + n) & mask]
        if entry.status != IBV_WC_SUCCESS:
            break
        # of a WRITE the request has no part but its turn, which is the slot's
        out[n].data = entry.data
        out[n].size = entry.size
        n += 1
    queue.tail = tail + n
    s.taken += n
    return <int> n


cdef int roce_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef CompletionQueue *queue = &s.c.received
    cdef int status = 1, n
    s.deadline = deadline
    while True:
        # mostly there is nothing before a look, and something after it
        if queue.head != queue.tail:
            n = hand_out(s, out, most)
            if n:
                return n
        if status == 0:
            return 0
        status = work(s)
        if status < 0:
            return status


cdef int roce_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    return roce_receive_until(me, out, most, 0)


cdef int roce_release(void *me, uint32_t count) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef uint32_t _
    if s.c.in_frames:
        # requests that are all the same, and filled: their memory is not used. Frames that were delivered go back to
        # the device in the order in which they came.
        s.c.receive_posted += count
        return s.link.give(s.link.me, count)
    for _ in range(count):
        roce_post_receive(s)
    if s.moves:
        s.c.landing.released += count
    return 0


# --- WRITE ---------------------------------------------------------------------------------------------------------

cdef inline int hand_out_slots(RoceState *s, Delivery *out, uint32_t most) noexcept nogil:
    """Messages that were written whole. The responder has counted them; there is no completion."""
    cdef uint32_t n = 0
    if s.c.messages - s.taken > s.slots:
        return -EOVERFLOW
    while n < most and s.taken != s.c.messages:
        out[n].data = s.landing + <size_t> (s.taken % s.slots) * s.landing_stride
        out[n].size = length_of(s.lengths, out[n].data)
        s.taken += 1
        n += 1
    return <int> n


cdef int roce_write_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef int status, n = hand_out_slots(s, out, most)
    s.deadline = deadline
    while n == 0:
        status = work(s)
        if status < 0:
            return status
        n = hand_out_slots(s, out, most)
        if status == 0:
            break
    return n


cdef int roce_write_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    return roce_write_receive_until(me, out, most, 0)


cdef int roce_blind_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    """Drive the queue pair until the last message stands; then hand out what still does, oldest first."""
    cdef RoceState *s = <RoceState *> me
    cdef int status
    if s.taken == s.total:
        return FINISHED
    s.deadline = 0
    while s.c.messages < s.total:
        status = work(s)
        if status <= 0:
            return status
    if s.total - s.taken > s.slots:
        s.taken = s.total - s.slots
    return hand_out_slots(s, out, most)


cdef int roce_write_release(void *me, uint32_t count) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    if s.moves and s.c.landing.released < s.taken:
        s.c.landing.released = s.taken
    return 0


# --- READ ----------------------------------------------------------------------------------------------------------

cdef int roce_read_room(void *me) noexcept nogil:
    """Landing buffers that are free: only a delivery that is given back makes room."""
    cdef RoceState *s = <RoceState *> me
    return <int> (s.window - (s.c.posted - <uint32_t> s.taken))


cdef inline void poison(char *landing, uint32_t size) noexcept nogil:
    memset(landing, POISON, min(size, <uint32_t> POISONED))
    landing[size - 1] = <char> POISON


cdef int roce_read_post(void *me, uint32_t count) noexcept nogil:
    """Poison header and trailer of each landing buffer, so that what stands there afterwards was read; then ask."""
    cdef RoceState *s = <RoceState *> me
    cdef uint32_t k
    for k in range(count):
        poison(roce_outgoing(me, k), s.size)
    return roce_post(me, count)


cdef int roce_read_post_varying(void *me, uint32_t count) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef uint32_t k
    for k in range(count):
        poison(roce_outgoing(me, k), length_of_number(s.lengths, s.c.posted + k))
    return roce_post_varying(me, count)


cdef inline int hand_out_reads(RoceState *s, Delivery *out, uint32_t most) noexcept nogil:
    cdef CompletionQueue *queue = &s.c.done
    cdef uint32_t n = 0
    while n < most and queue.tail != queue.head and queue.ring[queue.tail & queue.mask].status == IBV_WC_SUCCESS:
        out[n].data = s.out + <size_t> s.free_slot * s.stride
        out[n].size = length_of(s.lengths, out[n].data)
        s.free_slot += 1
        if s.free_slot == s.window:
            s.free_slot = 0
        queue.tail += 1
        n += 1
    return <int> n


cdef int roce_read_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    cdef int status, n = hand_out_reads(s, out, most)
    s.deadline = deadline
    while n == 0:
        status = work(s)
        if status < 0:
            return status
        n = hand_out_reads(s, out, most)
        if status == 0:
            break
    return n


cdef int roce_read_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    return roce_read_receive_until(me, out, most, 0)


cdef int roce_read_release(void *me, uint32_t count) noexcept nogil:
    cdef RoceState *s = <RoceState *> me
    s.taken += count
    if s.moves:
        s.c.landing.released = s.taken
    return 0


cdef int roce_read_finish(void *me) noexcept nogil:
    """The end that is read: answer until all was asked for. A device would do so without us."""
    cdef RoceState *s = <RoceState *> me
    cdef int64_t alive = now()
    cdef int status
    while s.c.reads_answered < s.total or s.c.response_head != s.c.response_tail:
        # no longer than the patience: how many are asked for may become known meanwhile (`end_at`)
        s.deadline = now() + s.patience_ns
        status = work(s)
        if status < 0:
            return status
        if status > 0:
            alive = now()
        elif now() - alive > s.limit_ns:
            return -ETIMEDOUT
    return linger(s)
