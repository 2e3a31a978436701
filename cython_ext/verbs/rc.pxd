"""What READ shares with the atomics: our own completions are the deliveries, and the other end's memory is passive."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.core.transport cimport Delivery

cdef enum:
    POISON = 0xA5      # neither a magic's nor a sequence number's bytes at those places
    POISONED = 24      # bytes: the header


# Parts of `Ops`; `me` is a State.
cdef int read_room(void *me) noexcept nogil
cdef int read_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int read_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
cdef int read_release(void *me, uint32_t count) noexcept nogil
cdef int read_finish(void *me) noexcept nogil
