"""A TCP connection as a path: messages of fixed length, one behind the other in the stream."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.sockets.socket_transport cimport SocketTransport
from cython_ext.sockets.waiting cimport Waiter


cdef struct TcpState:
    Waiter wait
    uint32_t size         # bytes of a message
    uint32_t batch        # slots to build messages in
    uint32_t outstanding_limit  # client of paced: messages not answered; 0: the socket's buffers are the limit
    int receive_flags     # MSG_WAITALL where one message at a time is wanted
    bint one              # never read more than the message that is waited for
    bint ended            # the other end has closed its side in order
    int64_t limit_ns      # nothing taken by the other end for so long is an error
    char *rx
    char *tx
    size_t ring           # bytes to receive into, a whole number of messages: none ever straddles the end
    size_t head           # where the next byte goes
    size_t filled         # bytes received and not released
    size_t undelivered    # of these, not delivered yet; less than a message is a tail that goes on in place
    uint64_t posted
    uint64_t delivered
    bint bulk             # one call may bring many messages, which are handed out in several lots
    int64_t brought_at    # then: when the last call that brought something returned
    # tcp_mapped.pyx: messages are received by mapping the pages that they arrived in
    char *mapping         # where a message's pages are mapped, `size` bytes of address space; NULL: not so
    bint gathering        # part of this message could not be mapped: it is put together in `rx`
    uint64_t mapped_bytes
    uint64_t read_bytes   # that the kernel copied, because they did not fill whole pages
    uint64_t gathered_bytes  # that we copied from mapped pages, so that a message is in one piece


cdef class TcpTransport(SocketTransport):
    cdef TcpState state
    cdef bint listens
    cdef bint paced
    cdef double limit
