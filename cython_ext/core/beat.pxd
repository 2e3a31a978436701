"""A timer that interrupts the calling thread's blocking calls: patience that costs nothing while messages come."""

from libc.stdint cimport int64_t
from posix.types cimport timer_t


cdef extern from "pthread.h" nogil:
    unsigned long pthread_self()


cdef struct Beat:
    timer_t timer
    unsigned long owner   # the thread that it interrupts
    bint beating


cdef inline bint beats_here(const Beat *beat) noexcept nogil:
    """Whether it interrupts the calling thread."""
    return beat.beating and beat.owner == pthread_self()


cdef int start_beat(Beat *beat, int64_t period_ns) noexcept nogil
cdef void stop_beat(Beat *beat) noexcept nogil
