# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many sockets of one process, UDP or TCP, one epoll over all of them: a message each is under way at most.

Of a message there are the wait (`epoll_wait`, one call for all that is ready), one receiving and one sending call. A
TCP message that did not fit the socket's buffer is sent on when epoll says that there is room.
"""

import errno
import socket

from libc.errno cimport EAGAIN, ECONNRESET, EINTR, ETIMEDOUT
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close

from cython_ext.core.clock cimport now
from cython_ext.core.connections cimport Arrival, Connections
from cython_ext.core.lengths cimport Lengths, length_of
from cython_ext.core.payload cimport SMALLEST
from cython_ext.core.trial cimport MOST
from cython_ext.headers.sys_epoll cimport (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_MOD,
    EPOLLIN,
    EPOLLOUT,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython_ext.headers.sys_socket cimport MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, recv, send
from cython_ext.sockets.socket_transport cimport SocketTransport

from cython_ext.sockets.socket_transport import named
from hwrx.errors import MachineError, PathError, PeerError

cdef enum:
    WAIT_MS = 50


cdef struct SocketsState:
    uint32_t count
    uint32_t size          # bytes of a message, or of the longest
    const Lengths *lengths
    uint32_t stride
    int epoll
    bint stream            # TCP
    bint spins
    int64_t limit_ns
    int *fds
    char *landing          # a buffer for each connection
    char *out              # and one that goes out
    uint32_t *got          # TCP: bytes of its message that have come
    uint32_t *left         # TCP: bytes of its message that the kernel has not taken yet
    epoll_event events[MOST]


cdef int watch(SocketsState *s, uint32_t connection, int operation, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u32 = connection
    return 0 if epoll_ctl(s.epoll, operation, s.fds[connection], &event) == 0 else -c_errno


cdef int push(SocketsState *s, uint32_t connection) noexcept nogil:
    """TCP: hand over what is left of the connection's message: 0 or an error. What does not fit waits for EPOLLOUT."""
    cdef char *message = s.out + <size_t> connection * s.stride
    cdef uint32_t length = length_of(s.lengths, message)
    cdef bint waited = 0 < s.left[connection] < length
    cdef ssize_t taken
    while s.left[connection]:
        taken = send(s.fds[connection], message + length - s.left[connection], s.left[connection],
                     MSG_DONTWAIT | MSG_NOSIGNAL)
        if taken >= 0:
            s.left[connection] -= <uint32_t> taken
        elif c_errno == EAGAIN:
            return 0 if waited else watch(s, connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT)
        elif c_errno != EINTR:
            return -c_errno
    return watch(s, connection, EPOLL_CTL_MOD, EPOLLIN) if waited else 0


cdef int sockets_outgoing(void *me, uint32_t connection, char **message) noexcept nogil:
    cdef SocketsState *s = <SocketsState *> me
    # free: the kernel copied its last message, all of it, before the other end could answer
    message[0] = s.out + <size_t> connection * s.stride
    return 1


cdef int sockets_post(void *me, uint32_t connection) noexcept nogil:
    cdef SocketsState *s = <SocketsState *> me
    cdef char *message = s.out + <size_t> connection * s.stride
    cdef uint32_t length = length_of(s.lengths, message)
    cdef int status
    if s.stream:
        s.left[connection] = length
        status = push(s, connection)
        return status if status < 0 else 1
    while send(s.fds[connection], message, length, MSG_NOSIGNAL) < 0:
        if c_errno != EINTR:
            return -c_errno
    return 1


cdef int take(SocketsState *s, uint32_t connection, Arrival *out) noexcept nogil:
    """Receive on a connection that epoll calls ready: 1 if there is a message, 0 if not yet, or an error."""
    cdef char *buffer = s.landing + <size_t> connection * s.stride
    cdef ssize_t got
    if s.stream:
        got = recv(s.fds[connection], buffer + s.got[connection], s.size - s.got[connection], MSG_DONTWAIT)
        if got == 0:
            return -ECONNRESET  # nobody closes before both ends have all: it died
        if got > 0:
            s.got[connection] += <uint32_t> got
            # Its number stands in the first 8 bytes, and says how long it is. Nothing comes behind it.
            if s.got[connection] < SMALLEST or s.got[connection] < length_of(s.lengths, buffer):
                return 0
            got = s.got[connection]
            s.got[connection] = 0
    else:
        got = recv(s.fds[connection], buffer, s.stride, MSG_DONTWAIT | MSG_TRUNC)
    if got < 0:
        return 0 if c_errno == EAGAIN or c_errno == EINTR else -c_errno
    out.connection = connection
    out.message.data = buffer
    out.message.size = <uint32_t> got
    return 1


cdef int sockets_receive(void *me, Arrival *out, uint32_t most) noexcept nogil:
    cdef SocketsState *s = <SocketsState *> me
    cdef int64_t until = now() + WAIT_MS * <int64_t> 1000000
    cdef uint32_t connection
    cdef int ready, i, status, count = 0
    while count == 0:
        ready = epoll_wait(s.epoll, s.events, <int> min(most, <uint32_t> MOST), 0 if s.spins else WAIT_MS)
        if ready < 0 and c_errno != EINTR:
            return -c_errno
        for i in range(ready):
            connection = s.events[i].data.u32
            if s.events[i].events & EPOLLOUT:
                status = push(s, connection)
                if status < 0:
                    return status
            if s.events[i].events & ~<uint32_t> EPOLLOUT:  # an error or a hang-up, too: the call tells which
                status = take(s, connection, &out[count])
                if status < 0:
                    return status
                count += status
        if count == 0 and now() >= until:
            return 0
    return count


cdef int sockets_release(void *me) noexcept nogil:
    return 0  # each connection receives into its own buffer, and nothing comes before its next message is posted


cdef int sockets_finish(void *me) noexcept nogil:
    """TCP: what the kernel has not taken yet of the last answers is handed over: 0, or an error after the limit."""
    cdef SocketsState *s = <SocketsState *> me
    cdef int64_t until = now() + s.limit_ns
    cdef uint32_t connection = 0
    cdef int ready, i, status
    while s.stream and connection < s.count:
        if s.left[connection] == 0:
            connection += 1
            continue
        ready = epoll_wait(s.epoll, s.events, MOST, WAIT_MS)
        if ready < 0 and c_errno != EINTR:
            return -c_errno
        for i in range(ready):
            status = push(s, s.events[i].data.u32)
            if status < 0:
                return status
        if now() > until:
            return -ETIMEDOUT
    return 0


cdef class ManySocketsTransport(SocketTransport):
    """As many connected sockets as the setting has connections.

    :param socks: bound, with their options set; one for each connection, or, of a TCP server, the one that listens.
        They belong to this object
    :param size: bytes of a message
    :param listens: whether this is the server of TCP
    :param manner: epoll (or block: there is no other way to wait for many) or spin
    :param limit: seconds that connecting may take
    :param huge: take the buffers from huge pages
    :param notes: options chosen by whoever made the sockets; they go into `chosen()`
    """
    cdef SocketsState s
    cdef readonly Connections connections
    cdef list socks
    cdef bint listens
    cdef double limit

    def __cinit__(self, *args, **kwargs):
        self.s.epoll = -1

    def __init__(self, socks, *, uint32_t size, uint32_t count, bint listens, str manner, double limit, bint huge=False,
                 notes=None):
        cdef SocketsState *s = &self.s
        self.socks = list(socks)
        self.sock = self.socks[0]
        self.notes = {**(notes or {}), "connections": count}
        self.peer = "the other end"
        self.size = size
        self.window = count
        self.listens = listens
        self.limit = limit
        s.count = count
        s.size = size
        s.lengths = &self.lengths
        s.stride = (size + 63) & ~<uint32_t> 63
        s.stream = self.sock.type == socket.SOCK_STREAM
        s.spins = manner == "spin"
        s.limit_ns = <int64_t> (limit * 1e9)
        try:
            s.fds = <int *> calloc(count, sizeof(int))
            s.got = <uint32_t *> calloc(count, sizeof(uint32_t))
            s.left = <uint32_t *> calloc(count, sizeof(uint32_t))
            if s.fds == NULL or s.got == NULL or s.left == NULL:
                raise MemoryError
            self.pin(<size_t> count * s.stride, <size_t> count * s.stride, huge)
            s.landing = self.received.base
            s.out = self.built.base
            s.epoll = epoll_create1(EPOLL_CLOEXEC)
            if s.epoll < 0:
                raise MachineError(f"epoll_create1: {errno.errorcode[c_errno]}", remedy="ulimit -n: a larger number")
        except BaseException:
            self.close()
            raise
        self.connections = Connections(count)
        self.connections.ops.me = s
        self.connections.ops.outgoing = sockets_outgoing
        self.connections.ops.post = sockets_post
        self.connections.ops.receive = sockets_receive
        self.connections.ops.release = sockets_release
        self.connections.ops.finish = sockets_finish
        self.ops.me = s
        self.ops.lossy = not s.stream

    def __dealloc__(self):
        free(self.s.fds)
        free(self.s.got)
        free(self.s.left)

    def describe(self):
        """What the other end needs to reach this one.

        :return: what a single socket tells; and `ports`, one for each connection, of a TCP server the one on which it
            listens
        """
        return {**SocketTransport.describe(self), "ports": [sock.getsockname()[1] for sock in self.socks]}

    def connect(self, remote):
        """Connect each socket to its own of the other end, and watch it.

        :param remote: what `describe` of the other end returned
        :raises PathError: naming the peer, if it cannot be reached
        :raises PeerError: if the other end has another number of connections
        """
        cdef uint32_t k
        cdef int status
        ports = remote.get("ports")
        if not isinstance(ports, list) or not all(isinstance(port, int) for port in ports):
            raise PeerError("the other end does not say which ports its connections have")
        calls_one = self.s.stream and not self.listens
        if len(ports) != (1 if calls_one else self.s.count):
            raise PeerError(f"the ends do not fit: {self.s.count} connections here, {len(ports)} there")
        if self.listens:
            self._accept_all(ports)
        else:
            for sock, port in zip(self.socks, ports * self.s.count if calls_one else ports, strict=True):
                self.sock = sock
                self.connect_socket({**remote, "port": port})
        self.sock = self.socks[0]
        for k in range(self.s.count):
            self.socks[k].setblocking(True)
            self.s.fds[k] = self.socks[k].fileno()
            status = watch(&self.s, k, EPOLL_CTL_ADD, EPOLLIN)
            if status < 0:
                raise PathError(f"epoll_ctl: {errno.errorcode[-status]}")

    def _accept_all(self, ports):
        """Of a TCP server: the connections, in the order in which the client has them."""
        listener = self.socks[0]
        places = {port: place for place, port in enumerate(ports)}
        found = [None] * len(ports)
        listener.settimeout(self.limit)
        try:
            for _ in ports:
                sock, address = listener.accept()
                place = places.pop(address[1], None)
                if place is None:
                    sock.close()
                    raise PathError(f"somebody else called: {named(address)}")
                found[place] = sock
                self.peer = named(address)
        except OSError as error:
            missing = sum(each is None for each in found)
            raise PathError(
                f"of {len(found)} connections {missing} did not come: {error}",
                remedy="is net.core.somaxconn smaller than that, or does a filter hold them back?",
            ) from error
        finally:
            self.socks = [*(sock for sock in found if sock is not None), listener]

    def counts(self):
        """What the account counted beyond the loop.

        :return: what `Connections.counts` returns
        """
        return self.connections.counts()

    def close(self):
        """Close all sockets and give the buffers back; harmless when called twice."""
        if self.s.epoll >= 0:
            close(self.s.epoll)
            self.s.epoll = -1
        for sock in self.socks:
            sock.close()
        SocketTransport.close(self)
