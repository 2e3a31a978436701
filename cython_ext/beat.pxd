"""A timer that interrupts the calling thread's blocking calls: patience that costs nothing while messages come."""

from libc.stdint cimport int64_t
from posix.types cimport timer_t


cdef struct Beat:
    timer_t timer
    bint beating


cdef int start_beat(Beat *beat, int64_t period_ns) noexcept nogil
cdef void stop_beat(Beat *beat) noexcept nogil
