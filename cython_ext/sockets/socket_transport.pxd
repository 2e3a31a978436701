"""What the socket paths have in common: the socket, how it waits, and the pinned buffers of both directions."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport Transport
from cython_ext.sockets.waiting cimport Waiter
from cython_ext.sockets.zerocopy cimport ZeroCopy


cdef class SocketTransport(Transport):
    cdef object sock
    cdef object epoll
    cdef dict notes                       # what `chosen` says
    cdef str peer                         # the other end's address, for sentences
    cdef ZeroCopy *zero                   # NULL where sending copies
    cdef Waiter *waiter                   # in the subclass's state; its fd is -1 once closed
    cdef readonly PinnedBuffer received   # messages are seen in here
    cdef readonly PinnedBuffer built      # messages are built in here

    cdef int set_up(self, Waiter *waiter, object sock, str manner, double patience, object notes) except -1
    cdef int pin(self, size_t receive, size_t send, bint huge) except -1
    cdef int wait_on(self, object sock) except -1
    cdef int send_zerocopy(self, size_t stride, uint32_t slots, uint64_t *posted, int64_t limit_ns) except -1
