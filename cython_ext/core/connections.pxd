"""Many connections of one endpoint: what it offers the loop (loops/many.pyx), and what is counted of each of them.

A connection has one message under way at most: it is free until its next one is posted, and again when that is
answered, or given up on a path that can lose it.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cython_ext.core.transport cimport Delivery

cdef enum:
    NO_CONNECTION = 0xFFFFFFFF
    FREE = -1                # pending: nothing is under way


cdef struct Arrival:
    Delivery message
    uint32_t connection


cdef struct ManyOps:
    void *me
    # The buffer in which the connection's next message is to be built: 1, 0 if none came free in time, or an error.
    int (*outgoing)(void *me, uint32_t connection, char **message) noexcept nogil
    # Hand that message to the path: 1 or an error.
    int (*post)(void *me, uint32_t connection) noexcept nogil
    # Wait for messages of any connection, some 50 ms at most: how many of `most` came; 0; FINISHED; or an error.
    int (*receive)(void *me, Arrival *out, uint32_t most) noexcept nogil
    # Give all buffers back that the last `receive` handed out: 0 or an error.
    int (*release)(void *me) noexcept nogil
    # After the last post: wait until the path has no more use for our buffers.
    int (*finish)(void *me) noexcept nogil


cdef class Connections:
    cdef ManyOps ops
    cdef readonly uint32_t count
    cdef bint own_numbers           # atomics: an answer says how many came before it on its connection, not its number
    cdef int32_t *by_message        # a number each of all messages of the trial: on which connection it went
    cdef int64_t *pending           # a number each of the connections: of the message under way, or FREE
    cdef int64_t *sent_of           # messages that this end posted on it
    cdef int64_t *taken_of          # messages that came on it, each counted once: answers, or a server's questions
    cdef uint64_t strayed           # answers that came on another connection than their question went on
    cdef object arrays
    cdef uint64_t warmup
    cdef uint64_t messages
