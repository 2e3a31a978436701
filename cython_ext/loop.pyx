# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The one loop: ping-pong, stream and paced, for every path alike.

A path is a table of C functions (transport.pxd). Between the first and the last message of a trial these loops hold no
GIL, touch no Python object and allocate nothing: the arrays of a `Trial` are made, and their pages touched, beforehand.

Each loop returns COMPLETE, FINISHED (the other end said that no more comes), LIMIT (nothing moved for its limit) or
an error of the path.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.clock cimport now
from cython_ext.payload cimport (
    GOOD,
    OTHER_TRIAL,
    SMALLEST,
    fill,
    glance,
    sequence_of,
    stamp,
    verify,
)
from cython_ext.transport cimport FINISHED, Delivery, Ops, Transport
from cython_ext.trial cimport MOST, Plan, Trial

cdef enum:
    COMPLETE = 1
    LIMIT = 2
    NO_SEQUENCE = -1
    FULL_NS = 1_000_000  # that an open loop with a full window waits for an answer before it looks for room again


# --- pieces of every loop ------------------------------------------------------------------------------------------

cdef inline bint is_checked(const Plan *plan, uint64_t sequence) noexcept nogil:
    return plan.check_every != 0 and sequence % plan.check_every == 0


cdef inline bint wants_full(Trial t, const Delivery *d) noexcept nogil:
    return d.size >= SMALLEST and is_checked(&t.plan, sequence_of(d.data, d.size))


cdef inline bint is_checked_in_stream(const Plan *plan, uint64_t sequence) noexcept nogil:
    if plan.check_every <= 1:
        return plan.check_every == 1
    return (sequence < plan.warmup or sequence >= plan.warmup + plan.messages) and sequence % plan.check_every == 0


cdef inline void record(Trial t, int64_t *array, uint64_t sequence, int64_t at) noexcept nogil:
    if t.plan.warmup <= sequence < t.plan.warmup + t.plan.messages:
        array[sequence - t.plan.warmup] = at


cdef int64_t recognise(Trial t, const Ops *ops, const Delivery *d, int64_t hint, bint in_full) noexcept nogil:
    """Whose message is this? Its sequence number, or NO_SEQUENCE where it is not of the trial; all are counted.

    `hint` is the sequence number asked for where the payload cannot carry it (READ: buffers filled beforehand).
    """
    cdef const Plan *plan = &t.plan
    cdef uint64_t sequence
    cdef int verdict
    cdef uint8_t bit
    if d.size != plan.size:
        t.tally.wrong_size += 1
        return NO_SEQUENCE
    verdict = verify(d.data, d.size, plan.trial) if in_full else glance(d.data, d.size, plan.trial)
    if verdict != GOOD:
        if verdict == OTHER_TRIAL:
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
    if sequence >= t.total:
        t.tally.corrupt += 1
        return NO_SEQUENCE
    if in_full:
        t.tally.checked += 1
    bit = <uint8_t> (1 << (sequence & 7))
    if t.seen[sequence >> 3] & bit:
        t.tally.duplicated += 1
        return NO_SEQUENCE
    t.seen[sequence >> 3] |= bit
    t.tally.delivered += 1
    t.tally.bytes += d.size
    if sequence < t.highest:
        t.tally.reordered += 1
    else:
        t.highest = sequence + 1
    return <int64_t> sequence


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


cdef inline int post_one(Trial t, const Ops *ops, char *message, uint64_t sequence, int64_t at) noexcept nogil:
    stamp(message, t.plan.size, sequence, t.plan.trial, at)
    t.tally.posted += 1
    return ops.post(ops.me, 1)


# --- ping-pong -----------------------------------------------------------------------------------------------------

cdef int pingpong_client(Trial t, const Ops *ops) noexcept nogil:
    cdef uint64_t sequence
    cdef int64_t before, after, got, alive = now()
    cdef char *message
    cdef Delivery d
    cdef bint in_full
    cdef int status
    for sequence in range(t.total):
        # outside of the timed region: a free buffer, and its pattern where this message is checked in full
        status = wait_room(t, ops)
        if status <= 0:
            return status if status < 0 else LIMIT
        message = ops.outgoing(ops.me, 0)
        in_full = is_checked(&t.plan, sequence)
        if in_full and not ops.pull:
            fill(message, t.plan.size, sequence)

        before = now()
        status = post_one(t, ops, message, sequence, before)
        if status < 0:
            return status
        while True:
            status = ops.receive(ops.me, &d, 1)
            after = now()
            if status == 1:
                alive = after
                # a late or repeated answer to another message has that message's pattern, if any
                got = recognise(t, ops, &d, <int64_t> sequence, in_full if ops.pull else wants_full(t, &d))
                status = ops.release(ops.me, 1)
                if status < 0:
                    return status
                if got == <int64_t> sequence:
                    record(t, t.intended_at, sequence, before)
                    record(t, t.posted_at, sequence, before)
                    record(t, t.delivered_at, sequence, after)
                    break
                # an answer to an earlier message came late, twice or damaged: counted; keep waiting for this one's
            elif status < 0:
                return status
            elif after - alive > t.plan.limit_ns:
                return LIMIT
            elif ops.lossy:
                break
        t.meter.mark(sequence + 1)
    return COMPLETE


cdef int pingpong_server(Trial t, const Ops *ops) noexcept nogil:
    """Answer each message with one of the same sequence number; the answer goes out before the message is examined."""
    cdef int64_t at, got, alive = 0
    cdef uint64_t sequence
    cdef char *message
    cdef Delivery d
    cdef bint in_full
    cdef int status
    while t.tally.delivered < t.total:
        status = ops.receive(ops.me, &d, 1)
        at = now()
        if status == 0:
            # the client's first message may take its time: the controller watches over that, not this loop
            if alive and at - alive > t.plan.limit_ns:
                return LIMIT
            continue
        if status < 0:
            return status
        alive = at
        if d.size != t.plan.size or glance(d.data, d.size, t.plan.trial) != GOOD:
            recognise(t, ops, &d, NO_SEQUENCE, False)
        else:
            sequence = sequence_of(d.data, d.size)
            in_full = is_checked(&t.plan, sequence)
            # not earlier: a window of one has room only when the last answer is acknowledged, and to wait for that
            # before the next message would take the CPU from those who bring the acknowledgement
            status = wait_room(t, ops)
            if status <= 0:
                return status if status < 0 else LIMIT
            message = ops.outgoing(ops.me, 0)
            if in_full:
                fill(message, t.plan.size, sequence)
            status = post_one(t, ops, message, sequence, at)
            if status < 0:
                return status
            got = recognise(t, ops, &d, NO_SEQUENCE, in_full)
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
        status = ops.release(ops.me, 1)
        if status < 0:
            return status
        t.meter.mark(t.highest)
    return COMPLETE


# --- stream --------------------------------------------------------------------------------------------------------

cdef inline uint64_t completed(Trial t, uint64_t done, uint64_t upto) noexcept nogil:
    """WRITE: nobody sees the messages arrive, so the sender stamps those whose completion it has just learnt of."""
    cdef int64_t at
    if upto > done:
        at = now()
        t.tally.delivered += upto - done
        t.tally.bytes += (upto - done) * t.plan.size
        while done < upto:
            record(t, t.delivered_at, done, at)
            done += 1
    return done


cdef int stream_client(Trial t, const Ops *ops, uint32_t window) noexcept nogil:
    """Keep the window full, in batches. Each message is stamped with the time at which it was built."""
    cdef uint64_t sent = 0, done = 0
    cdef int64_t at
    cdef char *message
    cdef int room, status
    cdef uint32_t k, count
    while sent < t.total:
        room = wait_room(t, ops)
        if room <= 0:
            return room if room < 0 else LIMIT
        if ops.blind:
            done = completed(t, done, sent + room - min(<uint64_t> window, sent + room))
        count = <uint32_t> min(<uint64_t> room, t.plan.batch, t.total - sent)
        for k in range(count):
            message = ops.outgoing(ops.me, k)
            if is_checked_in_stream(&t.plan, sent + k):
                fill(message, t.plan.size, sent + k)
            at = now()
            stamp(message, t.plan.size, sent + k, t.plan.trial, at)
            record(t, t.posted_at, sent + k, at)
        status = ops.post(ops.me, count)
        if status < 0:
            return status
        sent += count
        t.tally.posted = sent
        t.meter.mark(sent)
    if ops.blind:
        status = ops.finish(ops.me)
        if status < 0:
            return status
        completed(t, done, sent)
    return COMPLETE


cdef int stream_server(Trial t, const Ops *ops) noexcept nogil:
    """Take what comes, a batch at a time. The messages of one batch were delivered by one call, so share its time."""
    cdef Delivery[MOST] batch
    cdef int64_t at, got, alive = 0
    cdef int status, k
    cdef uint64_t sequence
    while t.tally.delivered < t.total:
        status = ops.receive(ops.me, batch, t.plan.batch)
        at = now()
        if status == 0:
            if alive and at - alive > t.plan.limit_ns:
                return LIMIT
            continue
        if status < 0:
            return status
        alive = at
        for k in range(status):
            sequence = sequence_of(batch[k].data, batch[k].size) if batch[k].size >= SMALLEST else 0
            got = recognise(t, ops, &batch[k], NO_SEQUENCE, is_checked_in_stream(&t.plan, sequence))
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status
        t.meter.mark(t.highest)
    return COMPLETE


cdef int stream_pull(Trial t, const Ops *ops) noexcept nogil:
    """READ: this end asks and receives; the other end's memory is passive."""
    cdef Delivery[MOST] batch
    cdef uint64_t asked = 0, answered = 0
    cdef int64_t at, got, alive = now()
    cdef int room, status, k
    cdef uint32_t count
    while answered < t.total:
        if asked < t.total:
            room = ops.room(ops.me) if asked > answered else wait_room(t, ops)
            if room < 0:
                return room
            count = <uint32_t> min(<uint64_t> room, t.plan.batch, t.total - asked)
            if count:
                for k in range(count):
                    ops.outgoing(ops.me, <uint32_t> k)
                    record(t, t.posted_at, asked + k, now())
                status = ops.post(ops.me, count)
                if status < 0:
                    return status
                asked += count
                t.tally.posted = asked
        status = ops.receive(ops.me, batch, t.plan.batch)
        at = now()
        if status < 0:
            return status
        if status == 0:
            if at - alive > t.plan.limit_ns:
                return LIMIT
            continue
        alive = at
        for k in range(status):
            got = recognise(t, ops, &batch[k], <int64_t> answered, is_checked_in_stream(&t.plan, answered))
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
            answered += 1
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status
        t.meter.mark(answered)
    return COMPLETE


# --- paced ---------------------------------------------------------------------------------------------------------

cdef int paced_client(Trial t, const Ops *ops) noexcept nogil:
    """Open loop: each message has a time at which it is to be sent, whatever became of those before it.

    The answer's time counts from the intended send (response) and from the actual one (service): a sender that falls
    behind does not hide the delay (coordinated omission).
    """
    cdef Delivery[MOST] batch
    cdef uint64_t sent = 0, answered = 0
    cdef int64_t start = now()
    cdef int64_t at, got, deadline, due = start + t.due_at[0], alive = start
    cdef int status, k
    cdef bint full
    cdef char *message
    while answered < t.total:
        at = now()
        full = False
        if sent < t.total and at >= due:
            status = ops.room(ops.me) if sent > answered else wait_room(t, ops)
            if status < 0:
                return status
            full = status == 0
            if not full:
                message = ops.outgoing(ops.me, 0)
                if is_checked(&t.plan, sent) and not ops.pull:
                    fill(message, t.plan.size, sent)
                at = now()
                status = post_one(t, ops, message, sent, at)
                if status < 0:
                    return status
                record(t, t.intended_at, sent, due)
                record(t, t.posted_at, sent, at)
                sent += 1
                due = start + t.due_at[sent - (sent == t.total)]
        deadline = due if sent < t.total else max(alive, due) + t.plan.limit_ns
        if full:  # to look for room again and again would take the CPU from those who make it
            deadline = at + FULL_NS
        status = ops.receive_until(ops.me, batch, t.plan.batch, deadline)
        at = now()
        if status < 0:
            return status
        if status == 0:
            if sent == t.total and at >= deadline:
                # what is still missing is lost; on a path that cannot lose, the other end has stopped
                return COMPLETE if ops.lossy else LIMIT
            continue
        alive = at
        for k in range(status):
            if ops.pull:
                got = recognise(t, ops, &batch[k], <int64_t> answered, is_checked(&t.plan, answered))
                answered += 1  # completions come in order, whatever is in them
            else:
                got = recognise(t, ops, &batch[k], NO_SEQUENCE, wants_full(t, &batch[k]))
                answered = t.tally.delivered
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status
        t.meter.mark(answered if ops.pull else t.highest)
    return COMPLETE


# --- for Python ----------------------------------------------------------------------------------------------------

ENDED = {COMPLETE: "complete", LIMIT: "limit", FINISHED: "finished"}


def run(Trial trial not None, Transport transport not None, str pattern, str role):
    """Run one end of a trial to its end.

    `pattern` is pingpong, stream or paced; `role` client (sends first) or server. Both ends must be connected.

    Returns a status that `ENDED` names, or a negative one that `transport.explain` tells in words. Counts, stamps and
    processor time are in the trial whatever the status.
    """
    if transport.size != trial.plan.size:
        raise ValueError(f"the endpoint is for messages of {transport.size} bytes, the trial has {trial.plan.size}")
    if pattern not in ("pingpong", "stream", "paced") or role not in ("client", "server"):
        raise ValueError(f"no such pattern or role: {pattern!r}, {role!r}")
    if pattern == "paced" and role == "client" and trial.due_at == NULL:
        raise ValueError("paced needs the times at which messages are due")
    cdef const Ops *ops = &transport.ops
    cdef bint client = role == "client"
    cdef int what = ("pingpong", "stream", "paced").index(pattern)
    cdef int status, ending
    with nogil:
        if client:
            trial.meter.mark(0)  # with no warm-up the first message is measured; a server waits for it yet
        if not client and ops.pull:
            status = COMPLETE  # the memory is there; nobody here has anything to do
        elif what == 1:
            if not client:
                status = stream_server(trial, ops)
            elif ops.pull:
                status = stream_pull(trial, ops)
            else:
                status = stream_client(trial, ops, transport.window)
        elif not client:
            status = pingpong_server(trial, ops)  # the server of paced answers like that of a ping-pong
        elif what == 0:
            status = pingpong_client(trial, ops)
        else:
            status = paced_client(trial, ops)
        if status > 0:
            ending = ops.finish(ops.me)
            if ending < 0 and ending != FINISHED:
                status = ending
    return status
