"""An interrupt as a file descriptor: wait for it without the GIL, and let the next one come.

Each is one event of an edge-triggered epoll(7) on the descriptor. So the count that it has need not be read: to wait is
one system call.
"""

from libc.stdint cimport int64_t, uint64_t


cdef struct Alarm:
    int fd                # readable once it has fired; -1 once closed
    int epoll             # that watches it
    int unmask_fd         # where it stays masked after it fired: what to write, and where, to unmask it; -1: nothing
    int64_t unmask_at     # -1: at no offset
    char[8] unmask_data
    size_t unmask_size
    size_t unmask_keeps   # leading bytes of it that are read first, and written back as they are
    uint64_t fired


# Sleep until it fires: 1; until CLOCK_MONOTONIC, which says `at` now, reaches `deadline`: 0; or -errno.
cdef int alarm_wait(Alarm *alarm, int64_t at, int64_t deadline) noexcept nogil
cdef int alarm_unmask(Alarm *alarm) noexcept nogil


cdef class Interrupt:
    cdef Alarm alarm
    cdef readonly str kind        # msix, msi or intx
    cdef object epoll             # select.epoll
    cdef object on_close
