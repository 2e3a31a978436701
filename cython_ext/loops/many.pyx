# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many connections of one endpoint, by one thread: each has one message under way, and its next when that is answered.

The rule of the loops (loop.pyx) holds: no GIL, no Python object, nothing allocated between the first and the last
message. A message is stamped before it is handed to the path, with nothing left to write but that time, and its answer
as soon as the receiving call has returned. What lies between is the path's own work on this message, and this thread's
on those of the other connections, which is what many connections of one process cost.

A message is known by its number, which it carries, and the connection that it went on is kept beside it: an answer that
comes on another one is counted and not believed. At the end each connection has posted so many, and got so many back.

One-sided paths have no server: the client's own completions are its answers (READ and atomics, whose bytes are looked
at; WRITE, which says nothing but that it is there).
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cython_ext.core.arrival cimport (
    COMPLETE,
    LIMIT,
    NO_SEQUENCE,
    NOTHING,
    accept,
    fits,
    is_checked,
    recognise,
    record,
    record_answer,
    wants_full,
)
from cython_ext.core.clock cimport now
from cython_ext.core.connections cimport FREE, NO_CONNECTION, Arrival, Connections
from cython_ext.core.lengths cimport length_of_number
from cython_ext.core.marker cimport mark_end
from cython_ext.core.payload cimport GOOD, MAGIC, fill, glance, seal, sequence_of, stamp, stamp_send_time, verify
from cython_ext.core.transport cimport FINISHED, Ops, Transport
from cython_ext.core.trial cimport MOST, Trial


# --- the client ----------------------------------------------------------------------------------------------------

cdef int send_next(Trial t, Connections c, const Ops *ops, uint32_t connection, uint64_t sequence) noexcept nogil:
    """Send message `sequence` on a free connection: COMPLETE, LIMIT if no buffer came free, or an error."""
    cdef char *message = NULL
    # READ from buffers filled beforehand, or from a counter: nothing is built
    cdef bint built = not ops.modulo
    cdef bint in_full = built and is_checked(&t.plan, sequence)
    cdef uint32_t size = length_of_number(&t.plan.lengths, sequence)
    cdef int64_t before
    cdef int status = c.ops.outgoing(c.ops.me, connection, &message)
    if status <= 0:
        return status if status < 0 else LIMIT
    # Outside of the timed interval: the account, and all of the message but its send time.
    c.by_message[sequence] = <int32_t> connection
    c.pending[connection] = <int64_t> sequence
    c.sent_of[connection] += 1
    t.tally.posted += 1
    if built:
        if in_full:
            fill(message, size, sequence)
        stamp(message, size, sequence, t.plan.trial, 0)
    before = now()
    if built:
        stamp_send_time(message, size, before)
        # covers the send time; of measured messages only if each one is to be checked
        if in_full:
            seal(message, size, sequence)
    status = c.ops.post(c.ops.me, connection)
    if status < 0:
        return status
    t.sent_at[sequence] = before
    record(t, t.intended_at, sequence, before)
    return COMPLETE


cdef inline bint strays(Trial t, Connections c, const Ops *ops, const Arrival *a) noexcept nogil:
    """Whether it is a good message of the trial that went out on another connection."""
    cdef uint64_t sequence
    if ops.pull or not fits(t, &a.message) or glance(a.message.data, a.message.size, t.plan.trial) != GOOD:
        return False
    sequence = sequence_of(a.message.data, a.message.size)
    return sequence < t.total and c.by_message[sequence] != <int32_t> a.connection


cdef int64_t recognise_own(Trial t, Connections c, const Ops *ops, const Arrival *a, int64_t awaited) noexcept nogil:
    """As `recognise`, of a connection whose answers are numbered among themselves: it must be the next of them."""
    cdef const char *data = a.message.data
    cdef bint in_full = is_checked(&t.plan, <uint64_t> awaited)
    # The message under way is the last one sent, and it is not among those that came before its answer.
    cdef uint64_t before = <uint64_t> c.sent_of[a.connection] - 1
    cdef int verdict
    if in_full:
        verdict = verify(MAGIC, data, a.message.size, t.plan.trial)
    else:
        verdict = glance(data, a.message.size, t.plan.trial)
    if verdict != GOOD or sequence_of(data, a.message.size) != before % ops.modulo:
        t.tally.corrupt += 1
        return NO_SEQUENCE
    t.tally.checked += in_full
    return accept(t, <uint64_t> awaited, a.message.size)


cdef bint take_answer(Trial t, Connections c, const Ops *ops, const Arrival *a, int64_t at) noexcept nogil:
    """Record an answer; whether it is the one that its connection waited for."""
    cdef int64_t awaited = c.pending[a.connection]
    cdef int64_t got
    if strays(t, c, ops, a):
        c.strayed += 1
        t.tally.corrupt += 1
        return False
    if ops.pull and awaited == FREE:
        t.tally.stale += 1
        return False
    if ops.blind:
        got = accept(t, <uint64_t> awaited, length_of_number(&t.plan.lengths, <uint64_t> awaited))
    elif c.own_numbers:
        got = recognise_own(t, c, ops, a, awaited)
    else:
        got = recognise(
            t, ops, &a.message, awaited,
            is_checked(&t.plan, <uint64_t> awaited) if ops.pull else wants_full(t, &a.message),
        )
    if got >= 0:
        record_answer(t, <uint64_t> got, at)
        # also one that was given up: it is late, and not lost
        c.taken_of[a.connection] += 1
    # A one-sided completion frees its connection whatever was read: the device has done with it.
    return ops.pull or got == awaited >= 0


cdef int64_t give_up(Trial t, Connections c, int64_t at) noexcept nogil:
    """Of a path that loses: free the connections whose message is older than the plan's patience; how many."""
    cdef uint32_t connection
    cdef int64_t count = 0
    for connection in range(c.count):
        if c.pending[connection] >= 0 and at - t.sent_at[c.pending[connection]] > t.plan.patience_ns:
            c.pending[connection] = FREE
            count += 1
    return count


cdef int client(Trial t, Connections c, const Ops *ops) noexcept nogil:
    cdef Arrival[MOST] batch
    cdef uint64_t sent = 0, done = 0
    cdef uint32_t k, connection
    cdef int64_t at, alive = now(), next_look = alive + t.plan.patience_ns // 4, lost
    cdef int status, count
    for connection in range(c.count):
        if sent < t.total:
            status = send_next(t, c, ops, connection, sent)
            if status != COMPLETE:
                return status
            sent += 1
    while done < t.total:
        count = c.ops.receive(c.ops.me, batch, MOST)
        # The stamp of all that this call brought, before anything of it is looked at.
        at = now()
        if count < 0:
            return count
        if count == 0 and at - alive > t.plan.limit_ns:
            return LIMIT
        for k in range(<uint32_t> count):
            if take_answer(t, c, ops, &batch[k], at):
                c.pending[batch[k].connection] = FREE
                done += 1
                alive = at
            else:
                batch[k].connection = NO_CONNECTION
        # The buffers go back first, so that the answers to what follows find as many free ones.
        if count:
            status = c.ops.release(c.ops.me)
            if status < 0:
                return status
        for k in range(<uint32_t> count):
            if batch[k].connection != NO_CONNECTION and sent < t.total:
                status = send_next(t, c, ops, batch[k].connection, sent)
                if status != COMPLETE:
                    return status
                sent += 1
        if ops.lossy and at >= next_look:
            next_look = at + t.plan.patience_ns // 4
            lost = give_up(t, c, at)
            done += <uint64_t> lost
            for connection in range(c.count if lost else 0):
                if c.pending[connection] == FREE and sent < t.total:
                    status = send_next(t, c, ops, connection, sent)
                    if status != COMPLETE:
                        return status
                    sent += 1
        t.meter.mark(done)
    return COMPLETE


# --- the server ----------------------------------------------------------------------------------------------------

cdef int answer(Trial t, Connections c, const Ops *ops, const Arrival *a, int64_t at) noexcept nogil:
    """Answer a good message on its connection with one of the same number; it goes out before anything is counted."""
    cdef uint64_t sequence = sequence_of(a.message.data, a.message.size)
    cdef bint in_full = is_checked(&t.plan, sequence)
    cdef char *message = NULL
    cdef int64_t got
    cdef int status = c.ops.outgoing(c.ops.me, a.connection, &message)
    if status <= 0:
        return status if status < 0 else LIMIT
    if in_full:
        fill(message, a.message.size, sequence)
    stamp(message, a.message.size, sequence, t.plan.trial, at)
    if in_full:
        seal(message, a.message.size, sequence)
    status = c.ops.post(c.ops.me, a.connection)
    if status < 0:
        return status
    t.tally.posted += 1
    c.sent_of[a.connection] += 1
    # The message itself is ours until it is released.
    got = recognise(t, ops, &a.message, NO_SEQUENCE, True) if in_full else accept(t, sequence, a.message.size)
    if got >= 0:
        c.taken_of[a.connection] += 1
        if at:
            record(t, t.delivered_at, <uint64_t> got, at)
    return COMPLETE


cdef int server(Trial t, Connections c, const Ops *ops) noexcept nogil:
    cdef Arrival[MOST] batch
    cdef int64_t at, quiet = 0
    cdef int status, count, k
    while t.tally.delivered < t.total:
        count = c.ops.receive(c.ops.me, batch, MOST)
        if count < 0:
            return count
        if count == 0:
            # Set by the thread that hears the other end. On a path that cannot lose, silence is an error.
            if t.stopped and ops.lossy:
                return FINISHED
            # the client's first message may take its time: the controller watches over that, not this loop
            if quiet == 0:
                quiet = now()
            elif t.tally.delivered and now() - quiet > t.plan.limit_ns:
                return LIMIT
            continue
        quiet = 0
        at = now() if t.plan.stamped else 0
        for k in range(count):
            if fits(t, &batch[k].message) and glance(
                    batch[k].message.data, batch[k].message.size, t.plan.trial) == GOOD:
                status = answer(t, c, ops, &batch[k], at)
                if status < 0 or status == LIMIT:
                    return status
            else:
                recognise(t, ops, &batch[k].message, NO_SEQUENCE, False)
        # Behind the answers, whose senders wait for them and not for this.
        status = c.ops.release(c.ops.me)
        if status < 0:
            return status
        t.meter.mark(t.highest)
    return COMPLETE


# --- for Python ----------------------------------------------------------------------------------------------------

def run_connections(Trial trial not None, Transport transport not None, Connections connections not None, str role):
    """Run one end of a trial over all connections of an endpoint to its end, without the GIL.

    :param trial: what is to be done; its arrays and counts are filled
    :param transport: the endpoint, connected; for messages of the trial's size
    :param connections: its connections, begun with the trial's numbers of messages
    :param role: client (asks) or server (answers; of a one-sided path it has nothing to do)
    :return: a status that `loop.ENDED` names, or a negative one that `transport.explain` tells in words
    :raises ValueError: if the sizes differ, the role does not exist, or the connections were not begun
    """
    if transport.size != trial.plan.size:
        raise ValueError(f"the endpoint is for messages of {transport.size} bytes, the trial has {trial.plan.size}")
    if transport.lengths.mask != trial.plan.lengths.mask:
        raise ValueError("endpoint and trial have different tables of sizes")
    if role not in ("client", "server"):
        raise ValueError(f"no such role: {role!r}")
    if connections.by_message == NULL:
        raise ValueError("the connections have no memory for a trial: begin(…)")
    cdef const Ops *ops = &transport.ops
    cdef bint asks = role == "client"
    cdef int status, ending
    with nogil:
        if asks:
            trial.meter.mark(0)
            status = client(trial, connections, ops)
            mark_end()
        else:
            status = COMPLETE if ops.pull else server(trial, connections, ops)
        # of a trial that goes on for a time, the end that was only told: as `end_by_time` of loop.pyx
        if trial.meter.lasts and trial.meter.readings == 1:
            trial.meter.lasts = 0
            trial.meter.take(trial.highest)
        # Of a connection nothing can be overtaken; between connections there is no order.
        trial.tally.reordered = 0
        if status > 0:
            ending = connections.ops.finish(connections.ops.me)
            if ending < 0 and ending != FINISHED:
                status = ending
        if status in (COMPLETE, LIMIT, FINISHED) and asks and ops.lossy and trial.tally.delivered == 0:
            status = NOTHING
    return status
