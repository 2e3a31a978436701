"""From a queue pair's number to its connection: with one receive queue for all, a completion says only the former."""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc

cdef enum:
    NOT_OURS = 0xFFFFFFFF


cdef struct Number:
    uint32_t qpn
    uint32_t connection


cdef struct Numbers:
    Number *entries       # open addressing; whoever made room gives it back
    uint32_t mask


cdef inline uint32_t place_of(const Numbers *n, uint32_t qpn) noexcept nogil:
    return (qpn * <uint32_t> 2654435769) >> 8 & n.mask


cdef inline uint32_t connection_of(const Numbers *n, uint32_t qpn) noexcept nogil:
    cdef uint32_t at = place_of(n, qpn)
    while n.entries[at].connection != NOT_OURS:
        if n.entries[at].qpn == qpn:
            return n.entries[at].connection
        at = (at + 1) & n.mask
    return NOT_OURS


cdef inline Numbers room_for_numbers(uint32_t count) noexcept:
    """For so many queue pairs, a quarter full; `entries` is NULL if there is no memory."""
    cdef Numbers n
    cdef uint32_t size = 4, k
    while size < 4 * count:
        size *= 2
    n.mask = size - 1
    n.entries = <Number *> calloc(size, sizeof(Number))
    for k in range(size if n.entries != NULL else 0):
        n.entries[k].connection = NOT_OURS
    return n


cdef inline void note_number(Numbers *n, uint32_t qpn, uint32_t connection) noexcept:
    cdef uint32_t at = place_of(n, qpn)
    while n.entries[at].connection != NOT_OURS:
        at = (at + 1) & n.mask
    n.entries[at].qpn = qpn
    n.entries[at].connection = connection
