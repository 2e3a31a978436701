# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Waiting for completions with as few system calls as verbs allow.

Polling reads mapped memory. Waiting by event goes: look; ask for an event (one system call); look again, because a
completion may have come in between; sleep in a plain blocking read of the channel (one system call). An end asks when
it begins to wait, so a client's question lies in its round trip, as it does with perftest's tools. Nothing else is
called: no poll(2) with a time limit before the read. What bounds the sleep is a beat that interrupts this thread every
BEAT_NS: the read ends with EINTR.
"""

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int64_t

from cython_ext.core.beat cimport beats_here, start_beat, stop_beat
from cython_ext.core.clock cimport LOOKS, now
from cython_ext.headers.infiniband_verbs cimport (
    ibv_ack_cq_events,
    ibv_cq,
    ibv_get_cq_event,
    ibv_poll_cq,
    ibv_req_notify_cq,
    ibv_wc,
)

cdef extern from *:
    """
    #include <poll.h>
    #include <time.h>

    /* Readable, or `ns` nanoseconds over. */
    static int hwrx_readable(int fd, long long ns)
    {
        struct pollfd one = {fd, POLLIN, 0};
        struct timespec left = {ns / 1000000000, ns % 1000000000};
        return ppoll(&one, 1, &left, NULL);
    }
    """
    int hwrx_readable(int fd, long long ns) nogil

cdef enum:
    EVENTS_AN_ACK = 512


cdef int arm(Side *side) noexcept nogil:
    """Ask for an event at the next completion, unless one was asked for already. Look at the queue afterwards."""
    cdef int error
    if side.channel == NULL or side.armed:
        return 0
    error = ibv_req_notify_cq(side.cq, 0)
    if error:
        return -error if error > 0 else error
    side.armed = True
    return 0


cdef void acknowledge(Side *side) noexcept nogil:
    """Before its queue is destroyed: ibv_destroy_cq waits for the acknowledgement of each event."""
    if side.unacked:
        ibv_ack_cq_events(side.cq, side.unacked)
        side.unacked = 0


cdef inline int take_event(Side *side) noexcept nogil:
    cdef ibv_cq *cq
    cdef void *context
    if ibv_get_cq_event(side.channel, &cq, &context) != 0:
        return -errno
    side.armed = False
    side.unacked += 1
    if side.unacked >= EVENTS_AN_ACK:
        acknowledge(side)
    return 0


cdef int spin(Side *side, ibv_wc *wc, int most, int64_t deadline) noexcept nogil:
    cdef unsigned int spins = 0
    cdef int n
    while True:
        n = ibv_poll_cq(side.cq, most, wc)
        if n != 0:
            return n if n > 0 else -EIO
        spins += 1
        if spins % LOOKS == 0 and now() >= deadline:
            return 0


cdef int wait_cq(Side *side, Beat *beat, ibv_wc *wc, int most) noexcept nogil:
    """Wait as the side was told to, for BEAT_NS at most."""
    cdef int status
    cdef int n = ibv_poll_cq(side.cq, most, wc)
    if n != 0:
        return n if n > 0 else -EIO
    if side.channel == NULL:
        return spin(side, wc, most, now() + BEAT_NS)
    if not beats_here(beat):
        stop_beat(beat)
        status = start_beat(beat, BEAT_NS)
        if status < 0:
            return status
    while True:
        if not side.armed:
            status = arm(side)
            if status < 0:
                return status
            n = ibv_poll_cq(side.cq, most, wc)
            if n != 0:
                return n if n > 0 else -EIO
        status = take_event(side)
        n = ibv_poll_cq(side.cq, most, wc)
        if n != 0:
            return n if n > 0 else -EIO
        if status < 0:
            return 0 if status == -EINTR else status
        # the event was that of a completion already taken: ask for the next


cdef int wait_cq_until(Side *side, ibv_wc *wc, int most, int64_t deadline) noexcept nogil:
    """The same until a time of CLOCK_MONOTONIC; a time that has passed means one look."""
    cdef int64_t left
    cdef int status
    cdef int n = ibv_poll_cq(side.cq, most, wc)
    if n != 0:
        return n if n > 0 else -EIO
    if side.channel == NULL:
        return spin(side, wc, most, deadline)
    if deadline <= now():
        return 0
    while True:
        status = arm(side)
        if status < 0:
            return status
        n = ibv_poll_cq(side.cq, most, wc)
        if n != 0:
            return n if n > 0 else -EIO
        left = deadline - now()
        if left <= 0:
            return 0
        status = hwrx_readable(side.channel.fd, left)
        if status < 0 and errno != EINTR:
            return -errno
        if status > 0:
            status = take_event(side)
            if status < 0 and status != -EINTR:
                return status
        n = ibv_poll_cq(side.cq, most, wc)
        if n != 0:
            return n if n > 0 else -EIO
