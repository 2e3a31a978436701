"""When a connection gives up waiting: the retransmission timer, and the wait that a receiver not ready asks for."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.roce.connection cimport Connection

cdef enum:
    # A time that nobody has read: who drives a connection with it reads the clock only when nothing comes. What begins
    # to count then counts from the next time that is handed in, and nothing expires before.
    UNREAD = -1

cdef int64_t timeout_of_code(uint32_t code) noexcept nogil
cdef int64_t rnr_wait_of_code(uint32_t code) noexcept nogil
# Of times that count, which they do once a time was handed in after the last frame.
cdef int64_t next_event(const Connection *c) noexcept nogil


cdef inline void restart_timer(Connection *c, int64_t at) noexcept nogil:
    """Count from here on, if anything is sent and not acknowledged; otherwise stop."""
    if c.timeout_ns == 0 or c.unacked_psn == c.highest_psn:
        c.deadline = 0
    else:
        c.deadline = UNREAD if at == UNREAD else at + c.timeout_ns


cdef inline void start_timer(Connection *c, int64_t at) noexcept nogil:
    """Count from here on, if nothing counts yet."""
    if c.deadline == 0 and c.timeout_ns:
        c.deadline = UNREAD if at == UNREAD else at + c.timeout_ns


cdef inline void wait_for_receiver(Connection *c, int64_t at, uint32_t code) noexcept nogil:
    """The other end has no receive request: send nothing for the time that it named."""
    c.rnr_until = -rnr_wait_of_code(code) if at == UNREAD else at + rnr_wait_of_code(code)
    # what waits to be sent is not waiting for an answer
    c.deadline = 0


cdef inline bint timer_expired(Connection *c, int64_t at) noexcept nogil:
    """Whether the oldest packet has waited too long. The timer stands still then, until something is sent again."""
    if c.deadline == 0 or at == UNREAD:
        return False
    if c.deadline == UNREAD:
        c.deadline = at + c.timeout_ns
    if at < c.deadline:
        return False
    c.deadline = 0
    c.counters.timeouts += 1
    return True


cdef inline bint still_waits(Connection *c, int64_t at) noexcept nogil:
    """Whether the other end has asked for a pause that is not over."""
    if c.rnr_until < 0 and at != UNREAD:
        c.rnr_until = at - c.rnr_until
    if c.rnr_until and (at == UNREAD or at < c.rnr_until):
        return True
    c.rnr_until = 0
    return False
