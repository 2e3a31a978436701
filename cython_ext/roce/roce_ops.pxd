"""The state of a path over a queue pair of our own, and what the loops call on it; `me` is a RoceState."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.lengths cimport Lengths
from cython_ext.core.transport cimport Delivery
from cython_ext.frames.link cimport Link
from cython_ext.headers.infiniband_verbs cimport ibv_wr_opcode
from cython_ext.roce.connection cimport Connection


cdef struct RoceState:
    Connection *c
    const Link *link
    ibv_wr_opcode verb
    # sending: a ring of `window` buffers, of which READ has the answers land
    char *out
    uint32_t out_key
    uint32_t size               # bytes of a message, or of the longest
    const Lengths *lengths      # of each
    uint32_t stride
    uint32_t window
    char *next_out              # the buffer of the next message
    char *behind_out            # the last one
    # the other end's memory, where WRITE and READ go
    uint64_t remote
    uint32_t remote_key
    uint32_t remote_slots
    uint32_t remote_stride
    uint32_t remote_slot
    # receiving: a ring of `slots` buffers
    char *landing
    uint32_t landing_key
    uint32_t landing_stride
    uint32_t slots
    uint32_t free_slot          # of the next receive request
    uint64_t taken              # messages handed out
    uint64_t total              # messages that this end is to receive, or to be asked for
    bint moves                  # messages land in place: their pages are given back to the link
    uint32_t looks              # at the link, free-running
    int64_t deadline            # of what is waited for; 0: the patience, from the first look that brings nothing
    int64_t patience_ns
    int64_t limit_ns


cdef char *roce_outgoing(void *me, uint32_t k) noexcept nogil
cdef int roce_room(void *me) noexcept nogil
cdef int roce_blind_room(void *me) noexcept nogil
cdef int roce_post(void *me, uint32_t count) noexcept nogil
cdef int roce_post_varying(void *me, uint32_t count) noexcept nogil
cdef int roce_finish(void *me) noexcept nogil
cdef int roce_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
cdef int roce_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int roce_release(void *me, uint32_t count) noexcept nogil
cdef int roce_write_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
cdef int roce_write_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int roce_blind_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int roce_write_release(void *me, uint32_t count) noexcept nogil
cdef int roce_read_room(void *me) noexcept nogil
cdef int roce_read_post(void *me, uint32_t count) noexcept nogil
cdef int roce_read_post_varying(void *me, uint32_t count) noexcept nogil
cdef int roce_read_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
cdef int roce_read_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int roce_read_release(void *me, uint32_t count) noexcept nogil
cdef int roce_read_finish(void *me) noexcept nogil
# Fill in what all requests have in common; once the other end is known.
cdef void prepare_requests(RoceState *s) noexcept nogil
# Post the next receive request, of the slot whose turn it is.
cdef void roce_post_receive(RoceState *s) noexcept nogil
