"""MSG_ZEROCOPY: the buffers that the kernel reads until the socket's error queue says that it has done with them.

Each sending call that took bytes has a number, counted from 0 on the socket; a notification is a range of numbers
(Documentation/networking/msg_zerocopy.rst). Messages are built in `slots` buffers, used in turn; a slot is free again
when every call that sent of it has been notified.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.lengths cimport Lengths


cdef enum:
    CALLS = 4096       # numbers of calls that are remembered, a power of two
    MOST_SLOTS = 64


cdef struct Call:
    uint32_t bytes
    uint32_t slot


cdef struct ZeroCopy:
    uint32_t slots
    uint32_t next             # slot that the next message is built in
    uint32_t calls            # sending calls so far, modulo 2^32 as the kernel counts them
    uint32_t open             # of these, not notified
    uint32_t[MOST_SLOTS] held  # by slot: calls that sent of it and are not notified
    Call[CALLS] made          # by number modulo CALLS
    uint64_t asked            # bytes that MSG_ZEROCOPY was asked for
    uint64_t copied           # of these, bytes that the kernel says it copied after all
    uint64_t notified         # notifications, each of one call or more
    # of the path that sends this way
    char *base                # first slot
    size_t stride             # from slot to slot
    const Lengths *lengths    # of each message
    int64_t limit_ns          # nothing taken by the other end for so long is an error
    uint64_t *posted          # the path's count of messages
    int (*path_room)(void *me) noexcept nogil
    int (*path_release)(void *me, uint32_t count) noexcept nogil
    int (*path_finish)(void *me) noexcept nogil


cdef int harvest(ZeroCopy *z, int fd) noexcept nogil
cdef int wait_notified(ZeroCopy *z, int fd, int64_t timeout_ns) noexcept nogil
