"""How a socket waits for what comes: the manners that the socket paths share.

BLOCK   the receiving call itself sleeps, until a beat interrupts it: one system call a message. Busy polling is this
        manner on a socket that has SO_BUSY_POLL.
EPOLL   epoll_pwait2, then a receiving call that does not wait: two system calls a message.
SELECT  pselect, then a receiving call that does not wait.
SPIN    receiving calls that do not wait, over and over.
"""

from libc.errno cimport EINTR, ENOSYS, errno
from libc.stdint cimport int64_t
from posix.time cimport timespec

from cython_ext.core.beat cimport Beat, start_beat
from cython_ext.core.clock cimport now
from cython_ext.headers.sys_epoll cimport epoll_event, epoll_pwait2
from cython_ext.headers.sys_poll cimport POLLIN, pollfd, ppoll
from cython_ext.headers.sys_select cimport FD_SET, FD_ZERO, fd_set, pselect
from cython_ext.sockets.zerocopy cimport ZeroCopy, harvest

cdef enum:
    BLOCK = 0
    EPOLL = 1
    SELECT = 2
    SPIN = 3


cdef struct Waiter:
    int fd                # -1 once closed: every call then fails with EBADF
    int epoll             # watches fd; -1 in other manners
    int manner
    int64_t patience_ns   # how long one call of `receive` waits at least; half as long again at most
    ZeroCopy *zero        # NULL unless sent buffers are the kernel's until the error queue says otherwise
    Beat beat             # BLOCK: interrupts the thread that runs the loop, twice a patience


cdef inline int be_patient(Waiter *w) noexcept nogil:
    """Before a call that may block: 0 once the calling thread has its beat, or -errno."""
    if w.beat.beating or w.manner != BLOCK:
        return 0
    return start_beat(&w.beat, w.patience_ns // 2)


cdef inline int readable(const Waiter *w, int64_t timeout_ns) noexcept nogil:
    """Sleep until fd has something to receive: 1; 0 when the time has passed; or -errno, -EINTR when a signal came.

    What BLOCK does here is ppoll: it is asked only where an exact deadline is wanted.
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
            return -errno
    elif w.manner == SELECT:
        FD_ZERO(&files)
        FD_SET(w.fd, &files)
        status = pselect(w.fd + 1, &files, NULL, NULL, &limit, NULL)
        return status if status >= 0 else -errno
    one.fd = w.fd
    one.events = POLLIN
    status = ppoll(&one, 1, &limit, NULL)
    return status if status >= 0 else -errno


cdef inline int to_receive(Waiter *w) noexcept nogil:
    """Waiting ended: 1 where there is something to receive; -EINTR where it was the error queue, now emptied."""
    cdef timespec none
    cdef pollfd one
    cdef int status = harvest(w.zero, w.fd)
    if status < 0:
        return status
    none.tv_sec = none.tv_nsec = 0
    one.fd = w.fd
    one.events = POLLIN
    one.revents = 0
    return 1 if ppoll(&one, 1, &none, NULL) == 1 and one.revents & POLLIN else -EINTR


cdef inline int readable_patiently(Waiter *w) noexcept nogil:
    """As `readable` for the path's patience, whatever signals come meanwhile: only time ends it."""
    cdef int status = readable(w, w.patience_ns)
    cdef int64_t deadline, left
    if status == 1 and w.zero != NULL:
        status = to_receive(w)
    if status != -EINTR:
        return status
    deadline = now() + w.patience_ns
    while status == -EINTR:
        left = deadline - now()
        status = readable(w, left) if left > 0 else 0
        if status == 1 and w.zero != NULL:
            status = to_receive(w)
    return status


cdef inline int readable_by(Waiter *w, int64_t timeout_ns) noexcept nogil:
    """As `readable`, with a time limit that holds to the microsecond (the loops see to the thread's timer slack)."""
    cdef int status = readable(w, timeout_ns)
    if status == 1 and w.zero != NULL:
        # or the error queue alone would end every wait
        status = harvest(w.zero, w.fd)
        return 1 if status == 0 else status
    return status


cdef inline int wait_until(Waiter *w, int64_t deadline) noexcept nogil:
    """Behind a look that found nothing: 1 to look again, 0 once the deadline has passed, or -errno."""
    cdef int64_t left = deadline - now()
    cdef int status
    if left <= 0:
        return 0
    if w.manner == SPIN:
        return 1
    status = readable_by(w, left)
    return status if status < 0 and status != -EINTR else 1
