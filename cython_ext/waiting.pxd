"""How a socket waits for what comes: the manners that the socket paths share.

BLOCK   the receiving call itself sleeps, as long as the socket's SO_RCVTIMEO: one system call a message. Busy polling
        is this manner on a socket that has SO_BUSY_POLL.
EPOLL   epoll_pwait2, then a receiving call that does not wait: two system calls a message.
SELECT  pselect, then a receiving call that does not wait.
SPIN    receiving calls that do not wait, over and over.
"""

from libc.errno cimport EINTR, ENOSYS, errno
from libc.stdint cimport int64_t
from posix.time cimport timespec

from cython_ext.sys_epoll cimport epoll_event, epoll_pwait2
from cython_ext.sys_poll cimport POLLIN, pollfd, ppoll
from cython_ext.sys_select cimport FD_SET, FD_ZERO, fd_set, pselect

cdef enum:
    BLOCK = 0
    EPOLL = 1
    SELECT = 2
    SPIN = 3

cdef enum:
    LOOKS = 16  # of a spinning receiver between two looks at the clock


cdef struct Waiter:
    int fd                # -1 once closed: every call then fails with EBADF
    int epoll             # watches fd; -1 in other manners
    int manner
    int64_t patience_ns   # how long one call of `receive` waits


cdef inline int readable(const Waiter *w, int64_t timeout_ns) noexcept nogil:
    """Sleep until fd has something to receive: 1; 0 when the time has passed or a signal came; or -errno.

    What BLOCK does here is ppoll: it is asked only where an exact deadline is wanted, which SO_RCVTIMEO cannot give.
    """
    cdef timespec limit
    cdef epoll_event event
    cdef fd_set files
    cdef pollfd one
    cdef int status
    limit.tv_sec = timeout_ns // 1000000000
    limit.tv_nsec = timeout_ns % 1000000000
    if w.manner == EPOLL:
        status = epoll_pwait2(w.epoll, &event, 1, &limit, NULL)
        if status >= 0:
            return status
        if errno != ENOSYS:
            return 0 if errno == EINTR else -errno
    elif w.manner == SELECT:
        FD_ZERO(&files)
        FD_SET(w.fd, &files)
        status = pselect(w.fd + 1, &files, NULL, NULL, &limit, NULL)
        if status >= 0:
            return status
        return 0 if errno == EINTR else -errno
    one.fd = w.fd
    one.events = POLLIN
    status = ppoll(&one, 1, &limit, NULL)
    if status >= 0:
        return status
    return 0 if errno == EINTR else -errno
