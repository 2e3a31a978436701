"""<sys/select.h>."""

from posix.signal cimport sigset_t
from posix.time cimport timespec


cdef extern from "sys/select.h" nogil:
    enum: FD_SETSIZE

    ctypedef struct fd_set:
        pass

    void FD_ZERO(fd_set *files)
    void FD_SET(int fd, fd_set *files)
    int pselect(int count, fd_set *readers, fd_set *writers, fd_set *others, const timespec *timeout,
                const sigset_t *mask)
