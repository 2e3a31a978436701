# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Sending with MSG_ZEROCOPY: the operations that take the place of a socket path's own.

Messages are built in the path's pinned slots, used in turn. A slot is built in again only when the kernel has said that
it is done with it. What it has said is read when a received message is given back: of a ping-pong's client that is
after its time was taken, of its server after the answer has left. A sender that receives nothing, or finds too few
slots free, reads in `room`. What the kernel copied after all it says in the same notifications.
"""

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, ETIMEDOUT
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t

from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of
from cython_ext.core.transport cimport Ops
from cython_ext.headers.sys_socket cimport MSG_DONTWAIT, MSG_NOSIGNAL, MSG_ZEROCOPY, send
from cython_ext.sockets.waiting cimport SPIN, Waiter
from cython_ext.sockets.zerocopy cimport CALLS, Call, ZeroCopy, harvest, wait_notified


cdef inline bint is_blocked(const ZeroCopy *z) noexcept nogil:
    return z.held[z.next] != 0 or z.open >= CALLS // 2


cdef int wait_for_slot(ZeroCopy *z, int fd, int64_t patience_ns) noexcept nogil:
    """Until the next slot is free: 1; 0 when patience ended; or -errno."""
    cdef int64_t since = 0
    cdef int status = 0
    if is_blocked(z):
        status = harvest(z, fd)
    while status == 0 and is_blocked(z):
        if since == 0:
            since = now()
        elif now() - since >= patience_ns:
            return 0
        status = wait_notified(z, fd, patience_ns)
    return 1 if status == 0 else status


cdef void count_call(ZeroCopy *z, uint32_t length) noexcept nogil:
    """A sending call of the next slot took `length` bytes."""
    cdef Call *call = &z.made[z.calls & (CALLS - 1)]
    call.bytes = length
    call.slot = z.next
    z.held[z.next] += 1
    z.calls += 1
    z.open += 1
    z.asked += length


cdef char *outgoing(void *me, uint32_t k) noexcept nogil:
    cdef ZeroCopy *z = (<Waiter *> me).zero
    return z.base + ((z.next + k) % z.slots) * z.stride


cdef inline int free_slots(const ZeroCopy *z, int most) noexcept nogil:
    cdef int count = 0
    while count < most and z.held[(z.next + <uint32_t> count) % z.slots] == 0:
        count += 1
    return count


cdef int room(void *me) noexcept nogil:
    """As many messages as the path has room for, and free slots one behind the other."""
    cdef Waiter *w = <Waiter *> me
    cdef ZeroCopy *z = w.zero
    cdef int most = min(z.path_room(me), <int> z.slots)
    cdef int count, status
    if most <= 0:
        return most
    status = wait_for_slot(z, w.fd, w.patience_ns)
    if status <= 0:
        return status
    count = free_slots(z, most)
    if count < most:
        status = harvest(z, w.fd)
        if status < 0:
            return status
        count = free_slots(z, most)
    return count


cdef int post_one(Waiter *w, ZeroCopy *z) noexcept nogil:
    """Send the next slot's message: 0 or -errno. A datagram goes out in one call, a stream may need several."""
    cdef int flags = MSG_ZEROCOPY | MSG_NOSIGNAL | (MSG_DONTWAIT if w.manner == SPIN else 0)
    cdef char *message = z.base + z.next * z.stride
    cdef size_t done = 0, length = length_of(z.lengths, message)
    cdef int64_t since = 0
    cdef ssize_t sent
    cdef int error
    while done < length:
        # A stream may take a message in thousands of calls, and there is room to note CALLS that are not settled.
        if z.open >= CALLS // 2:
            if since == 0:
                since = now()
            elif now() - since > z.limit_ns:
                return -ETIMEDOUT
            error = wait_notified(z, w.fd, w.patience_ns)
            if error < 0:
                return error
            continue
        sent = send(w.fd, message + done, length - done, flags)
        if sent > 0:
            count_call(z, <uint32_t> sent)
            done += <size_t> sent
            since = 0
            continue
        error = c_errno
        if error not in (EAGAIN, EINTR, ENOBUFS):
            return -error
        if since == 0:
            since = now()
        elif now() - since > z.limit_ns:
            return -error if error == ENOBUFS else -ETIMEDOUT
        if error == ENOBUFS:
            # as many notifications are owed as the socket's option memory has room for
            error = wait_notified(z, w.fd, w.patience_ns)
            if error < 0:
                return error
    return 0


cdef int post(void *me, uint32_t count) noexcept nogil:
    cdef Waiter *w = <Waiter *> me
    cdef ZeroCopy *z = w.zero
    cdef uint32_t _
    cdef int status
    for _ in range(count):
        status = post_one(w, z)
        if status < 0:
            return status
        z.next = (z.next + 1) % z.slots
    z.posted[0] += count
    return <int> count


cdef int release(void *me, uint32_t count) noexcept nogil:
    """As the path; and a look at what the kernel has done with."""
    cdef Waiter *w = <Waiter *> me
    cdef int status = w.zero.path_release(me, count)
    return status if status < 0 else harvest(w.zero, w.fd)


cdef int finish(void *me) noexcept nogil:
    """As the path, and then until the kernel has done with every buffer, or nothing was said for a while."""
    cdef Waiter *w = <Waiter *> me
    cdef ZeroCopy *z = w.zero
    cdef int status = z.path_finish(me)
    cdef int64_t since = now()
    cdef uint32_t before
    while z.open and now() - since < w.patience_ns:
        before = z.open
        # whatever the queue says now is the connection's end, and no longer the trial's
        if wait_notified(z, w.fd, w.patience_ns) < 0:
            break
        if z.open != before:
            since = now()
    return status


cdef void install(ZeroCopy *z, Ops *ops) noexcept:
    """Put these operations in front of the path's own, which `ops` holds."""
    z.path_room = ops.room
    z.path_release = ops.release
    z.path_finish = ops.finish
    ops.outgoing = outgoing
    ops.room = room
    ops.post = post
    ops.release = release
    ops.finish = finish
