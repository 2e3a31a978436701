"""<poll.h>: with a time limit in nanoseconds (_GNU_SOURCE, which Python's own headers define)."""

from posix.signal cimport sigset_t
from posix.time cimport timespec


cdef extern from "poll.h" nogil:
    enum: POLLIN

    struct pollfd:
        int fd
        short events
        short revents

    int ppoll(pollfd *files, unsigned long count, const timespec *timeout, const sigset_t *mask)
