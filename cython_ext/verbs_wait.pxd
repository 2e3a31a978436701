"""How an endpoint waits for completions: polling memory, or asleep on a completion channel."""

from libc.stdint cimport int64_t

from cython_ext.infiniband_verbs cimport ibv_comp_channel, ibv_cq, ibv_wc

cdef enum:
    # How long one wait lasts when nothing happens; then the loop looks whether its own limit is over.
    TICK_NS = 50_000_000


cdef struct Tick:
    # A timer whose only work is to interrupt a blocking read now and then. It belongs to the thread that waits.
    void *timer
    unsigned long owner
    bint running


cdef struct Side:
    ibv_cq *cq
    ibv_comp_channel *channel   # NULL: poll
    bint armed                  # an event was asked for, and has not been read
    unsigned int unacked        # events read and not yet acknowledged, which costs a lock


# A count of completions, 0 when patience (or the time until `deadline`) is over, or -errno.
cdef int wait_cq(Side *side, Tick *tick, ibv_wc *wc, int most) noexcept nogil
cdef int wait_cq_until(Side *side, ibv_wc *wc, int most, int64_t deadline) noexcept nogil
cdef int arm(Side *side) noexcept nogil
cdef void acknowledge(Side *side) noexcept nogil
cdef void stop_tick(Tick *tick) noexcept nogil
