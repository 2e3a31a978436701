# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TCP_ZEROCOPY_RECEIVE: the kernel maps the pages of the receive queue into our address space instead of copying them.

It maps what arrived as whole pages, page-aligned (net/ipv4/tcp.c, can_map_frag); of anything else it says how many
bytes have to be read (`recv_skip_hint`). A message is delivered in place where all of it was mapped. Where any part had
to be read, it is put together in the pinned buffer, and both the kernel's copy and ours are counted.

Only one message is received at a time: the next one's pages take the place of this one's.
"""

import errno
import mmap as mapping
import os

from libc.errno cimport EAGAIN, EBADF, EINTR, EIO, ENOBUFS
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.transport cimport FINISHED, Delivery
from cython_ext.headers.linux_tcp cimport TCP_ZEROCOPY_RECEIVE, tcp_zerocopy_receive
from cython_ext.headers.sys_socket cimport (
    IPPROTO_TCP,
    MSG_DONTWAIT,
    MSG_PEEK,
    getsockopt,
    recv,
)
from cython_ext.sockets.tcp cimport TcpState, TcpTransport
from cython_ext.sockets.waiting cimport SPIN, readable_patiently, wait_until

from hwrx.errors import PathError

PAGE = mapping.PAGESIZE
cdef size_t page = mapping.PAGESIZE


cdef int map_pages(TcpState *s, uint32_t *must_read) noexcept nogil:
    """Have the next pages of the message mapped: 1 when it grew, 0 when not, or -errno.

    `must_read`: how many bytes come next that cannot be mapped.
    """
    cdef tcp_zerocopy_receive ask
    cdef unsigned int length = sizeof(ask)
    if s.broken:
        return s.broken
    memset(&ask, 0, sizeof(ask))
    ask.address = <uint64_t> (s.mapping + s.undelivered)
    ask.length = <uint32_t> (s.size - s.undelivered)
    if getsockopt(s.wait.fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &ask, &length) < 0:
        # EIO: the stream has ended, and nothing is left to map
        return 0 if c_errno == EIO else -c_errno
    must_read[0] = ask.recv_skip_hint
    s.undelivered += ask.length
    s.mapped_bytes += ask.length
    # nobody else will hear of it: a call that reads would see no more than the stream's end
    s.broken = ask.err
    if s.broken and ask.length == 0:
        return s.broken
    return 1 if ask.length else 0


cdef int read_bytes(TcpState *s, size_t most) noexcept nogil:
    """Read what cannot be mapped into the pinned buffer: 1 when bytes came, 0 at the end of the stream, or -errno."""
    cdef ssize_t got
    if not s.gathering:
        memcpy(s.rx, s.mapping, s.undelivered)
        s.gathered_bytes += s.undelivered
        s.gathering = True
    got = recv(s.wait.fd, s.rx + s.undelivered, min(most, s.size - s.undelivered), MSG_DONTWAIT)
    if got <= 0:
        return 0 if got == 0 else -c_errno
    s.undelivered += <size_t> got
    s.read_bytes += <uint64_t> got
    return 1


cdef int take(TcpState *s) noexcept nogil:
    """Take what is there: 1 when the message grew, 0 at the end of the stream, -EAGAIN when nothing is there."""
    cdef uint32_t must_read = 0
    cdef char one
    cdef ssize_t got
    cdef int status
    if s.gathering:
        return read_bytes(s, s.size)
    status = map_pages(s, &must_read)
    if status != 0:
        return status
    if must_read:
        return read_bytes(s, must_read)
    # nothing to map and nothing to read looks alike whether more will come or not
    got = recv(s.wait.fd, &one, 1, MSG_DONTWAIT | MSG_PEEK)
    if got < 0:
        return -c_errno
    return 0 if got == 0 else 1


cdef inline int deliver(TcpState *s, Delivery *out) noexcept nogil:
    out[0].data = s.rx if s.gathering else s.mapping
    out[0].size = <uint32_t> s.undelivered
    s.undelivered = 0
    s.gathering = False
    s.delivered += 1
    s.filled = s.size
    return 1


cdef int at_the_end(TcpState *s, Delivery *out) noexcept nogil:
    """The stream has ended: what there is of a cut message, as what it is; then FINISHED."""
    s.ended = True
    return deliver(s, out) if s.undelivered else FINISHED


cdef int receive_by(TcpState *s, Delivery *out, int64_t deadline) noexcept nogil:
    """One message, until an exact time; `deadline` 0: as long as the path's patience lasts, in its manner."""
    cdef int64_t start = 0
    cdef int status = 0, _
    if s.wait.fd < 0:
        return -EBADF
    if s.ended:
        return FINISHED
    if s.filled:
        return -ENOBUFS
    while s.undelivered < s.size:
        for _ in range(LOOKS):
            status = take(s)
            if status != -EAGAIN or s.wait.manner != SPIN:
                break
        if status == 0:
            return at_the_end(s, out)
        if status > 0 or status == -EINTR:
            continue
        if status != -EAGAIN:
            return status
        if deadline:
            status = wait_until(&s.wait, deadline)
            if status == 0:
                return 0
        elif s.wait.manner != SPIN:
            status = readable_patiently(&s.wait)
            if status == 0:
                return 0
        else:
            if start == 0:
                start = now()
            elif now() - start > s.wait.patience_ns:
                return 0
            status = 1
        if status < 0 and status != -EINTR:
            return status
    return deliver(s, out)


cdef int receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    return receive_by(<TcpState *> me, out, 0)


cdef int receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    return receive_by(<TcpState *> me, out, deadline if deadline else 1)


cdef int release(void *me, uint32_t count) noexcept nogil:
    """The pages stay mapped until the next message's take their place."""
    cdef TcpState *s = <TcpState *> me
    s.filled = 0
    return 0


cdef class MappedTcpTransport(TcpTransport):
    """One end of a TCP path that receives without copying if the kernel can map; arguments are TcpTransport's.

    :raises ValueError: if `size` is not a multiple of the page size
    """

    def __init__(self, sock, **rest):
        TcpTransport.__init__(self, sock, **rest)
        if self.state.size % page:
            raise ValueError(f"a message that is mapped has whole pages of {PAGE} bytes, not {self.state.size} bytes")
        self.ops.receive = receive
        self.ops.receive_until = receive_until
        if self.zero != NULL:
            self.zero.path_release = release  # it is called by the zero-copy sender's own
        else:
            self.ops.release = release
        self.ops.brought_at = NULL  # one message at a time

    def connect(self, remote):
        """As TcpTransport; then lay aside the address space that pages are mapped into.

        :raises PathError: if the kernel cannot map what this socket receives
        """
        TcpTransport.connect(self, remote)
        self.map_window()
        segment = self.notes["segment"]
        said = f"TCP_ZEROCOPY_RECEIVE, segments of {segment} bytes"
        if segment % PAGE:
            said += f": no whole pages, so most will be copied; an MTU of {PAGE + 72} or more lets segments hold them"
        self.notes["zerocopy_receive"] = said

    cdef int map_window(self) except -1:
        cdef TcpState *s = &self.state
        cdef void *at = mmap(NULL, s.size, PROT_READ, MAP_SHARED, s.wait.fd, 0)
        if at == MAP_FAILED:
            error = c_errno
            raise PathError(
                f"the kernel cannot map what this TCP socket receives: mmap: {os.strerror(error)}"
                f" ({errno.errorcode.get(error, error)})",
                remedy="leave zerocopy_receive off; Linux has it since 4.18",
            )
        s.mapping = <char *> at
        return 0

    def counts(self):
        """Of what was received, bytes: those mapped, those copied by the kernel, and those that we copied once more.

        :return: `mapped_bytes`, `read_bytes`, `gathered_bytes`, beside TcpTransport's
        """
        cdef TcpState *s = &self.state
        return {
            **TcpTransport.counts(self),
            "mapped_bytes": s.mapped_bytes,
            "read_bytes": s.read_bytes,
            "gathered_bytes": s.gathered_bytes,
        }

    def close(self):
        """As SocketTransport; the mapping goes first."""
        cdef TcpState *s = &self.state
        if s.mapping != NULL:
            munmap(s.mapping, s.size)
            s.mapping = NULL
        TcpTransport.close(self)

    def __dealloc__(self):
        if self.state.mapping != NULL:
            munmap(self.state.mapping, self.state.size)
