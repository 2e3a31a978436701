"""A connected UDP socket as a path: one datagram a message."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.core.credit cimport Credit
from cython_ext.headers.sys_socket cimport iovec, mmsghdr
from cython_ext.sockets.socket_transport cimport SocketTransport
from cython_ext.sockets.waiting cimport Waiter


cdef struct UdpState:
    Waiter wait
    Credit credit         # what is said besides messages, and the message size
    uint32_t stride       # bytes of a slot: room for a message or a Control, whole cache lines
    uint32_t batch        # slots to build messages in
    uint32_t slots        # slots to receive into
    char *rx
    char *tx
    uint32_t end          # first free receive slot
    uint32_t held         # delivered and not released
    mmsghdr *incoming     # one a receive slot
    mmsghdr *outgoing     # one a send slot


cdef int say(UdpState *s, uint32_t magic, uint64_t count) noexcept nogil


cdef class UdpTransport(SocketTransport):
    cdef UdpState state
    cdef iovec *vectors
    cdef bint whole_pages  # a datagram takes whole pages of the receiver's buffer

    cdef int point(self) except -1
    cdef int narrow(self, size_t buffer) except -1
