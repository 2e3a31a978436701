"""CLOCK_MONOTONIC, the one clock of every path; the kernel's bpf_ktime_get_ns reads the same."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    # Of a spinning receiver, on any path, between two readings of the clock: a reading costs as much as ten looks at
    # memory, and 16 looks are over within a microsecond or, if they are system calls, a few.
    LOOKS = 16


cdef inline int64_t now() noexcept nogil:
    """Nanoseconds of CLOCK_MONOTONIC; a vDSO call, no system call where the clocksource allows it."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1000000000 + t.tv_nsec
