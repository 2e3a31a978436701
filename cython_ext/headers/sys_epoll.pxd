"""<sys/epoll.h>."""

from libc.stdint cimport uint32_t
from posix.signal cimport sigset_t
from posix.time cimport timespec


cdef extern from "sys/epoll.h" nogil:
    struct epoll_event:
        uint32_t events

    # Linux 5.11; a time limit in nanoseconds
    int epoll_pwait2(int epoll, epoll_event *events, int most, const timespec *timeout, const sigset_t *mask)
