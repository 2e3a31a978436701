"""A TCP connection as a path: messages of fixed length, one behind the other in the stream."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from libc.string cimport memmove

from cython_ext.core.lengths cimport Lengths, length_of
from cython_ext.core.payload cimport SMALLEST
from cython_ext.core.transport cimport FINISHED, Delivery
from cython_ext.sockets.socket_transport cimport SocketTransport
from cython_ext.sockets.waiting cimport Waiter


cdef struct TcpState:
    Waiter wait
    uint32_t size         # bytes of a message, or of the longest
    const Lengths *lengths  # of each message
    char *built           # of messages that differ: the last one, right behind which the next is built
    uint64_t moved_bytes  # of parts of messages, from the ring's end to its beginning
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
    int broken            # the connection's error, which the kernel told beside the last pages: -errno
    bint gathering        # part of this message could not be mapped: it is put together in `rx`
    uint64_t mapped_bytes
    uint64_t read_bytes   # that the kernel copied, because they did not fill whole pages
    uint64_t gathered_bytes  # that we copied from mapped pages, so that a message is in one piece


cdef inline size_t space_for(const TcpState *s) noexcept nogil:
    """Bytes that the next receive may bring, from `head` on."""
    # A ping-pong reads what is missing of one message. More would be the next one, whose time has not begun.
    if s.one:
        return s.size - s.undelivered
    # Up to the ring's end, and never over bytes that the loop has not released. The rest waits in the kernel's buffer.
    return min(s.ring - s.head, s.ring - s.filled)


cdef inline void landed(TcpState *s, size_t got) noexcept nogil:
    """So many bytes have come, at `head`."""
    s.head += got
    # The ring is a whole number of messages, so one that begins behind this point lies in one piece.
    if s.head == s.ring:
        s.head = 0
    s.filled += got
    s.undelivered += got


cdef inline char *next_message(TcpState *s) noexcept nogil:
    # What is not delivered lies right behind `head`, going backwards, and may begin before the ring's end.
    if s.head >= s.undelivered:
        return s.rx + (s.head - s.undelivered)
    return s.rx + (s.head + s.ring - s.undelivered)


cdef inline int deliver(TcpState *s, Delivery *out, uint32_t most) noexcept nogil:
    """Hand out whole messages that are in the ring: how many."""
    cdef uint32_t count = 0
    while s.undelivered >= s.size and count < most:
        out[count].data = next_message(s)
        out[count].size = s.size
        # Delivered and not released: `filled` still counts these bytes, so no receive can write over them.
        s.undelivered -= s.size
        count += 1
    s.delivered += count
    return <int> count


# Messages that differ in size have functions of their own, so that those of one size cost nothing more. The stream is
# cut by their numbers, which stand in their first 8 bytes.

cdef inline bint has_message(TcpState *s) noexcept nogil:
    """Whether a whole message waits to be handed out, of messages that differ in size."""
    return s.undelivered >= SMALLEST and s.undelivered >= length_of(s.lengths, next_message(s))


cdef inline int deliver_varying(TcpState *s, Delivery *out, uint32_t most) noexcept nogil:
    """As `deliver`, of messages that differ in size."""
    cdef uint32_t count = 0
    while count < most and has_message(s):
        out[count].data = next_message(s)
        out[count].size = length_of(s.lengths, out[count].data)
        s.undelivered -= out[count].size
        count += 1
    s.delivered += count
    return <int> count


cdef inline void make_way(TcpState *s) noexcept nogil:
    """Before a receive, of messages that differ: let none straddle the ring's end, by moving what there is of it.

    Less than a message in a ring of hundreds. What was delivered has been released by now: nobody holds these bytes.
    """
    cdef char *part = next_message(s)
    if s.filled == s.undelivered and (s.ring - s.head < s.size or part > s.rx + s.head):
        memmove(s.rx, part, s.undelivered)
        s.moved_bytes += s.undelivered
        s.head = s.undelivered


cdef inline int at_the_end(TcpState *s, Delivery *out) noexcept nogil:
    """The stream has ended: what there is of a cut message, as what it is; then FINISHED."""
    s.ended = True
    if s.undelivered == 0:
        return FINISHED
    # Its size is not that of a message, so the loop counts it as one of the wrong size.
    out[0].data = next_message(s)
    out[0].size = <uint32_t> s.undelivered
    s.undelivered = 0
    return 1


cdef class TcpTransport(SocketTransport):
    cdef TcpState state
    cdef bint listens
    cdef bint paced
    cdef double limit
