# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TCP over io_uring: the stream of tcp.pyx, received into the same ring of whole messages.

One request to receive and one to send are under way at most: the stream's order is theirs. Multishot receive is not for
this path. It would fill provided buffers with whatever bytes are there, and a message that lies in two of them would
have to be copied to be seen in one piece.

A ping-pong and an open loop write the request to send, and the next wait hands it over: one system call sends, and
sleeps for the answer. A stream hands each batch over at once.
"""

from libc.errno cimport EAGAIN, EBADF, ENOBUFS, EPIPE
from libc.stdint cimport int64_t, uint32_t

from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of
from cython_ext.core.transport cimport Delivery
from cython_ext.headers.linux_io_uring cimport IORING_OP_RECV, io_uring_cqe, io_uring_sqe
from cython_ext.headers.sys_socket cimport SHUT_WR, shutdown
from cython_ext.sockets.tcp cimport (
    TcpState,
    TcpTransport,
    at_the_end,
    deliver,
    deliver_varying,
    has_message,
    landed,
    make_way,
    space_for,
)
from cython_ext.sockets.uring cimport (
    RECEIVE,
    close_ring,
    completion,
    free_slots,
    look_at_ring,
    looked_at,
    next_request,
    open_ring,
    piece_of,
    request_send,
    send_without_copying,
    sent,
    sent_counts,
    wait_ring,
)
from cython_ext.sockets.waiting cimport SPIN, be_patient

from cython_ext.sockets.socket_transport import batch_in_a_piece, sending_slots


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline bint is_ready(UringTcpState *u) noexcept nogil:
    """Whether a whole message waits to be handed out."""
    return has_message(u.tcp) if u.sends.varies else u.tcp.undelivered >= u.tcp.size


cdef inline void arm(UringTcpState *u) noexcept nogil:
    """Have a request to receive under way, or pending, for what is missing of a message, or all that has room."""
    cdef TcpState *s = u.tcp
    cdef io_uring_sqe *request
    if u.armed or s.ended or is_ready(u) or s.filled == s.ring:
        return
    if u.sends.varies:
        # A server that waits for room to answer still has the message in its hands, so that nothing can be moved. What
        # came now could straddle the ring's end: it waits in the socket, and is asked for behind the release.
        if s.filled != s.undelivered:
            return
        make_way(s)
    request = next_request(&u.ring)
    request.opcode = IORING_OP_RECV
    request.user_data = RECEIVE
    request.addr = <size_t> (s.rx + s.head)
    request.len = <uint32_t> space_for(s)
    # The kernel goes on until the message is whole, as it does for a receiving call (io_recv).
    # Of messages that differ nothing but what has come tells how long one is, so what is there is taken.
    request.msg_flags = s.receive_flags
    u.armed = True


cdef int went(UringTcpState *u, const io_uring_cqe *done) noexcept nogil:
    """A completion of the request to send: 0 or -errno. What it left over is asked for again, at once."""
    cdef uint32_t first, count
    cdef uint32_t before = u.sends.open
    cdef int status = sent(&u.sends, done, &first, &count)
    # a notification is no result
    if status < 0 or u.sends.open == before:
        return status
    u.gone += <uint32_t> status
    if u.gone < piece_of(&u.sends, first, count):
        if status == 0:
            return -EPIPE
        request_send(&u.ring, &u.sends, first, count, u.gone)
    else:
        u.gone = 0
    return 0


cdef int reap(UringTcpState *u) noexcept nogil:
    """Look at all completions: 0, or the error that one of them brought."""
    cdef TcpState *s = u.tcp
    cdef io_uring_cqe *done = completion(&u.ring)
    cdef int status
    while done != NULL:
        if done.user_data != RECEIVE:
            status = went(u, done)
            if status < 0:
                u.error = status
        else:
            u.armed = False
            if done.res > 0:
                # The clock before the book-keeping: a lot that is handed out later came at this moment, too.
                if s.bulk:
                    s.brought_at = now()
                landed(s, <size_t> done.res)
            elif done.res == 0:
                s.ended = True
            elif done.res != -EAGAIN:
                u.error = done.res
        looked_at(&u.ring)
        done = completion(&u.ring)
    status = u.error
    u.error = 0
    return status


cdef int wait(UringTcpState *u, int64_t timeout_ns) noexcept nogil:
    """Have a receive under way, hand over what is pending, and wait for something to complete: 0 or -errno.

    A send that goes out with this call completes within it, as a rule, and must not end the wait for an answer.
    """
    cdef uint32_t least
    cdef int status
    arm(u)
    least = u.armed + u.sends.unsent
    u.sends.unsent = 0
    status = wait_ring(&u.ring, max(least, 1), timeout_ns)
    return status if status < 0 else reap(u)


cdef int wait_patiently(UringTcpState *u) noexcept nogil:
    """As `wait`, until a beat comes: twice in a patience. A ring that spins looks at the clock instead."""
    cdef int status = be_patient(&u.tcp.wait)
    if status < 0:
        return status
    return wait(u, u.tcp.wait.patience_ns // 2 if u.ring.spins else -1)


cdef int look(UringTcpState *u) noexcept nogil:
    """As `wait`, without waiting."""
    cdef int status
    arm(u)
    u.sends.unsent = 0
    status = look_at_ring(&u.ring)
    return status if status < 0 else reap(u)


cdef int hand_out(UringTcpState *u, Delivery *out, uint32_t most) noexcept nogil:
    # Nothing that was posted stays behind what came meanwhile.
    cdef int status
    if u.ring.pending:
        u.sends.unsent = 0
        status = look_at_ring(&u.ring)
        if status < 0:
            return status
    return deliver_varying(u.tcp, out, most) if u.sends.varies else deliver(u.tcp, out, most)


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    cdef int64_t deadline = 0
    cdef int status
    while not is_ready(u):
        if s.ended:
            return at_the_end(s, out)
        if s.filled == s.ring:
            return -ENOBUFS
        status = wait_patiently(u)
        if status < 0:
            return status
        if not is_ready(u):
            # A beat, a signal or a part of a message came: only time ends the wait.
            if deadline == 0:
                deadline = now() + s.wait.patience_ns * 3 // 4
            elif now() >= deadline:
                return 0
    return hand_out(u, out, most)


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    cdef bint waited = False
    cdef int64_t left
    cdef int status
    while not is_ready(u):
        if s.ended:
            return at_the_end(s, out)
        if s.filled == s.ring:
            return -ENOBUFS
        left = deadline - now()
        # A deadline that has passed means one look and not none.
        if left <= 0 and waited:
            return 0
        status = look(u) if left <= 0 or u.ring.spins else wait(u, left)
        if status < 0:
            return status
        waited = True
    return hand_out(u, out, most)


cdef int release(void *me, uint32_t count) noexcept nogil:
    """As TCP's; but the next message's place may be the kernel's already, and then it stays where it is."""
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    cdef size_t length = <size_t> count * s.size
    if u.sends.varies:
        s.filled = s.undelivered
    else:
        s.filled = s.filled - length if length < s.filled else 0
    if s.filled == 0 and not u.armed:
        s.head = 0  # the next message finds a warm cache
    return 0


# --- sending -------------------------------------------------------------------------------------------------------

cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef UringTcpState *u = <UringTcpState *> me
    return u.sends.base + (u.sends.next + k) * u.sends.stride


cdef char *outgoing_varying(void *me, uint32_t k) noexcept nogil:
    """Right behind the message before, which has been built, as TCP has it: a request is of one piece."""
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    s.built = s.built + length_of(s.lengths, s.built) if k else outgoing(me, 0)
    return s.built


cdef int room(void *me) noexcept nogil:
    """Free slots, once the request before has gone out whole; an open loop must not send what cannot fit."""
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    cdef uint32_t free
    cdef int64_t since = 0
    cdef int status
    if s.wait.fd < 0:
        return -EBADF
    # Counted by answers: what is answered has left the socket's buffer on either side.
    if s.outstanding_limit and s.posted - s.delivered >= s.outstanding_limit:
        return 0
    while True:
        free = free_slots(&u.sends, s.batch) if u.sends.open == 0 else 0
        if free:
            return <int> free
        if since == 0:
            status = look(u)
            since = now()
        elif now() - since >= s.wait.patience_ns:
            return 0
        else:
            status = wait_patiently(u)
        if status < 0:
            return status


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef UringTcpState *u = <UringTcpState *> me
    cdef int status
    request_send(&u.ring, &u.sends, u.sends.next, count, 0)
    u.sends.next += count
    u.tcp.posted += count
    if not u.defers:
        u.sends.unsent = 0
        status = look_at_ring(&u.ring)
        if status < 0:
            return status
    return <int> count


cdef int finish(void *me) noexcept nogil:
    """Until all has gone out and the kernel reads none of it any more; then our side is closed in order."""
    cdef UringTcpState *u = <UringTcpState *> me
    cdef TcpState *s = u.tcp
    cdef int64_t since = now()
    cdef uint32_t before
    cdef bint shut = False
    look(u)
    while now() - since < s.wait.patience_ns:
        if u.sends.open == 0 and not shut:
            # tcp_shutdown queues the FIN behind all that was sent: nothing on its way is cut off.
            shutdown(s.wait.fd, SHUT_WR)
            shut = True
        before = u.sends.open + u.sends.held
        if before == 0:
            break
        if wait(u, s.wait.patience_ns) < 0:
            break  # it is the connection's end, and no longer the trial's
        if u.sends.open + u.sends.held != before:
            since = now()
    if not shut:
        shutdown(s.wait.fd, SHUT_WR)
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class UringTcpTransport(TcpTransport):
    """One end of a TCP path whose bytes go through an io_uring.

    :param zerocopy: send with IORING_OP_SEND_ZC from registered memory
    :param rest: TcpTransport's; `manner` is block or spin
    :raises MachineError: if this kernel has no io_uring, not this much of it, or does not let this process use it
    """

    def __cinit__(self):
        self.uring.ring.fd = -1

    def __init__(self, sock, *, uint32_t batch, uint32_t size, bint zerocopy=False, **rest):
        cdef UringTcpState *u = &self.uring
        cdef TcpState *s = &self.state
        batch = batch_in_a_piece(batch, size)
        cdef uint32_t slots = sending_slots(batch) if zerocopy else batch
        TcpTransport.__init__(self, sock, batch=slots, size=size, **rest)
        slots = s.batch  # as many as its memory has
        s.batch = min(batch, slots)
        u.tcp = s
        u.defers = not s.bulk
        u.sends.base = s.tx
        u.sends.stride = u.sends.size = s.size
        u.sends.slots = slots
        u.sends.lengths = s.lengths
        if zerocopy:
            self.notes["zerocopy_send"] = ""  # the connection's ring says more
            u.sends.zerocopy = True
        self.ops.me = u
        self.ops.outgoing = outgoing
        self.ops.room = room
        self.ops.post = post
        self.ops.receive = receive
        self.ops.receive_until = receive_until
        self.ops.release = release
        self.ops.finish = finish
        # here and not with the connection, so that what the kernel refuses is told before anybody connects
        self.open_for(sock)

    cdef int open_for(self, object sock) except -1:
        """A ring with this socket as its file; instead of the one that there was."""
        cdef UringTcpState *u = &self.uring
        close_ring(&u.ring)
        open_ring(&u.ring, 4, 4 * u.sends.slots + 4, sock.fileno(), self.state.wait.manner == SPIN)
        self.notes["io_uring"] = "deferred task work, registered file"
        if u.sends.zerocopy:
            self.notes["zerocopy_send"] = send_without_copying(
                &u.sends, &u.ring, self.state.tx, u.sends.slots * u.sends.stride
            )
        return 0

    def accept(self, expected):
        """As TcpTransport; the ring is made anew for the connection.

        :param expected: a socket address; address and port are compared
        :raises PathError: if it does not come within the limit
        """
        TcpTransport.accept(self, expected)
        self.open_for(self.sock)

    def vary(self, sizes):
        """As TcpTransport; each request is as long as its messages.

        :param sizes: a table of uint32 bytes
        """
        TcpTransport.vary(self, sizes)
        self.uring.sends.varies = True
        self.ops.outgoing = outgoing_varying

    def counts(self):
        """As TcpTransport; of a sender without copies what the notifications said."""
        return {**TcpTransport.counts(self), **sent_counts(&self.uring.sends)}

    def close(self):
        """As SocketTransport; what is still asked for is taken back first."""
        close_ring(&self.uring.ring)
        TcpTransport.close(self)

    def __dealloc__(self):
        close_ring(&self.uring.ring)
