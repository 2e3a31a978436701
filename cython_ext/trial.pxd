"""One trial: what is to be done, and the arrays and counts that it fills."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.meter cimport Meter


cdef enum:
    MOST = 256             # deliveries taken by one receive


cdef struct Plan:
    uint64_t warmup        # messages before the measured ones; checked, not recorded
    uint64_t messages      # measured
    uint64_t cooldown      # messages after the measured ones
    uint32_t size          # bytes of a message
    uint32_t trial         # stands in each payload, so that a straggler of another trial is known as such
    uint32_t batch         # most messages in one post or one receive
    uint32_t check_every   # 0: header and trailer only; 1: every byte of each message; n: every byte of each n-th
    int64_t limit_ns       # nothing received for so long: the trial ends


cdef struct Tally:
    uint64_t posted
    uint64_t delivered     # good ones, each counted once
    uint64_t bytes         # of these
    uint64_t duplicated
    uint64_t reordered     # came after one with a higher sequence number
    uint64_t corrupt
    uint64_t stale         # of another trial
    uint64_t wrong_size
    uint64_t checked       # verified to the last byte


cdef class Trial:
    cdef Plan plan
    cdef Tally tally
    cdef uint64_t total            # warmup + messages + cooldown
    cdef uint64_t highest          # one more than the highest sequence number seen
    cdef uint8_t *seen             # a bit a message
    cdef int64_t *due_at           # paced: ns from the start at which each of `total` is to be sent; NULL: none
    cdef int64_t *intended_at      # a number a message, all CLOCK_MONOTONIC, 0: never
    cdef int64_t *posted_at
    cdef int64_t *delivered_at
    cdef readonly object intended  # the same memory as NumPy arrays, for Python
    cdef readonly object posted
    cdef readonly object delivered
    cdef object seen_bits
    cdef readonly Meter meter      # of this end's processor time
    cdef object due
