"""How long each message is: one size for all, or a table of sizes that both ends have, by sequence number.

A table has a power of two of entries, so that each number has one, also a damaged one; of one size there is one entry.
The same few instructions serve both, without a branch.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy


cdef struct Lengths:
    const uint32_t *of     # bytes; belongs to whoever made the table, and outlives the trial
    uint32_t mask          # its entries less one


cdef inline uint32_t length_of_number(const Lengths *lengths, uint64_t sequence) noexcept nogil:
    return lengths.of[<uint32_t> sequence & lengths.mask]


cdef inline uint32_t length_of(const Lengths *lengths, const char *message) noexcept nogil:
    """Of a message whose first 8 bytes can be read: what its number says. The low half of it is in every size."""
    cdef uint32_t number
    memcpy(&number, message + 4, 4)  # AT_SEQUENCE of payload.pxd
    return lengths.of[number & lengths.mask]
