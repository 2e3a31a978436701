# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""UDP over io_uring: the datagrams, credits and controls of udp.pyx, asked for and completed through two rings.

A receiver has one request under way: one that takes one datagram into the next slot, or, if it is a multishot one, each
that comes into a buffer of a provided ring, until it is told to stop or the buffers are out. A second plain request
beside the first could be completed before it, and messages would change places.

A ping-pong and an open loop write the request to send, and the next wait hands it over: one system call sends, and
sleeps for the answer. A stream hands each batch over at once. What is said aside (credits, the end) goes by send(2).
"""

import socket

from libc.errno cimport EAGAIN, EBADF, ECONNREFUSED, ENOBUFS, ETIMEDOUT
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from cython_ext.core.clock cimport now
from cython_ext.core.credit cimport FINISH_TRIES, FINISHES, allowed, due, heed, is_whole, notice, slide
from cython_ext.core.payload cimport MAGIC_CREDIT, MAGIC_FINISH
from cython_ext.core.transport cimport FINISHED, Delivery
from cython_ext.headers.linux_io_uring cimport (
    IORING_CQE_BUFFER_SHIFT,
    IORING_CQE_F_BUFFER,
    IORING_CQE_F_MORE,
    IORING_OP_RECV,
    IORING_RECV_MULTISHOT,
    IOSQE_BUFFER_SELECT,
    io_uring_cqe,
    io_uring_sqe,
)
from cython_ext.headers.sys_socket cimport MSG_TRUNC
from cython_ext.sockets.udp cimport UdpState, UdpTransport, say
from cython_ext.sockets.uring cimport (
    RECEIVE,
    close_ring,
    completion,
    free_slots,
    lend,
    lend_buffers,
    look_at_ring,
    looked_at,
    next_request,
    open_ring,
    request_send,
    send_without_copying,
    sent,
    sent_counts,
    wait_ring,
)
from cython_ext.sockets.waiting cimport SPIN, be_patient

from cython_ext.sockets.socket_transport import sending_slots

cdef enum:
    GROUP = 1         # of provided buffers
    NO_SLOT = 0xffff  # an empty datagram took no buffer


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline void arm(UringUdpState *u) noexcept nogil:
    """Have a request to receive under way, or pending, if there is a slot for what it brings."""
    cdef UdpState *s = u.udp
    cdef io_uring_sqe *request
    if u.armed or u.came - u.released >= s.slots:
        return
    request = next_request(&u.ring)
    request.opcode = IORING_OP_RECV
    request.user_data = RECEIVE
    request.msg_flags = MSG_TRUNC  # the length that the datagram had, also if it was cut
    if u.multishot:
        request.flags |= IOSQE_BUFFER_SELECT
        request.ioprio = IORING_RECV_MULTISHOT
        request.buf_group = GROUP
    else:
        request.addr = <uint64_t> (s.rx + <size_t> (u.came % s.slots) * s.stride)
        request.len = s.stride
    u.armed = True


cdef void arrived(UringUdpState *u, const io_uring_cqe *done) noexcept nogil:
    """One datagram, or the end of the request that waited for them."""
    cdef UdpState *s = u.udp
    cdef uint32_t place = u.came % s.slots
    cdef uint16_t slot = <uint16_t> place
    cdef char *data
    if not done.flags & IORING_CQE_F_MORE:
        u.armed = False
    if done.res < 0:
        # ENOBUFS: a multishot one had no buffer left. It is armed again when some have come back.
        if done.res not in (-ENOBUFS, -EAGAIN):
            u.error = done.res
        return
    if u.multishot:
        slot = <uint16_t> (done.flags >> IORING_CQE_BUFFER_SHIFT) if done.flags & IORING_CQE_F_BUFFER else NO_SLOT
    data = s.rx + <size_t> slot * s.stride if slot != NO_SLOT else s.rx
    # Before anything is handed out: what one end says aside must never be taken for a message.
    if slot != NO_SLOT and heed(&s.credit, data, <uint32_t> done.res):
        if u.multishot:
            lend(&u.ring, data, s.stride, slot)
        return
    if s.credit.granted and is_whole(&s.credit, data, <uint32_t> done.res):
        notice(&s.credit, data, <uint32_t> done.res)
    u.slot[place] = slot
    u.length[place] = <uint32_t> done.res
    u.came += 1


cdef int reap(UringUdpState *u) noexcept nogil:
    """Look at all completions: 0, or the error that one of them brought."""
    cdef io_uring_cqe *done = completion(&u.ring)
    cdef uint32_t first, count
    cdef int status
    while done != NULL:
        if done.user_data == RECEIVE:
            # the clock before the book-keeping, as of TCP through io_uring
            if u.in_lots:
                u.brought_at = now()
            arrived(u, done)
        else:
            status = sent(&u.sends, done, &first, &count)
            # Want of memory drops a datagram on this machine, which is a loss like others.
            if status < 0 and status != -ENOBUFS:
                u.error = status
        looked_at(&u.ring)
        done = completion(&u.ring)
    status = u.error
    u.error = 0
    return status


cdef int wait(UringUdpState *u, int64_t timeout_ns) noexcept nogil:
    """Have a receive under way, hand over what is pending, and wait for something to complete: 0 or -errno.

    Sends that go out with this call complete within it, as a rule, and must not end the wait for an answer.
    """
    cdef uint32_t least = 1 + u.sends.unsent
    cdef int status
    arm(u)
    u.sends.unsent = 0
    status = wait_ring(&u.ring, least, timeout_ns)
    return status if status < 0 else reap(u)


cdef int wait_patiently(UringUdpState *u) noexcept nogil:
    """As `wait`, until a beat comes: twice in a patience. A ring that spins looks at the clock instead."""
    cdef int status = be_patient(&u.udp.wait)
    if status < 0:
        return status
    return wait(u, u.udp.wait.patience_ns // 2 if u.ring.spins else -1)


cdef int look(UringUdpState *u) noexcept nogil:
    """As `wait`, without waiting."""
    cdef int status
    arm(u)
    u.sends.unsent = 0
    status = look_at_ring(&u.ring)
    return status if status < 0 else reap(u)


cdef inline int hand_out(UringUdpState *u, Delivery *out, uint32_t most) noexcept nogil:
    cdef UdpState *s = u.udp
    cdef uint32_t place
    cdef int count = 0
    while u.handed != u.came and count < <int> most:
        place = u.handed % s.slots
        out[count].data = s.rx + <size_t> u.slot[place] * s.stride if u.slot[place] != NO_SLOT else s.rx
        out[count].size = u.length[place]
        u.handed += 1
        count += 1
    return count


cdef int last_ones(UringUdpState *u, Delivery *out, uint32_t most) noexcept nogil:
    """The other end has finished: what is still on its way in a stream, then FINISHED, which is answered."""
    cdef UdpState *s = u.udp
    cdef int status, _
    if s.credit.granted:
        status = receive_until(u, out, most, s.credit.finish_by)
        if status != 0:
            return status
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken)
    return FINISHED


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    cdef UdpState *s = u.udp
    cdef int64_t deadline = 0
    cdef int status
    # An earlier look has brought more than was asked for: an answer that is pending does not wait for all of them.
    if u.handed != u.came:
        status = look(u) if u.ring.pending and not u.in_lots else 0
        return status if status < 0 else hand_out(u, out, most)
    while True:
        if s.credit.finishing:
            return last_ones(u, out, most)
        status = wait_patiently(u)
        if status < 0:
            return status
        if u.handed != u.came:
            return hand_out(u, out, most)
        # A beat, a signal or a Control came: only time ends the wait.
        if deadline == 0:
            deadline = now() + s.wait.patience_ns * 3 // 4
        elif now() >= deadline:
            return 0


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    cdef UdpState *s = u.udp
    cdef bint waited = False
    cdef int64_t left
    cdef int status
    while u.handed == u.came:
        # A receiver of a stream goes on until its deadline: stragglers may still be on their way.
        if waited and s.credit.finishing and (s.credit.posted or not s.credit.granted):
            return FINISHED
        left = deadline - now()
        # A deadline that has passed means one look and not none.
        if left <= 0 and waited:
            return 0
        status = look(u) if left <= 0 or u.ring.spins else wait(u, left)
        if status < 0:
            return status
        waited = True
    # Nothing that was posted stays behind what came meanwhile.
    status = look(u) if u.ring.pending and not u.in_lots else 0
    return status if status < 0 else hand_out(u, out, most)


cdef int release(void *me, uint32_t count) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    cdef UdpState *s = u.udp
    cdef uint32_t _, slot
    for _ in range(count):
        slot = u.slot[u.released % s.slots]
        if u.multishot and slot != NO_SLOT:
            lend(&u.ring, s.rx + <size_t> slot * s.stride, s.stride, <uint16_t> slot)
        u.released += 1
    return say(s, MAGIC_CREDIT, s.credit.taken) if due(&s.credit) else 0


# --- sending -------------------------------------------------------------------------------------------------------

cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    return u.sends.base + (u.sends.next + k) * u.sends.stride


cdef int wait_slot(UringUdpState *u, uint32_t most) noexcept nogil:
    """Until a slot to build in is free, and its neighbours: how many of `most`; 0 when patience ended; or -errno."""
    cdef uint32_t free = free_slots(&u.sends, most)
    cdef int64_t since = 0
    cdef int status
    while free == 0:
        if since == 0:
            status = look(u)
            since = now()
        elif now() - since >= u.udp.wait.patience_ns:
            return 0
        else:
            status = wait_patiently(u)
        if status < 0:
            return status
        free = free_slots(&u.sends, most)
    return <int> free


cdef int wait_credit(UringUdpState *u) noexcept nogil:
    """Until a credit comes, or it must be taken for lost: 1; 0 when patience ended; or -errno."""
    cdef UdpState *s = u.udp
    cdef int64_t since = now()
    cdef int status
    if s.credit.heard == 0:
        s.credit.heard = since
    while allowed(&s.credit) == 0:
        if s.credit.finishing:
            return FINISHED
        status = wait_patiently(u)
        if status < 0:
            return status
        # the receiver of a stream sends nothing but controls; anything else is dropped
        if u.handed != u.came:
            u.handed = u.came
            release(u, u.came - u.released)
        if allowed(&s.credit):
            break
        if now() - s.credit.heard > s.credit.limit_ns:
            return -ETIMEDOUT
        if now() - since >= s.wait.patience_ns:
            # Credit or messages were lost. To go on risks a full receiver; to stop would be for ever.
            slide(&s.credit)
    return 1


cdef int room(void *me) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    cdef UdpState *s = u.udp
    cdef int status
    if s.wait.fd < 0:
        return -EBADF
    if not s.credit.granted:
        return wait_slot(u, s.batch)
    if allowed(&s.credit) == 0:
        status = wait_credit(u)
        if status <= 0:
            return status
    return wait_slot(u, <uint32_t> min(allowed(&s.credit), <uint64_t> s.batch))


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef UringUdpState *u = <UringUdpState *> me
    cdef uint32_t k
    cdef int status
    for k in range(count):
        request_send(&u.ring, &u.sends, u.sends.next + k, 1, 0)
    u.sends.next += count
    u.udp.credit.posted += count
    if not u.defers:
        u.sends.unsent = 0
        status = look_at_ring(&u.ring)
        if status < 0:
            return status
    return <int> count


cdef int finish(void *me) noexcept nogil:
    """As UDP's; and then until the kernel has done with every buffer, or nothing completed for a while."""
    cdef UringUdpState *u = <UringUdpState *> me
    cdef UdpState *s = u.udp
    cdef Delivery stray
    cdef int64_t deadline, since
    cdef uint32_t before
    cdef int _, status
    status = look(u)
    if not s.credit.granted or s.credit.posted == 0:
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken if s.credit.granted else s.credit.posted)
    else:
        for _ in range(FINISH_TRIES):
            if s.credit.finishing or say(s, MAGIC_FINISH, s.credit.posted) == -ECONNREFUSED:
                break
            deadline = now() + s.wait.patience_ns
            while not s.credit.finishing:
                status = receive_until(u, &stray, 1, deadline)
                # Late answers and credits land in slots that nobody reads any more.
                u.handed = u.came
                release(u, u.came - u.released)
                if status <= 0:
                    break
            if status == -ECONNREFUSED:
                break
    since = now()
    while u.sends.open + u.sends.held and now() - since < s.wait.patience_ns:
        before = u.sends.open + u.sends.held
        # whatever completes with an error now is the connection's end, and no longer the trial's
        wait(u, s.wait.patience_ns)
        if u.sends.open + u.sends.held != before:
            since = now()
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class UringUdpTransport(UdpTransport):
    """One end of a UDP path whose data go through an io_uring.

    :param pattern: pingpong, stream or paced
    :param multishot: receive with one request for all datagrams, into a ring of provided buffers
    :param zerocopy: send with IORING_OP_SEND_ZC from registered memory
    :param rest: UdpTransport's; `manner` is block or spin
    :raises MachineError: if this kernel has no io_uring, not this much of it, or does not let this process use it
    """

    def __cinit__(self):
        self.uring.ring.fd = -1

    def __init__(self, sock, *, uint32_t batch, str pattern, bint multishot=False, bint zerocopy=False, **rest):
        cdef UringUdpState *u = &self.uring
        cdef UdpState *s = &self.state
        cdef uint32_t slots = sending_slots(batch) if zerocopy else batch
        # the buffer to build in has as many slots as a batch
        UdpTransport.__init__(self, sock, batch=slots, stream=pattern == "stream", **rest)
        s.batch = min(batch, slots)
        if zerocopy:
            self.whole_pages = True
            self.narrow(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        u.udp = s
        u.multishot = multishot
        u.defers = pattern != "stream"
        u.sends.base = s.tx
        u.sends.stride = s.stride
        u.sends.size = s.credit.size
        u.sends.lengths = &self.lengths
        u.sends.slots = slots
        # as many as can be asked for between two entering calls: a batch to send, and one to receive
        open_ring(&u.ring, slots + 2, s.slots + 2 * slots + 2, sock.fileno(), s.wait.manner == SPIN)
        self.notes["io_uring"] = "deferred task work, registered file"
        if multishot:
            u.in_lots = pattern == "stream"
            lend_buffers(&u.ring, s.rx, s.stride, s.slots)
            self.notes["multishot"] = f"{s.slots} provided buffers"
        if zerocopy:
            self.notes["zerocopy_send"] = send_without_copying(&u.sends, &u.ring, s.tx, slots * s.stride)
        self.ops.me = u
        self.ops.outgoing = outgoing
        self.ops.room = room
        self.ops.post = post
        self.ops.receive = receive
        self.ops.receive_until = receive_until
        self.ops.release = release
        self.ops.finish = finish
        if u.in_lots:
            self.ops.brought_at = &u.brought_at

    def vary(self, sizes):
        """As UdpTransport; each request is as long as its message.

        :param sizes: a table of uint32 bytes
        """
        UdpTransport.vary(self, sizes)
        self.uring.sends.varies = True

    def counts(self):
        """As UdpTransport; of a sender without copies what the notifications said."""
        return {**UdpTransport.counts(self), **sent_counts(&self.uring.sends)}

    def close(self):
        """As SocketTransport; what is still asked for is taken back first."""
        close_ring(&self.uring.ring)
        UdpTransport.close(self)

    def __dealloc__(self):
        close_ring(&self.uring.ring)
