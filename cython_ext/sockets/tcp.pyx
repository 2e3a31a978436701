# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TCP: messages of known length in the byte stream, received in place into a ring of whole messages.

One receiving call takes as many bytes as are there and fit, so a stream of small messages costs fewer system calls than
it has messages; a message that came in part goes on where it stopped, without being moved.
"""

import contextlib
import socket

from libc.errno cimport EAGAIN, EBADF, EINTR, ENOBUFS, ETIMEDOUT
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.lengths cimport length_of
from cython_ext.core.transport cimport FINISHED, Delivery
from cython_ext.headers.sys_socket cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_WAITALL,
    SHUT_WR,
    recv,
    send,
    shutdown,
)
from cython_ext.sockets.socket_transport cimport SocketTransport
from cython_ext.sockets.tcp cimport (
    TcpState,
    at_the_end,
    deliver,
    deliver_varying,
    has_message,
    landed,
    make_way,
    space_for,
)
from cython_ext.sockets.waiting cimport BLOCK, SPIN, be_patient, readable_patiently, wait_until

from cython_ext.sockets.socket_transport import batch_in_a_piece, sending_slots
from hwrx.errors import PathError

cdef enum:
    LARGE_READ = 262144  # bytes that one receiving call takes from a stream, where the messages are not larger
    TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline int take(TcpState *s, int flags) noexcept nogil:
    """One receiving call into the ring: 1 when bytes came, 0 at the end of the stream, or -errno."""
    # The kernel copies into the ring itself (tcp_recvmsg_locked) and then opens the window again (tcp_cleanup_rbuf).
    cdef ssize_t got = recv(s.wait.fd, s.rx + s.head, space_for(s), flags)
    if got > 0:
        # The clock right behind the call: a lot that is handed out later came at this moment, too.
        if s.bulk:
            s.brought_at = now()
        landed(s, <size_t> got)
        return 1
    # A FIN (found_fin_ok): the other end has closed in order, and all bytes before it were received.
    if got == 0:
        return 0
    return -c_errno


cdef int take_patiently(TcpState *s) noexcept nogil:
    """Go on with a `take` that a beat has interrupted, until it succeeds or beats of a whole patience have passed."""
    cdef int64_t start = now()
    cdef int status
    while True:
        # An interrupted call that has copied some bytes returns their number, so EINTR means that none are lost.
        status = take(s, s.receive_flags)
        if status != -EINTR:
            return status
        if now() - start >= s.wait.patience_ns * 3 // 4:
            return -EAGAIN


cdef inline int take_waiting(TcpState *s) noexcept nogil:
    """As `take`, waiting in the path's manner; -EAGAIN when patience ended."""
    cdef int status, _
    cdef int64_t start
    if s.wait.manner == BLOCK:
        # The timer interrupts the thread that starts it, and only the loop's thread may block here.
        status = be_patient(&s.wait)
        if status == 0:
            # MSG_WAITALL lets sock_rcvlowat return the whole length, so a message of many segments costs one system
            # call.
            status = take(s, s.receive_flags)
        return status if status != -EINTR else take_patiently(s)
    if s.wait.manner != SPIN:
        status = readable_patiently(&s.wait)
        if status <= 0:
            return status if status < 0 else -EAGAIN
        # The wait is over: what is there is taken, and the call must not wait for the rest of a message.
        return take(s, MSG_DONTWAIT)
    start = 0
    while True:
        # The clock only now and then: a look that finds something ends the wait without it.
        for _ in range(LOOKS):
            status = take(s, MSG_DONTWAIT)
            if status != -EAGAIN:
                return status
        if start == 0:
            start = now()
        elif now() - start > s.wait.patience_ns:
            return -EAGAIN


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef TcpState *s = <TcpState *> me
    cdef int status
    # Whole messages that an earlier call has brought come first, without a system call.
    while s.undelivered < s.size:
        if s.ended:
            return FINISHED
        # Every byte of the ring is the loop's. It releases before it receives again, so this is an error of ours.
        if s.filled == s.ring:
            return -ENOBUFS
        status = take_waiting(s)
        if status == 0:
            return at_the_end(s, out)
        if status < 0:
            return 0 if status == -EAGAIN else status
    return deliver(s, out, most)


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef TcpState *s = <TcpState *> me
    cdef int status
    while s.undelivered < s.size:
        if s.ended:
            return FINISHED
        if s.filled == s.ring:
            return -ENOBUFS
        # A look comes before the clock, so that a deadline that has passed means one look and not none.
        status = take(s, MSG_DONTWAIT)
        if status == 0:
            return at_the_end(s, out)
        if status == -EAGAIN:
            status = wait_until(&s.wait, deadline)
            if status <= 0:
                return status
        elif status < 0:
            return status
    return deliver(s, out, most)


cdef int release(void *me, uint32_t count) noexcept nogil:
    cdef TcpState *s = <TcpState *> me
    cdef size_t length = <size_t> count * s.size
    # Oldest first, as the ring is read: what is released lies behind everything that is still held.
    s.filled = s.filled - length if length < s.filled else 0
    if s.filled == 0:
        s.head = 0  # the next message finds a warm cache
    return 0


cdef int receive_varying_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    """As `receive_until`, of messages that differ in size; a deadline of 0: as `receive`, as long as patience lasts."""
    cdef TcpState *s = <TcpState *> me
    cdef int status
    while not has_message(s):
        if s.ended:
            return FINISHED
        # Before the call, which receives up to the ring's end: a message must be able to end behind its beginning.
        make_way(s)
        # No MSG_WAITALL: how long the message is stands in bytes that have not come. So it may take several calls.
        status = take(s, MSG_DONTWAIT) if deadline else take_waiting(s)
        if status == 0:
            return at_the_end(s, out)
        if status == -EAGAIN:
            # Without a deadline the patience is over: what is left of it is below 0.
            # A part of a message may be here already. The rest makes the socket readable again, and ends this wait.
            status = wait_until(&s.wait, deadline)
            if status <= 0:
                return status
        elif status < 0:
            return status
    # In place, as with one size: nothing that was handed out is moved before it is released.
    return deliver_varying(s, out, most)


cdef int receive_varying(void *me, Delivery *out, uint32_t most) noexcept nogil:
    return receive_varying_until(me, out, most, 0)


cdef int release_varying(void *me, uint32_t count) noexcept nogil:
    """All that was handed out comes back at a time: what is left in the ring is not delivered yet."""
    cdef TcpState *s = <TcpState *> me
    # The loops give back all that one call handed out before they ask again, whatever `count` is.
    s.filled = s.undelivered
    # Most often the ring is empty now, and the next message finds a warm cache, and its whole length.
    if s.filled == 0:
        s.head = 0
    return 0


# --- sending -------------------------------------------------------------------------------------------------------

cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef TcpState *s = <TcpState *> me
    return s.tx + <size_t> k * s.size


cdef int room(void *me) noexcept nogil:
    """The socket's buffer is the window, and `post` waits for it; only an open loop must not send what cannot fit.

    Its both ends would otherwise sit in `send` at the same time, each waiting for the other to receive.
    """
    cdef TcpState *s = <TcpState *> me
    cdef int status
    if s.wait.fd < 0:
        return -EBADF
    # A sending call may sleep for want of buffer (sk_stream_wait_memory): the beat must be there to end that.
    status = be_patient(&s.wait)
    if status < 0:
        return status
    # Counted by answers: what is answered has left the socket's buffer on either side.
    if s.outstanding_limit:
        return 1 if s.posted - s.delivered < s.outstanding_limit else 0
    return <int> s.batch


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef TcpState *s = <TcpState *> me
    cdef int flags = MSG_NOSIGNAL | (MSG_DONTWAIT if s.wait.manner == SPIN else 0)
    cdef size_t done = 0, length = <size_t> count * s.size
    cdef int64_t since = 0
    cdef ssize_t sent
    while done < length:
        # What the call has taken is copied into skbs (tcp_sendmsg_locked), so these bytes of the slot are free again.
        sent = send(s.wait.fd, s.tx + done, length - done, flags)
        if sent > 0:
            # A part of a message may have gone out: the rest must follow before anything else does.
            done += <size_t> sent
            # The other end takes something, however slowly: the limit begins anew.
            since = 0
        elif c_errno in (EAGAIN, EINTR):
            # the socket's buffer is full
            if since == 0:
                since = now()
            elif now() - since > s.limit_ns:
                return -ETIMEDOUT
        else:
            return -c_errno
    # Only whole batches are counted: an error in between ends the connection anyway.
    s.posted += count
    return <int> count


cdef char *outgoing_varying(void *me, uint32_t k) noexcept nogil:
    """Right behind the message before, which has been built: they go out in one piece. The loops ask for 0, 1, …"""
    cdef TcpState *s = <TcpState *> me
    s.built = s.built + length_of(s.lengths, s.built) if k else s.tx
    return s.built


cdef int post_varying(void *me, uint32_t count) noexcept nogil:
    """As `post`: to it they are one message, of all their bytes."""
    cdef TcpState *s = <TcpState *> me
    cdef uint32_t longest = s.size
    cdef int status
    # One call for all of them, as with one size. `built` is the last, and its number says where it ends.
    s.size = <uint32_t> (s.built + length_of(s.lengths, s.built) - s.tx)
    status = post(me, 1)
    s.size = longest
    if status < 0:
        return status
    # `post` has counted one; the others went with it.
    s.posted += count - 1
    return <int> count


cdef int finish(void *me) noexcept nogil:
    """Close our side of the connection in order: the other end sees FINISHED after the last message."""
    cdef TcpState *s = <TcpState *> me
    # tcp_shutdown queues the FIN behind all that was sent (tcp_send_fin): nothing on its way is cut off.
    shutdown(s.wait.fd, SHUT_WR)  # fails only if the connection is gone, which finishes it too
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class TcpTransport(SocketTransport):
    """One end of a TCP path.

    :param sock: a bound, blocking SOCK_STREAM socket with its options set, a listening one if `listens`; it belongs to
        this object from now on
    :param size: bytes of a message
    :param window: of `paced`, messages sent and not answered; other patterns have the socket's buffers for a window
    :param batch: most messages in one sending call
    :param pattern: pingpong, stream or paced
    :param listens: whether this end accepts the connection
    :param zerocopy: send with MSG_ZEROCOPY
    :param manner, patience, limit, huge, notes: SocketTransport's
    :raises ValueError: if size, window or batch is below 1
    """

    def __init__(self, sock, *, uint32_t size, uint32_t window, uint32_t batch, str pattern, bint listens,
                 str manner, double patience, double limit, bint huge=False, bint zerocopy=False, notes=None):
        cdef TcpState *s = &self.state
        if size < 1 or batch < 1 or window < 1:
            raise ValueError("size, window and batch are at least 1")
        if not zerocopy:  # else each goes out for itself
            batch = batch_in_a_piece(batch, size)
        cdef uint32_t built = sending_slots(batch) if zerocopy else batch
        self.size = s.size = size
        s.lengths = &self.lengths
        self.window = window
        self.listens = listens
        self.paced = pattern == "paced"
        self.limit = limit
        s.batch = batch
        # Read no further than the message that is waited for: see `take`.
        s.one = pattern == "pingpong"
        s.receive_flags = MSG_WAITALL if s.one else 0
        # Two messages at least: one is held by the loop while the next comes in behind it.
        s.ring = max(<size_t> LARGE_READ // size, 2) * size
        s.limit_ns = <int64_t> (limit * 1e9)
        self.set_up(&s.wait, sock, manner, patience, notes)
        self.pin(s.ring, <size_t> built * size, huge)
        s.rx = self.received.base
        s.tx = self.built.base
        self.ops.me = s
        self.ops.outgoing = outgoing
        self.ops.room = room
        self.ops.post = post
        self.ops.receive = receive
        self.ops.receive_until = receive_until
        self.ops.release = release
        self.ops.finish = finish
        if pattern == "stream":
            s.bulk = True
            self.ops.brought_at = &s.brought_at
        if zerocopy:
            self.send_zerocopy(size, built, &s.posted, s.limit_ns)

    def vary(self, sizes):
        """As every transport; and receive what is there, as nothing but a message tells how long it is.

        :param sizes: a table of uint32 bytes
        """
        SocketTransport.vary(self, sizes)
        # a call that waited for the longest would wait for more than a message
        self.state.receive_flags = 0
        if self.ops.post == post:
            self.ops.outgoing = outgoing_varying
            self.ops.post = post_varying
        if self.ops.receive == receive:
            self.ops.receive = receive_varying
            self.ops.receive_until = receive_varying_until
        if self.zero != NULL:
            self.zero.path_release = release_varying  # in front of it stands the look at the kernel's notifications
        elif self.ops.release == release:
            self.ops.release = release_varying

    def counts(self):
        """As every socket transport; of messages that differ in size `moved_bytes`, within the receiving ring."""
        moved = {"moved_bytes": self.state.moved_bytes} if self.lengths.mask else {}
        return {**SocketTransport.counts(self), **moved}

    def connect(self, remote):
        """Connect, or accept the one connection that comes from what the other end described.

        :param remote: what `describe` of the other end returned
        :raises PathError: if that takes longer than the limit, or the peer refuses
        """
        if self.listens:
            self.accept(self.resolve(remote))
        else:
            self.sock.settimeout(self.limit)
            self.connect_socket(remote)
            self.sock.setblocking(True)
        if self.paced and not self.listens:
            # all that is not answered must fit into our own socket's buffer; the kernel counts about twice the bytes
            buffer = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            self.window = min(self.window, max(1, buffer // 2 // self.size))
            self.state.outstanding_limit = self.window
            self.notes["window"] = self.window
        with contextlib.suppress(OSError):  # of Multipath TCP each subflow has its own
            self.notes["segment"] = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    def resent(self) -> int:
        """tcpi_total_retrans of TCP_INFO (include/uapi/linux/tcp.h).

        :return: segments that this end sent again since the connection was made; 0 before that
        """
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TOTAL_RETRANS + 4)
        return int.from_bytes(info[TOTAL_RETRANS:], "little")

    def accept(self, expected):
        """Take the connection that comes from `expected`; others are closed. The listening socket is closed as well.

        :param expected: a socket address; address and port are compared
        :raises PathError: if it does not come within the limit
        """
        deadline = now() + <int64_t> (self.limit * 1e9)
        listener = self.sock
        while True:
            listener.settimeout(max((deadline - now()) / 1e9, 0.001))
            try:
                sock, address = listener.accept()
            except TimeoutError as error:
                raise PathError(
                    f"{self.peer} did not connect within {self.limit:g} s",
                    remedy="see whether the other end runs, and a route leads here over the device of this socket",
                ) from error
            if address[:2] == expected[:2]:
                break
            sock.close()
        self.sock = sock
        listener.close()
        self.wait_on(sock)
