"""One trial: what is to be done, and the arrays and counts that it fills."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.core.lengths cimport Lengths
from cython_ext.core.meter cimport Meter


cdef enum:
    MOST = 256             # deliveries taken by one receive
    LATE_SEND_NS = 100_000


cdef struct Plan:
    uint64_t warmup        # messages before the measured ones; checked, not recorded
    uint64_t messages      # measured
    uint64_t cooldown      # messages after the measured ones
    uint32_t size          # bytes of a message, or of the longest
    Lengths lengths        # of each message
    uint32_t trial         # stands in each payload, so that a straggler of another trial is known as such
    uint32_t batch         # most messages in one post or one receive
    uint32_t check_every   # full checks: a ping-pong's are messages of their own, one before each n-th; 0: none
    uint64_t exempt_from   # stream, paced: of the messages outside of this half-open range each n-th is checked in full
    uint64_t exempt_to
    int64_t limit_ns       # nothing received for this long: the trial ends
    int64_t patience_ns    # a message that is not answered within this time is given up, if its path can lose it
    bint stamped           # the server of a ping-pong looks at the clock, too


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
    uint64_t unchecked     # messages that were to be checked, or their answers, lost on the way
    uint64_t late          # answers that came after the client's patience
    uint64_t sent_late     # paced: sends more than LATE_SEND_NS behind their time, though there was room
    uint64_t window_full   # paced: sends that had to wait for room


cdef class Trial:
    cdef Plan plan
    cdef Tally tally
    cdef uint64_t total            # warmup + messages + cooldown
    cdef uint64_t highest          # one more than the highest sequence number seen
    cdef uint8_t *seen             # a bit a message
    cdef int64_t *due_at           # paced: ns from the start at which each of `total` is to be sent; NULL: none
    cdef int64_t *intended_at      # a number a message, all CLOCK_MONOTONIC, 0: never
    cdef int64_t *sent_at          # of all `total` messages; `posted` is the part of it that is measured
    cdef int64_t *delivered_at
    cdef readonly object intended  # the same memory as NumPy arrays, for Python
    cdef readonly object posted
    cdef readonly object delivered
    cdef object seen_bits
    cdef readonly Meter meter      # of this end's processor time
    cdef object sent
    cdef bint stopped              # by another thread: what is missing will not come any more
    cdef object due
    cdef object sizes
