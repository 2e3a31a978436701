"""Pieces of every loop: how it ends, room for the next message, and whose message an arrival is."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of
from cython_ext.core.payload cimport (
    GOOD,
    MAGIC,
    MAGIC_CHECK,
    OTHER_TRIAL,
    SMALLEST,
    glance,
    magic_of,
    sequence_of,
    verify,
)
from cython_ext.core.transport cimport Delivery, Ops
from cython_ext.core.trial cimport Plan, Trial

cdef enum:
    COMPLETE = 1
    LIMIT = 2
    NOTHING = 3  # of all that was sent, nothing came
    NO_SEQUENCE = -1


cdef inline bint is_checked(const Plan *plan, uint64_t sequence) noexcept nogil:
    """Whether this message of a stream or an open loop is checked in full. The two comparisons come in any case."""
    return (sequence < plan.exempt_from or sequence >= plan.exempt_to) and sequence % plan.check_every == 0


cdef inline bint wants_full(Trial t, const Delivery *d) noexcept nogil:
    return d.size >= SMALLEST and is_checked(&t.plan, sequence_of(d.data, d.size))


cdef inline bint fits(Trial t, const Delivery *d) noexcept nogil:
    """Whether it has the size of the message whose number it carries."""
    return d.size == length_of(&t.plan.lengths, d.data)


cdef inline void record(Trial t, int64_t *array, uint64_t sequence, int64_t at) noexcept nogil:
    if t.plan.warmup <= sequence < t.plan.warmup + t.plan.messages:
        array[sequence - t.plan.warmup] = at


cdef inline void record_answer(Trial t, uint64_t sequence, int64_t at) noexcept nogil:
    """The client's part: the answer to a message came, whether it was given up meanwhile or not."""
    t.tally.late += at - t.sent_at[sequence] > t.plan.patience_ns
    record(t, t.delivered_at, sequence, at)


cdef inline int64_t accept(Trial t, uint64_t sequence, uint32_t size) noexcept nogil:
    """Count a good message: its sequence number, or NO_SEQUENCE if it is not one of the trial, or came before."""
    cdef uint8_t bit
    if sequence >= t.total:
        t.tally.corrupt += 1
        return NO_SEQUENCE
    bit = <uint8_t> (1 << (sequence & 7))
    if t.seen[sequence >> 3] & bit:
        t.tally.duplicated += 1
        return NO_SEQUENCE
    t.seen[sequence >> 3] |= bit
    t.tally.delivered += 1
    t.tally.bytes += size
    if sequence < t.highest:
        t.tally.reordered += 1
    else:
        t.highest = sequence + 1
    return <int64_t> sequence


cdef inline int64_t recognise(Trial t, const Ops *ops, const Delivery *d, int64_t hint, bint in_full) noexcept nogil:
    """Whose message is this? Its sequence number, or NO_SEQUENCE if it is not of the trial; all are counted.

    `hint` is the sequence number asked for if the payload cannot carry it (READ: buffers filled beforehand).
    """
    cdef const Plan *plan = &t.plan
    cdef uint64_t sequence
    cdef int verdict
    # what is shorter than a header has bytes behind it that can be read: it lies in a slot
    if d.size != length_of(&plan.lengths, d.data):
        t.tally.wrong_size += 1
        return NO_SEQUENCE
    verdict = verify(MAGIC, d.data, d.size, plan.trial) if in_full else glance(d.data, d.size, plan.trial)
    if verdict != GOOD:
        if verdict == OTHER_TRIAL or magic_of(d.data) == MAGIC_CHECK:
            t.tally.stale += 1
        else:
            t.tally.corrupt += 1
        return NO_SEQUENCE
    sequence = sequence_of(d.data, d.size)
    if ops.modulo:
        if sequence != <uint64_t> hint % ops.modulo:
            t.tally.corrupt += 1
            return NO_SEQUENCE
        sequence = <uint64_t> hint
    t.tally.checked += in_full and sequence < t.total
    return accept(t, sequence, d.size)


cdef inline int wait_room(Trial t, const Ops *ops) noexcept nogil:
    """Room for at least one message: how many; 0 when nothing moved for the plan's limit, or an error."""
    cdef int room = ops.room(ops.me)
    cdef int64_t since
    if room != 0:
        return room
    since = now()
    while room == 0:
        room = ops.room(ops.me)
        if room == 0 and now() - since > t.plan.limit_ns:
            return 0
    return room


cdef inline int next_buffer(Trial t, const Ops *ops, char **message) noexcept nogil:
    """A free buffer for the next message: COMPLETE; LIMIT if none came free in time; or an error."""
    cdef int status = wait_room(t, ops)
    if status <= 0:
        return status if status < 0 else LIMIT
    message[0] = ops.outgoing(ops.me, 0)
    return COMPLETE
