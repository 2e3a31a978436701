"""An interrupt as a file descriptor: wait for it without the GIL, and let the next one come."""

from libc.stdint cimport int64_t, uint64_t


cdef struct Alarm:
    int fd                # readable once it has fired; -1 once closed
    size_t report         # bytes that one read of it takes
    int unmask_fd         # where it stays masked after it fired: what to write, and where, to unmask it; -1: nothing
    int64_t unmask_at     # -1: at no offset
    char[8] unmask_data
    size_t unmask_size
    size_t unmask_keeps   # leading bytes of it that are read first, and written back as they are
    uint64_t fired


cdef int alarm_wait(Alarm *alarm, int64_t deadline) noexcept nogil
cdef int alarm_unmask(Alarm *alarm) noexcept nogil


cdef class Interrupt:
    cdef Alarm alarm
    cdef readonly str kind        # msix, msi or intx
    cdef object on_close
