# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What receiving costs where the messages are there already, and what carrying them does: for benchmarks."""

from libc.errno cimport ENOBUFS
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.clock cimport now
from cython_ext.core.payload cimport stamp
from cython_ext.core.transport cimport Delivery, Ops, Transport
from cython_ext.frames.link cimport Frame
from cython_ext.nics.e1000e_ring cimport RxRing, rx_receive, rx_release

cdef enum:
    MOST = 256


def drain(RxRing ring not None, uint32_t batch=64):
    """Take all frames of a ring, look at none, give them back.

    :param batch: frames of one batch, 256 at most
    :return: `(frames, ns)`, the clock read once before and once after
    :raises ValueError: if the ring is closed
    """
    cdef Frame[MOST] frames
    cdef uint32_t taken, wanted = max(1, min(batch, <uint32_t> MOST))
    cdef uint64_t total = 0
    cdef int64_t before, after
    ring.check()
    with nogil:
        before = now()
        while True:
            taken = rx_receive(&ring.rx, frames, wanted)
            if taken == 0:
                break
            rx_release(&ring.rx, taken)
            total += taken
        after = now()
    return total, after - before


def receive(Transport transport not None, uint64_t count, uint32_t batch=64):
    """Receive and release `count` messages, in batches, and look at none. Waits as the path waits.

    :param batch: messages of one batch, 256 at most
    :return: `(messages, ns)`; fewer than `count` if the path's patience ended
    :raises OSError: if the path fails
    """
    cdef Delivery[MOST] out
    cdef const Ops *ops = &transport.ops
    cdef uint32_t wanted = max(1, min(batch, <uint32_t> MOST))
    cdef uint64_t total = 0
    cdef int64_t before, after
    cdef int status = 1
    with nogil:
        before = now()
        while total < count:
            status = ops.receive(ops.me, out, <uint32_t> min(<uint64_t> wanted, count - total))
            if status <= 0:
                break
            total += <uint64_t> status
            status = ops.release(ops.me, <uint32_t> status)
            if status < 0:
                break
        after = now()
    if status < 0:
        raise OSError(-status, transport.explain(status))
    return total, after - before


def post(Transport transport not None, uint32_t count):
    """Post `count` messages at once, as they stand in the path's buffers; nothing is built.

    :param count: at most as many as there is room for
    :return: `(messages, ns)`, the clock read once before and once after
    :raises OSError: if the path fails, or has no room for so many
    """
    cdef const Ops *ops = &transport.ops
    cdef int64_t before, after
    cdef int status
    with nogil:
        status = ops.room(ops.me)
        if status >= 0:
            status = -ENOBUFS if status < <int> count else 0
        before = now()
        if status == 0:
            status = ops.post(ops.me, count)
        after = now()
    if status < 0:
        raise OSError(-status, transport.explain(status))
    return status, after - before


def carry(Transport sender not None, Transport receiver not None, uint64_t count, uint32_t trial, uint32_t batch=64):
    """Build, post, receive and release `count` messages, a batch at a time in one thread.

    The clock is read once before and once after all: their send time is that of the first one.

    :param trial: stands in each payload
    :param batch: messages of one batch, which must fit between the two ends
    :return: `(messages, ns)`; fewer than `count` if the receiver's patience ended
    :raises OSError: if the path fails
    """
    cdef Delivery[MOST] out
    cdef const Ops *to = &sender.ops
    cdef const Ops *by = &receiver.ops
    cdef uint32_t wanted = max(1, min(batch, <uint32_t> MOST)), posted, k
    cdef uint64_t total = 0, first
    cdef int64_t before, after
    cdef int status = 1
    with nogil:
        before = now()
        while total < count and status > 0:
            first = total
            status = to.room(to.me)
            if status <= 0:
                break
            posted = <uint32_t> min(<uint64_t> min(<uint32_t> status, wanted), count - total)
            for k in range(posted):
                stamp(to.outgoing(to.me, k), sender.size, first + k, trial, before)
            status = to.post(to.me, posted)
            while status > 0 and total < first + posted:
                status = by.receive(by.me, out, <uint32_t> (first + posted - total))
                if status > 0:
                    total += <uint64_t> status
                    status = min(by.release(by.me, <uint32_t> status), 0)
                    status = 1 if status == 0 else status
        after = now()
    if status < 0:
        raise OSError(-status, receiver.explain(status))
    return total, after - before
