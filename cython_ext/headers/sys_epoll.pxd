"""<sys/epoll.h>."""

from libc.stdint cimport uint32_t
from posix.signal cimport sigset_t
from posix.time cimport timespec


cdef extern from "sys/epoll.h" nogil:
    enum: EPOLLIN
    enum: EPOLLOUT
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_MOD
    enum: EPOLL_CLOEXEC

    ctypedef union epoll_data_t:
        uint32_t u32

    struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout_ms)
    # Linux 5.11; a time limit in nanoseconds
    int epoll_pwait2(int epoll, epoll_event *events, int most, const timespec *timeout, const sigset_t *mask)
