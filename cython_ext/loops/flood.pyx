# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One-way floods over any path: a sender that waits for nobody, and readers that take what comes.

The loops of a trial (loop.pyx) keep a window or wait for answers; what is wanted here is the opposite. These call the
same `Ops`, write the same payload, and hold no GIL, touch no Python object and allocate nothing from the first message.
Message n goes to endpoint (n / batch) modulo the endpoints, so that each of several sockets is offered the same.
"""

import numpy as np

from libc.errno cimport EINVAL, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, TIMER_ABSTIME, clock_nanosleep, timespec

from cython_ext.core.clock cimport now
from cython_ext.core.payload cimport GOOD, OTHER_TRIAL, SMALLEST, glance, sequence_of, stamp
from cython_ext.core.transport cimport FINISHED, Delivery, Ops, Transport
from cython_ext.core.trial cimport MOST

from cython_ext.core.trial import touched

cdef enum:
    ENDPOINTS = 64
    SPIN_NS = 100_000        # before a due time: a sleep would end late
    LOOK_NS = 20_000_000     # how often a reader that gets nothing looks whether it is to end
    STUCK_NS = 10_000_000_000
    SETTLE = 100             # looks at a path whose sender has done, so that it hands out what it still holds
    SETTLE_NS = 500_000      # between two of them


cdef struct Counts:
    uint64_t taken           # good ones, each counted once
    uint64_t duplicated
    uint64_t corrupt
    uint64_t stale           # of another trial
    uint64_t wrong_size


cdef class Wave:
    """What is sent and what comes of it; shared by one sender and any number of readers, each in a thread of its own.

    `sent` and `taken`: int64 arrays of CLOCK_MONOTONIC ns by sequence number, 0 where it was not. They belong to the
    wave.

    :param messages: how many there are at most
    :param size: bytes of each
    :param trial: stands in each payload
    :param batch: messages that go to one endpoint in one post
    :raises ValueError: if there are no messages, or `size` is too small for the header
    """

    cdef uint64_t messages
    cdef uint32_t size
    cdef uint32_t trial
    cdef uint32_t batch
    cdef int64_t *sent_at
    cdef int64_t *taken_at
    cdef volatile bint ending
    cdef volatile uint64_t done
    cdef readonly object sent
    cdef readonly object taken

    def __init__(self, *, uint64_t messages, uint32_t size, uint32_t trial, uint32_t batch):
        if messages < 1:
            raise ValueError("a flood has at least one message")
        if size < SMALLEST:
            raise ValueError(f"a message has at least {SMALLEST} bytes, not {size}")
        self.messages = messages
        self.size = size
        self.trial = trial
        self.batch = max(1, min(batch, MOST))
        self.sent = touched(messages, np.int64)
        self.taken = touched(messages, np.int64)
        cdef int64_t[::1] stamps = self.sent
        self.sent_at = &stamps[0]
        stamps = self.taken
        self.taken_at = &stamps[0]

    @property
    def posted(self) -> int:
        """Messages that were handed to the path so far."""
        return self.done

    def end(self):
        """Let the sender stop, and the readers as soon as nothing has come for their quiet time."""
        self.ending = True


# --- sending -------------------------------------------------------------------------------------------------------

cdef void wait_until(int64_t due) noexcept nogil:
    """Sleep as long as a sleep is exact enough, then look at the clock."""
    cdef timespec t
    cdef int64_t early = due - SPIN_NS
    if now() < early:
        t.tv_sec = early // 1_000_000_000
        t.tv_nsec = early % 1_000_000_000
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)
    while now() < due:
        pass


cdef int post_all(Wave w, const Ops *ops, uint64_t first, uint32_t count) noexcept nogil:
    """Build and post so many messages: `count`, fewer where the wave was ended meanwhile, or an error."""
    cdef uint32_t done = 0, k, together
    cdef int64_t at, since = 0
    cdef int room, status
    while done < count:
        room = ops.room(ops.me)
        if room < 0:
            return room
        if room == 0:
            if w.ending:
                return <int> done
            if since == 0:
                since = now()
            elif now() - since > STUCK_NS:
                return -ETIMEDOUT
            continue
        since = 0
        together = min(<uint32_t> room, count - done)
        for k in range(together):
            at = now()
            w.sent_at[first + done + k] = at
            stamp(ops.outgoing(ops.me, k), w.size, first + done + k, w.trial, at)
        status = ops.post(ops.me, together)
        if status < 0:
            return status
        done += together
        w.done = first + done
    return <int> count


cdef int send_wave(Wave w, const Ops *ops, uint32_t endpoints, double gap_ns, int64_t until) noexcept nogil:
    cdef int64_t start = now()
    cdef uint64_t sent = 0
    cdef uint32_t turn = 0, count
    cdef int status
    while sent < w.messages and not w.ending:
        if gap_ns > 0:
            wait_until(start + <int64_t> (gap_ns * sent))
        if until and now() >= until:
            break
        count = <uint32_t> min(<uint64_t> w.batch, w.messages - sent)
        status = post_all(w, &ops[turn], sent, count)
        if status < 0:
            return status
        sent += <uint64_t> status
        turn += 1
        if turn == endpoints:
            turn = 0
    return 0


cdef int settle(const Ops *ops) noexcept nogil:
    """A path that sends in the background goes on when it is asked for room; give it the time to send all."""
    cdef int status, _
    for _ in range(SETTLE):
        status = ops.room(ops.me)
        if status < 0:
            return status
        wait_until(now() + SETTLE_NS)
    return 0


def send(Wave wave not None, list transports not None, double gap_ns, int64_t seconds_ns):
    """Send the wave: everything as fast as the path takes it, or a message each so many nanoseconds.

    A sender that falls behind its schedule does not skip: the next messages follow at once.

    :param transports: endpoints that are used in turn
    :param gap_ns: nanoseconds from message to message; 0: none
    :param seconds_ns: after this time it ends, whatever was sent by then; 0: no limit
    :return: 0, or the status of a failed operation, which `transports[i].explain` tells in words
    :raises ValueError: if there are too many endpoints, or one is for messages of another size
    """
    cdef Ops[ENDPOINTS] ops
    cdef uint32_t count = <uint32_t> len(transports)
    cdef Transport transport
    cdef int status
    cdef int64_t until
    if not 1 <= count <= ENDPOINTS:
        raise ValueError(f"a flood has 1 to {ENDPOINTS} endpoints, not {count}")
    for number, transport in enumerate(transports):
        if transport.size != wave.size:
            raise ValueError(f"the endpoint is for messages of {transport.size} bytes, the wave has {wave.size}")
        ops[<uint32_t> number] = transport.ops
    with nogil:
        until = now() + seconds_ns if seconds_ns else 0
        status = send_wave(wave, ops, count, gap_ns, until)
        if status == 0:
            status = settle(&ops[0])
    return status


# --- receiving -----------------------------------------------------------------------------------------------------

cdef void take(Wave w, Counts *counts, const Delivery *d, int64_t at) noexcept nogil:
    cdef uint64_t sequence
    cdef int verdict
    if d.size != w.size:
        counts.wrong_size += 1
        return
    verdict = glance(d.data, d.size, w.trial)
    if verdict != GOOD:
        if verdict == OTHER_TRIAL:
            counts.stale += 1
        else:
            counts.corrupt += 1
        return
    sequence = sequence_of(d.data, d.size)
    if sequence >= w.messages:
        counts.corrupt += 1
    elif w.taken_at[sequence]:
        counts.duplicated += 1
    else:
        w.taken_at[sequence] = at
        counts.taken += 1


cdef int read_wave(Wave w, const Ops *ops, int64_t quiet_ns, int64_t work_ns, Counts *counts) noexcept nogil:
    cdef Delivery[MOST] batch
    cdef int64_t at, last = now(), busy
    cdef int status, k
    while True:
        status = ops.receive_until(ops.me, batch, w.batch, now() + LOOK_NS)
        at = now()
        if status == FINISHED:
            return 0
        if status < 0:
            return status
        if status == 0:
            if w.ending and at - last > quiet_ns:
                return 0
            continue
        last = at
        for k in range(status):
            take(w, counts, &batch[k], at)
            if work_ns:
                busy = now() + work_ns
                while now() < busy:
                    pass
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status


def read(Wave wave not None, Transport transport not None, int64_t quiet_ns, int64_t work_ns=0):
    """Take messages until the wave was ended and nothing has come for `quiet_ns`.

    :param quiet_ns: nanoseconds
    :param work_ns: the reader does that much work of its own with each message
    :return: `(status, counts)`: 0 or the status of a failed operation, and a dict of taken, duplicated, corrupt, stale,
        wrong_size
    """
    cdef Counts counts = Counts(0, 0, 0, 0, 0)
    cdef int status
    cdef const Ops *ops = &transport.ops
    if transport.size != wave.size:
        return -EINVAL, dict(counts)
    with nogil:
        status = read_wave(wave, ops, quiet_ns, work_ns, &counts)
    return status, dict(counts)
