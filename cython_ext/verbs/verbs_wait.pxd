"""How an endpoint waits for completions: polling memory, or asleep on a completion channel."""

from libc.stdint cimport int64_t

from cython_ext.core.beat cimport Beat
from cython_ext.headers.infiniband_verbs cimport ibv_comp_channel, ibv_cq, ibv_wc

cdef enum:
    # How long one wait lasts when nothing happens; then the loop looks whether its own limit is over.
    BEAT_NS = 50_000_000


cdef struct Side:
    ibv_cq *cq
    ibv_comp_channel *channel   # NULL: poll
    bint armed                  # an event was asked for, and has not been read
    unsigned int unacked        # events read and not yet acknowledged, which costs a lock


# A count of completions, 0 when patience (or the time until `deadline`) is over, or -errno.
cdef int wait_cq(Side *side, Beat *beat, ibv_wc *wc, int most) noexcept nogil
cdef int wait_cq_until(Side *side, ibv_wc *wc, int most, int64_t deadline) noexcept nogil
cdef int arm(Side *side) noexcept nogil
cdef void acknowledge(Side *side) noexcept nogil
