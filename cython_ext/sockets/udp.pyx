# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""UDP: connected sockets, one datagram a message, received in place into a pinned buffer.

Ping-pong and paced need nothing but the datagrams. A stream would overrun the receiver's socket buffer, so its receiver
grants credits: every half window it says how far it has come, and a sender with a whole window outstanding waits for
that. What it says is the highest sequence number, not a count, so that a lost message does not narrow the window for
good. A lost credit is replaced by the next one; a sender that hears nothing goes on after a while (`slides`).
"""

import socket

from libc.errno cimport EAGAIN, EBADF, ECONNREFUSED, EINTR, ENOBUFS, ETIMEDOUT
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.credit cimport (
    FINISH_TRIES,
    FINISHES,
    Control,
    a_control,
    allowed,
    due,
    heed,
    is_whole,
    notice,
    slide,
)
from cython_ext.core.lengths cimport length_of
from cython_ext.core.payload cimport MAGIC_CREDIT, MAGIC_FINISH
from cython_ext.core.transport cimport FINISHED, Delivery
from cython_ext.headers.sys_socket cimport (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    MSG_WAITFORONE,
    iovec,
    mmsghdr,
    recv,
    recvmmsg,
    send,
    sendmmsg,
)
from cython_ext.sockets.socket_transport cimport SocketTransport
from cython_ext.sockets.waiting cimport BLOCK, SPIN, be_patient, readable_patiently, wait_until

from cython_ext.sockets.receive_room import datagrams_held
from cython_ext.sockets.socket_transport import sending_slots

SO_MEMINFO = 55        # asm-generic/socket.h; nine 32-bit numbers, of which the last is SK_MEMINFO_DROPS
DROPS = slice(32, 36)

cdef enum:
    LINE = 64                     # bytes of a cache line


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline int take(UdpState *s, uint32_t most, int flags) noexcept nogil:
    """One receiving call into the free slots: how many datagrams, or -errno. Real lengths are left in `incoming`.

    MSG_TRUNC makes the kernel tell the length that a datagram had, also if the slot was too small for it.
    """
    cdef ssize_t length
    # For one message recv(2): recvmmsg(2) would copy a mmsghdr in and out of the kernel for each (net/socket.c).
    if most == 1:
        # The kernel copies into the slot itself (udp_recvmsg): a message is read where it was delivered.
        length = recv(s.wait.fd, s.rx + <size_t> s.end * s.stride, s.stride, flags | MSG_TRUNC)
        if length >= 0:
            s.incoming[s.end].msg_len = <unsigned int> length
            return 1
    else:
        # MSG_WAITFORONE: do_recvmmsg sets MSG_DONTWAIT behind the first datagram, so it takes what is there and no
        # more.
        length = recvmmsg(s.wait.fd, s.incoming + s.end, most, flags | MSG_TRUNC | MSG_WAITFORONE, NULL)
        if length >= 0:
            return <int> length
    return -c_errno


cdef int take_patiently(UdpState *s, uint32_t most) noexcept nogil:
    """Go on with a `take` that a beat has interrupted, until it succeeds or beats of a whole patience have passed."""
    cdef int64_t start = now()
    cdef int status
    while True:
        # A call that was interrupted has taken nothing: __skb_wait_for_more_packets leaves before a datagram is
        # dequeued.
        status = take(s, most, 0)
        if status != -EINTR:
            return status
        if now() - start >= s.wait.patience_ns * 3 // 4:
            return -EAGAIN


cdef inline int take_waiting(UdpState *s, uint32_t most) noexcept nogil:
    """As `take`, waiting in the path's manner; -EAGAIN when patience ended."""
    cdef int status, _
    cdef int64_t start
    if s.wait.manner == BLOCK:
        # Here and not at set-up: the timer interrupts the thread that starts it, and only the loop's thread may block.
        status = be_patient(&s.wait)
        if status == 0:
            status = take(s, most, 0)
        return status if status != -EINTR else take_patiently(s, most)
    if s.wait.manner != SPIN:
        status = readable_patiently(&s.wait)
        if status <= 0:
            return status if status < 0 else -EAGAIN
        # The wait is over, and this call must not wait again. poll also returns for an error, which the call then
        # tells.
        return take(s, most, MSG_DONTWAIT)
    start = 0
    while True:
        # The clock only now and then: between two readings lie looks, and one look that finds something ends it.
        for _ in range(LOOKS):
            status = take(s, most, MSG_DONTWAIT)
            if status != -EAGAIN:
                return status
        if start == 0:
            start = now()
        elif now() - start > s.wait.patience_ns:
            return -EAGAIN


cdef inline int sort_out(UdpState *s, int count, Delivery *out) noexcept nogil:
    """Of `count` datagrams in the free slots, keep the messages and heed the controls: how many messages."""
    cdef int k, messages = 0
    cdef uint32_t length
    cdef char *data
    for k in range(count):
        # The real length (MSG_TRUNC): udp_recvmsg returns `ulen`, not what it copied, so a cut message shows.
        length = s.incoming[s.end + k].msg_len
        data = s.rx + <size_t> (s.end + k) * s.stride
        # Before anything is handed out: what one end says aside must never be taken for a message.
        if heed(&s.credit, data, length):
            continue
        # Of a stream only: how far it has come is what the next credit will say.
        if s.credit.granted and is_whole(&s.credit, data, length):
            notice(&s.credit, data, length)
        # Handed out in place: the slot is the loop's until `release`, and no call receives into it before.
        out[messages].data = data
        out[messages].size = length
        messages += 1
    s.held += messages
    # slots come free together: the cheapest book-keeping, and the next message finds a warm cache
    s.end = s.end + count if s.held else 0
    return messages


cdef int say(UdpState *s, uint32_t magic, uint64_t count) noexcept nogil:
    """Send a Control: 0 or -errno."""
    cdef Control control = a_control(&s.credit, magic, count)
    # Never waits: a Control that is lost is replaced by the next, and waiting here would stop the loop.
    if send(s.wait.fd, &control, sizeof(Control), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0:
        return 0
    return -c_errno


cdef int last_ones(UdpState *s, Delivery *out, uint32_t most) noexcept nogil:
    """The other end has finished: what is still on its way in a stream, then FINISHED, which is answered."""
    cdef int status, _
    if s.credit.granted:
        # FINISH may overtake messages of a stream: they are taken first, for one patience.
        status = receive_until(s, out, most, s.credit.finish_by)
        if status != 0:
            return status
        # Nobody answers this answer, so it goes out several times: one is enough, and each may be lost.
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken)
    return FINISHED


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    cdef int status
    if s.end + most > s.slots:
        most = s.slots - s.end
        # Every slot is the loop's. It releases before it receives again, so this is an error of ours.
        if most == 0:
            return -ENOBUFS
    while True:
        if s.credit.finishing:
            return last_ones(s, out, most)
        status = take_waiting(s, most)
        if status < 0:
            return 0 if status == -EAGAIN else status
        # Controls alone are no delivery: the wait goes on.
        status = sort_out(s, status, out)
        if status > 0:
            return status


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    cdef int status
    if s.end + most > s.slots:
        most = s.slots - s.end
        if most == 0:
            return -ENOBUFS
    while True:
        # A look comes before the clock, so that a deadline that has passed means one look and not none.
        status = take(s, most, MSG_DONTWAIT)
        if status > 0:
            status = sort_out(s, status, out)
            if status > 0:
                return status
            # A receiver of a stream goes on until its deadline: stragglers may still be on their way.
            if s.credit.finishing and (s.credit.posted or not s.credit.granted):
                return FINISHED
        elif status != -EAGAIN:
            return status
        else:
            status = wait_until(&s.wait, deadline)
            if status <= 0:
                return status


cdef int release(void *me, uint32_t count) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    s.held = s.held - count if count < s.held else 0
    # Only now is any slot received into again: all of them are free at the same time.
    if s.held == 0:
        s.end = 0
    # Behind the slots: a credit invites the sender, and what it then sends must find its place.
    return say(s, MAGIC_CREDIT, s.credit.taken) if due(&s.credit) else 0


# --- sending -------------------------------------------------------------------------------------------------------

cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    return s.tx + <size_t> k * s.stride


cdef int wait_credit(UdpState *s) noexcept nogil:
    """Until a credit comes, or it must be taken for lost: 1; 0 when patience ended; or -errno."""
    cdef Delivery stray
    cdef int64_t since = now()
    cdef int status
    # The limit counts from the first wait: before it, there was nothing to hear.
    if s.credit.heard == 0:
        s.credit.heard = since
    while allowed(&s.credit) == 0:
        if s.credit.finishing:
            return FINISHED
        # Credits come in on the socket that sends, so to wait for one is to receive.
        status = take_waiting(s, 1)
        if status > 0:
            # the receiver of a stream sends nothing but controls; anything else is dropped
            if sort_out(s, status, &stray):
                s.held = s.end = 0
        elif status != -EAGAIN:
            return status
        elif now() - s.credit.heard > s.credit.limit_ns:
            return -ETIMEDOUT
        elif now() - since >= s.wait.patience_ns:
            # Credit or messages were lost. To go on risks a full receiver; to stop would be for ever.
            slide(&s.credit)
    return 1


cdef int room(void *me) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    cdef int status
    if s.wait.fd < 0:
        return -EBADF
    # A blocking send may sleep for want of send buffer (sock_alloc_send_pskb): the beat must be there to end that.
    status = be_patient(&s.wait)
    if status < 0:
        return status
    # No window but the socket's send buffer: the sending call waits for that itself.
    if not s.credit.granted:
        return <int> s.batch
    if allowed(&s.credit) == 0:
        status = wait_credit(s)
        if status <= 0:
            return status
    return <int> min(allowed(&s.credit), <uint64_t> s.batch)


cdef int retry(UdpState *s, int error, int64_t *since) noexcept nogil:
    """Whether to send again: 1; 0 if this machine dropped the datagram, which is a loss like others; or -errno."""
    # udp_send_skb hides a full queue unless IP_RECVERR is set; what is left is want of memory. Not sent again: it is
    # lost.
    if error == ENOBUFS:
        return 0
    if error not in (EAGAIN, EINTR):
        return -error
    # EAGAIN: the send buffer is full (SO_SNDTIMEO or MSG_DONTWAIT). EINTR: the beat. Both go on up to the limit.
    if since[0] == 0:
        since[0] = now()
    return -ETIMEDOUT if now() - since[0] > s.credit.limit_ns else 1


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef UdpState *s = <UdpState *> me
    cdef int flags = MSG_NOSIGNAL | (MSG_DONTWAIT if s.wait.manner == SPIN else 0)
    cdef uint32_t done = 0, together = count
    cdef const iovec *one
    cdef int64_t since = 0
    cdef int status
    while done < count:
        # When the call returns, the datagram has been copied into an skb (ip_generic_getfrag): the slot is free again.
        if together == 1:
            # The same iovec as sendmmsg reads, so a message has one length however it goes out.
            one = s.outgoing[done].msg_hdr.msg_iov
            status = 1 if send(s.wait.fd, one.iov_base, one.iov_len, flags) >= 0 else -1
        else:
            status = sendmmsg(s.wait.fd, s.outgoing + done, together, flags)
        if status > 0:
            done += <uint32_t> status
            # sendmmsg tells how many went out and drops the error that stopped it, an ICMP one among them; the next
            # datagram goes alone, so that the error which it provokes is told to the call after it
            together = count - done if status == <int> together else 1
        else:
            status = retry(s, c_errno, &since)
            if status < 0:
                return status
            if status == 0:
                done += 1
                together = count - done
    # Behind the sends, by the thread that also heeds credits, so no credit can be for more than this.
    s.credit.posted += count
    return <int> count


cdef int post_varying(void *me, uint32_t count) noexcept nogil:
    """As `post`, of messages that differ in size: each says its number, and that its length."""
    cdef UdpState *s = <UdpState *> me
    cdef uint32_t k
    # Here and not in `outgoing`: the number is written behind that. The kernel copies the iovecs at each call
    # (copy_msghdr_from_user), so what stands in them is ours again when it returns.
    for k in range(count):
        s.outgoing[k].msg_hdr.msg_iov.iov_len = length_of(s.credit.lengths, s.tx + <size_t> k * s.stride)
    return post(me, count)


cdef int finish(void *me) noexcept nogil:
    """Tell the other end that nothing more comes; the sender of a stream waits until it has heard that.

    That the other end is gone by now is no error: it may have counted to the end and closed.
    """
    cdef UdpState *s = <UdpState *> me
    cdef Delivery stray
    cdef int64_t deadline
    cdef int _, status
    # Who receives, or whose every message is answered, is not asked again: it says so a few times and leaves.
    if not s.credit.granted or s.credit.posted == 0:
        for _ in range(FINISHES):
            say(s, MAGIC_FINISH, s.credit.taken if s.credit.granted else s.credit.posted)
        return 0
    for _ in range(FINISH_TRIES):
        if s.credit.finishing or say(s, MAGIC_FINISH, s.credit.posted) == -ECONNREFUSED:
            return 0
        # One patience for each try, as the FINISH or the answer may be lost.
        deadline = now() + s.wait.patience_ns
        while not s.credit.finishing:
            status = receive_until(s, &stray, 1, deadline)
            # Late answers and credits land in slots that nobody reads any more.
            s.held = s.end = 0
            if status == -ECONNREFUSED:
                return 0
            if status <= 0:
                break
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class UdpTransport(SocketTransport):
    """One end of a UDP path.

    :param sock: a bound, blocking SOCK_DGRAM socket with its options set; it belongs to this object from now on
    :param size: bytes of a message
    :param window: of a stream, messages that may be on their way; `connect` narrows it to what the receiver's socket
        holds
    :param batch: most messages in one call
    :param stream: whether the receiver grants credits
    :param trial: stands in what crosses the socket besides messages
    :param zerocopy: send with MSG_ZEROCOPY
    :param manner, patience, limit, huge, notes: SocketTransport's
    :raises ValueError: if size, window or batch is below 1
    """

    def __init__(self, sock, *, uint32_t size, uint32_t window, uint32_t batch, bint stream, uint32_t trial,
                 str manner, double patience, double limit, bint huge=False, bint zerocopy=False, notes=None):
        cdef UdpState *s = &self.state
        cdef uint32_t built = sending_slots(batch) if zerocopy else batch
        if size < 1 or batch < 1 or window < 1:
            raise ValueError("size, window and batch are at least 1")
        s.credit.size = size
        s.credit.lengths = &self.lengths
        s.stride = (max(size, <uint32_t> sizeof(Control)) + LINE - 1) // LINE * LINE
        s.batch = batch
        # Twice a batch: while the loop holds one, another can be received behind it.
        s.slots = 2 * batch
        s.credit.window = window
        s.credit.trial = trial
        s.credit.granted = stream
        s.credit.limit_ns = <int64_t> (limit * 1e9)
        s.credit.patience_ns = <int64_t> (patience * 1e9)
        self.size = size
        self.window = window
        self.whole_pages = zerocopy
        self.set_up(&s.wait, sock, manner, patience, notes)
        self.narrow(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        # Before the pointers: both buffers are faulted in here, so no message pays for a page.
        self.pin(<size_t> s.slots * s.stride, <size_t> built * s.stride, huge)
        s.rx = self.received.base
        s.tx = self.built.base
        self.point()
        self.ops.me = s
        self.ops.outgoing = outgoing
        self.ops.room = room
        self.ops.post = post
        self.ops.receive = receive
        self.ops.receive_until = receive_until
        self.ops.release = release
        self.ops.finish = finish
        self.ops.lossy = True
        if zerocopy:
            self.send_zerocopy(s.stride, built, &s.credit.posted, s.credit.limit_ns)

    cdef int point(self) except -1:
        """Let every mmsghdr point to its slot, once."""
        cdef UdpState *s = &self.state
        cdef uint32_t k
        s.incoming = <mmsghdr *> calloc(s.slots, sizeof(mmsghdr))
        s.outgoing = <mmsghdr *> calloc(s.batch, sizeof(mmsghdr))
        self.vectors = <iovec *> calloc(s.slots + s.batch, sizeof(iovec))
        if s.incoming == NULL or s.outgoing == NULL or self.vectors == NULL:
            raise MemoryError
        # Once for all calls: recvmmsg writes lengths and flags back (___sys_recvmsg), never the iovecs.
        for k in range(s.slots):
            self.vectors[k].iov_base = s.rx + <size_t> k * s.stride
            self.vectors[k].iov_len = s.stride
            s.incoming[k].msg_hdr.msg_iov = &self.vectors[k]
            s.incoming[k].msg_hdr.msg_iovlen = 1
        for k in range(s.batch):
            self.vectors[s.slots + k].iov_base = s.tx + <size_t> k * s.stride
            self.vectors[s.slots + k].iov_len = s.credit.size
            s.outgoing[k].msg_hdr.msg_iov = &self.vectors[s.slots + k]
            s.outgoing[k].msg_hdr.msg_iovlen = 1
        return 0

    def vary(self, sizes):
        """As every transport; without copies each message is sent by a call of its own anyway.

        :param sizes: a table of uint32 bytes
        """
        SocketTransport.vary(self, sizes)
        if self.ops.post == post:
            self.ops.post = post_varying

    def __dealloc__(self):
        free(self.state.incoming)
        free(self.state.outgoing)
        free(self.vectors)

    def counts(self):
        """As every socket transport; `slides`; and `socket_drops`: datagrams thrown away at our socket.

        They came, and found no room in its buffer or were damaged; whatever else is lost was lost on the path.
        """
        counted = {**SocketTransport.counts(self), "slides": self.state.credit.slides}
        if self.sock.fileno() >= 0:
            memory = self.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
            counted["socket_drops"] = int.from_bytes(memory[DROPS], "little")
        return counted

    @property
    def slides(self) -> int:
        """How often the sender of a stream gave up waiting for a credit."""
        return self.state.credit.slides

    def connect(self, remote):
        """Connect to what the other end described: from now on the kernel drops datagrams of anybody else.

        :param remote: what `describe` of the other end returned
        :raises PathError: if the address cannot be reached
        """
        self.connect_socket(remote)
        self.narrow(int(remote["receive_buffer"]))

    cdef int narrow(self, size_t buffer) except -1:
        """Have no more on the way than a socket buffer of that size holds; the smaller of both ends' counts."""
        self.window = min(self.window, datagrams_held(buffer, self.size, self.whole_pages))
        self.state.credit.window = self.window
        self.notes["window"] = self.window
        return 0
