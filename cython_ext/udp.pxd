"""A connected UDP socket as a path: one datagram a message."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.socket_transport cimport SocketTransport
from cython_ext.sys_socket cimport iovec, mmsghdr
from cython_ext.waiting cimport Waiter


cdef struct Control:
    # What crosses the socket besides messages, in the byte order of the payload
    uint32_t magic        # MAGIC_CREDIT or MAGIC_FINISH
    uint32_t trial
    uint64_t count        # CREDIT: one more than the highest sequence number taken; FINISH: that, or messages posted


cdef struct UdpState:
    Waiter wait
    uint32_t size         # bytes of a message
    uint32_t stride       # bytes of a slot: room for a message or a Control, whole cache lines
    uint32_t batch        # slots to build messages in
    uint32_t slots        # slots to receive into
    uint32_t window       # of a stream: messages that the receiver has not credited
    uint32_t trial
    bint credits          # a stream
    bint finishing        # the other end has said that nothing more comes
    int64_t finish_by     # until then stragglers of a stream are waited for
    int64_t limit_ns      # nothing heard for so long is an error
    char *rx
    char *tx
    uint32_t end          # first free receive slot
    uint32_t held         # delivered and not released
    mmsghdr *incoming     # one a receive slot
    mmsghdr *outgoing     # one a send slot
    uint64_t posted
    uint64_t credited     # of these, known to be taken (or given up as lost)
    uint64_t taken        # receiver: one more than the highest sequence number
    uint64_t told         # receiver: `taken` of the last credit sent
    int64_t heard         # sender: when a credit last came
    uint64_t slides       # times that the sender gave up waiting for a credit


cdef class UdpTransport(SocketTransport):
    cdef UdpState state
    cdef iovec *vectors
    cdef bint whole_pages  # a datagram takes whole pages of the receiver's buffer

    cdef int point(self) except -1
    cdef int narrow(self, size_t buffer) except -1
