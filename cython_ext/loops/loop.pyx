# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The one loop: ping-pong (in pingpong.pyx), stream and paced, for every path alike.

A path is a table of C functions (transport.pxd). Between the first and the last message of a trial these loops hold no
GIL, touch no Python object and allocate nothing: the arrays of a `Trial` are made, and their pages touched, beforehand.

Between two stamps lies the path's own work and nothing of ours. Whatever a message or its check needs besides is done
while nothing is under way: by the client after its stamp and before it reads the clock for the next send; by the server
for a message that is not timed (`check_exchange`), because in a ping-pong it never knows a moment that is in nobody's
interval. What the server does for every message (a look at header and trailer, a few counters) it does whether messages
are checked or not.

A stream whose sender `settles` lets everything that is under way end before its first measured message, and after its
last: then all work between the two readings of a meter (meter.pyx) was done for the measured messages, and for no
other's.

Each loop returns COMPLETE, FINISHED (the other end said that no more comes), LIMIT (nothing moved for its limit) or
an error of the path; `run` makes NOTHING of the first three if not one message came.
"""

from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clockid_t, timespec

from cython_ext.core.arrival cimport (
    COMPLETE,
    LIMIT,
    NO_SEQUENCE,
    NOTHING,
    is_checked,
    recognise,
    record,
    record_answer,
    wait_room,
    wants_full,
)
from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of_number
from cython_ext.core.marker cimport mark_end
from cython_ext.core.payload cimport fill, seal, stamp
from cython_ext.core.transport cimport FINISHED, Delivery, Ops, Transport
from cython_ext.core.trial cimport LATE_SEND_NS, MOST, Trial
from cython_ext.headers.sys_prctl cimport PR_GET_TIMERSLACK, PR_SET_TIMERSLACK, prctl
from cython_ext.loops.pingpong cimport answering_server, pingpong_client

cdef extern from "<time.h>" nogil:
    int TIMER_ABSTIME
    int clock_nanosleep(clockid_t clock, int flags, const timespec *until, timespec *left)

cdef enum:
    FULL_NS = 1_000_000  # that an open loop with a full window waits for an answer before it looks for room again


# --- stream --------------------------------------------------------------------------------------------------------

cdef inline uint64_t completed(Trial t, uint64_t done, uint64_t upto) noexcept nogil:
    """WRITE: nobody sees the messages arrive, so the sender stamps those whose completion it has just learnt of."""
    cdef int64_t at
    if upto > done:
        # One stamp for all of them: one look at the queue brought them, and a completion does not say when it was made.
        at = now()
        t.tally.delivered += upto - done
        # RC completes in the order of posting, so all that was posted before the newest completion is complete as well.
        while done < upto:
            t.tally.bytes += length_of_number(&t.plan.lengths, done)
            record(t, t.delivered_at, done, at)
            done += 1
    return done


cdef void settle(int64_t ns) noexcept nogil:
    """Sleep: whoever else has something to do does it meanwhile. A beat of a transport's own ends no sleep."""
    cdef timespec until
    cdef int64_t at = now() + ns
    until.tv_sec = at // 1_000_000_000
    until.tv_nsec = at % 1_000_000_000
    while clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR:
        pass


cdef inline uint64_t next_pause(Trial t, uint64_t done) noexcept nogil:
    """Of a stream that settles: after how many messages, more than `done`, it does; or all of them."""
    if done < t.plan.warmup:
        return t.plan.warmup
    return t.plan.warmup + t.plan.messages if done < t.plan.warmup + t.plan.messages else t.total


cdef int stream_client(Trial t, const Ops *ops, uint32_t window, int64_t settle_ns) noexcept nogil:
    """Keep the window full, in batches. Each message is stamped with the time at which it was built."""
    cdef uint64_t sent = 0, done = 0, settled = next_pause(t, 0)
    # where the sender stops for a moment; of a trial that goes on for a time the meter moves the end, by the clock
    cdef const uint64_t *pause = &settled if settle_ns else &t.total
    cdef int64_t at
    cdef char *message
    cdef int room, status
    cdef uint32_t k, count, size
    cdef bint in_full
    while sent < t.total:
        # Room first, then the stamp: while the window is full, this message is not on its way yet.
        room = wait_room(t, ops)
        if room <= 0:
            return room if room < 0 else LIMIT
        # Of `sent`, window - room are under way, so sent + room - window are complete.
        if ops.blind:
            done = completed(t, done, sent + room - min(<uint64_t> window, sent + room))
        count = <uint32_t> min(<uint64_t> room, t.plan.batch, pause[0] - sent)
        for k in range(count):
            message = ops.outgoing(ops.me, k)
            size = length_of_number(&t.plan.lengths, sent + k)
            in_full = is_checked(&t.plan, sent + k)
            # The pattern goes in before the clock is read, the seal after it, because the seal covers the send time.
            if in_full:
                fill(message, size, sent + k)
            at = now()
            stamp(message, size, sent + k, t.plan.trial, at)
            if in_full:
                seal(message, size, sent + k)
            # Kept here too: the message in the buffer is the path's as soon as it is posted.
            t.sent_at[sent + k] = at
        # The hand-over: kernel or device may read these buffers until `room` counts them as free again.
        status = ops.post(ops.me, count)
        if status < 0:
            return status
        sent += count
        t.tally.posted = sent
        if sent == pause[0]:
            settled = next_pause(t, sent)
            if settle_ns:
                settle(settle_ns)
        t.meter.mark(sent)
    # The last window: no later call of `room` will report its completions.
    if ops.blind:
        status = ops.finish(ops.me)
        if status < 0:
            return status
        completed(t, done, sent)
    return COMPLETE


cdef int stream_server(Trial t, const Ops *ops) noexcept nogil:
    """Take what comes, a batch at a time. Messages that one call of the path brought share the time of its return.

    A path whose calls bring more than it hands out at a time says when that was (`brought_at`).
    """
    cdef Delivery[MOST] batch
    cdef int64_t at, got, alive = 0
    cdef int status, k
    while t.tally.delivered < t.total:
        status = ops.receive(ops.me, batch, t.plan.batch)
        # The clock before anything else: no look at a payload may fall into the time of the messages.
        at = now() if ops.brought_at == NULL or status <= 0 else ops.brought_at[0]
        if status == 0:
            # `stopped` is set by the thread that hears the other end. Only a path that loses may end early.
            if t.stopped and ops.lossy:
                return FINISHED
            # No limit before the first message: the other end may still be getting ready.
            if alive and at - alive > t.plan.limit_ns:
                return LIMIT
            continue
        if status < 0:
            return status
        alive = at
        for k in range(status):
            # Judged and recorded while the buffers are ours: once released they may hold the next messages.
            got = recognise(t, ops, &batch[k], NO_SEQUENCE, wants_full(t, &batch[k]))
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
        # All at once, oldest first: one list of receive requests, one store to the ring, or one credit for the batch.
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status
        t.meter.mark(t.highest)
    return COMPLETE


cdef int stream_pull(Trial t, const Ops *ops, int64_t settle_ns) noexcept nogil:
    """READ: this end asks and receives; the other end's memory is passive."""
    cdef Delivery[MOST] batch
    cdef uint64_t asked = 0, answered = 0, settled = next_pause(t, 0)
    # as in `stream_client`
    cdef const uint64_t *pause = &settled if settle_ns else &t.total
    cdef int64_t at, got, alive = now()
    cdef int room, status, k
    cdef uint32_t count
    while answered < t.total:
        if asked < pause[0]:
            # Wait for room only if nothing is under way: with answers to come, a release of ours is what makes room.
            room = ops.room(ops.me) if asked > answered else wait_room(t, ops)
            if room < 0:
                return room
            count = <uint32_t> min(<uint64_t> room, t.plan.batch, pause[0] - asked)
            if count:
                for k in range(count):
                    # Nothing is built: this buffer is where the answer will land. It is the device's until its
                    # completion.
                    ops.outgoing(ops.me, <uint32_t> k)
                    t.sent_at[asked + k] = now()
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
            got = recognise(t, ops, &batch[k], <int64_t> answered, is_checked(&t.plan, answered))
            if got >= 0:
                record(t, t.delivered_at, <uint64_t> got, at)
            # The k-th completion is that of the k-th question, whatever stands in the buffer: RC completes in order.
            answered += 1
        status = ops.release(ops.me, <uint32_t> status)
        if status < 0:
            return status
        if answered == pause[0]:
            settled = next_pause(t, answered)
            if settle_ns:
                settle(settle_ns)
        t.meter.mark(answered)
    return COMPLETE


# --- paced ---------------------------------------------------------------------------------------------------------

cdef int post_paced(Trial t, const Ops *ops, uint64_t sequence, int64_t due, bint waited) noexcept nogil:
    """Send the next message of an open loop, for which there is room: 1 or an error."""
    cdef char *message = ops.outgoing(ops.me, 0)
    cdef bint in_full = not ops.pull and is_checked(&t.plan, sequence)
    cdef uint32_t size = length_of_number(&t.plan.lengths, sequence)
    cdef int64_t at
    cdef int status
    if in_full:
        fill(message, size, sequence)
    # `at` is when it is built, `due` when it should have been: the difference is part of the response time.
    at = now()
    stamp(message, size, sequence, t.plan.trial, at)
    if in_full:
        seal(message, size, sequence)
    t.tally.posted += 1
    status = ops.post(ops.me, 1)
    if status < 0:
        return status
    # Counted behind the send. A send that had to wait for room is told as such, and not as a late one.
    t.tally.window_full += waited
    t.tally.sent_late += not waited and at - due > LATE_SEND_NS
    record(t, t.intended_at, sequence, due)
    t.sent_at[sequence] = at
    return 1


cdef int take_answers(
    Trial t, const Ops *ops, Delivery *batch, int count, uint64_t *answered, int64_t at
) noexcept nogil:
    """Record the answers that one call has brought, and give their buffers back: 0 or an error."""
    cdef int64_t got
    cdef int k
    for k in range(count):
        if ops.pull:
            got = recognise(t, ops, &batch[k], <int64_t> answered[0], is_checked(&t.plan, answered[0]))
            answered[0] += 1  # completions come in order, whatever is in them
        else:
            # Counted by what came: an answer may be lost, or come twice.
            got = recognise(t, ops, &batch[k], NO_SEQUENCE, wants_full(t, &batch[k]))
            answered[0] = t.tally.delivered
        if got >= 0:
            record_answer(t, <uint64_t> got, at)
    # Last: until here the payloads were looked at in the path's own buffers.
    return ops.release(ops.me, <uint32_t> count)


cdef int paced_client(Trial t, const Ops *ops) noexcept nogil:
    """Open loop: each message has a time at which it is to be sent, whatever became of those before it.

    The answer's time counts from the intended send (response) and from the actual one (service): a sender that falls
    behind does not hide the delay (coordinated omission).
    """
    cdef Delivery[MOST] batch
    cdef uint64_t sent = 0, answered = 0
    cdef int64_t start = now()
    cdef int64_t at, deadline, due = start + t.due_at[0], alive = start
    # after the last send: what a lossy path has not brought by then is lost; those that come in the last part are late
    cdef int64_t wait = min(2 * t.plan.patience_ns, t.plan.limit_ns) if ops.lossy else t.plan.limit_ns
    cdef int status
    cdef bint full, waited = False
    while answered < t.total:
        at = now()
        full = False
        if sent < t.total and at >= due:
            # With answers under way a full window is not waited for: taking an answer is what empties it.
            status = ops.room(ops.me) if sent > answered else wait_room(t, ops)
            if status < 0:
                return status
            full = status == 0
            if full:
                # full for the limit, and no answer either: it will not get better
                if at - alive > t.plan.limit_ns:
                    return LIMIT
                waited = True
            else:
                status = post_paced(t, ops, sent, due, waited)
                if status < 0:
                    return status
                alive = at
                waited = False
                sent += 1
                # Each from the start of the trial, not from the send before, so no delay adds up over the trial.
                due = start + t.due_at[sent - (sent == t.total)]
        deadline = due if sent < t.total else max(alive, due) + wait
        if full:  # to look for room again and again would take the CPU from those who make it
            deadline = at + FULL_NS
        # Wait for an answer no longer than to the next send. What has come by then is stamped first, then sorted.
        status = ops.receive_until(ops.me, batch, t.plan.batch, deadline)
        # The stamp of all that this call brought, before anything of it is looked at.
        at = now()
        if status < 0:
            return status
        if status == 0:
            if sent == t.total and at >= deadline:
                # what is still missing is lost; on a path that cannot lose, the other end has stopped
                return COMPLETE if ops.lossy else LIMIT
            continue
        alive = at
        status = take_answers(t, ops, batch, status, &answered, at)
        if status < 0:
            return status
        t.meter.mark(answered if ops.pull else t.highest)
    return COMPLETE


cdef void end_by_time(Trial t) noexcept nogil:
    """Of a trial that goes on for a time: the end that was only told may have had its last message before it."""
    if t.meter.lasts and t.meter.readings == 1:
        t.meter.lasts = 0
        t.meter.take(t.highest)


# --- for Python ----------------------------------------------------------------------------------------------------

ENDED = {COMPLETE: "complete", LIMIT: "limit", FINISHED: "finished", NOTHING: "nothing"}


def run(Trial trial not None, Transport transport not None, str pattern, str role, unsigned long rest=0,
        int64_t settle_ns=0):
    """Run one end of a trial to its end, without the GIL.

    :param trial: what is to be done; its arrays and counts are filled
    :param transport: the endpoint, connected; for messages of the trial's size, or sizes
    :param pattern: pingpong, stream or paced
    :param role: client (sends first) or server
    :param rest: instructions that the client of a ping-pong executes before each message, outside of every timed
        interval
    :param settle_ns: that the client of a stream sleeps before the first measured message and after the last
    :return: a status that `ENDED` names, or a negative one that `transport.explain` tells in words. Counts, stamps and
        processor time are in the trial whatever it is
    :raises ValueError: if the sizes differ, pattern or role do not exist, or a client of `paced` has no times to send
        at
    """
    if transport.size != trial.plan.size:
        raise ValueError(f"the endpoint is for messages of {transport.size} bytes, the trial has {trial.plan.size}")
    if transport.lengths.mask != trial.plan.lengths.mask:
        raise ValueError("endpoint and trial have different tables of sizes")
    if pattern not in ("pingpong", "stream", "paced") or role not in ("client", "server"):
        raise ValueError(f"no such pattern or role: {pattern!r}, {role!r}")
    if pattern == "paced" and role == "client" and trial.due_at == NULL:
        raise ValueError("paced needs the times at which messages are due")
    cdef const Ops *ops = &transport.ops
    cdef bint client = role == "client"
    cdef int what = ("pingpong", "stream", "paced").index(pattern)
    cdef int status, ending
    cdef int slack
    # From here to the end no Python: the thread that hears the controller and the other end runs beside this one.
    with nogil:
        # an ordinary thread's timers may fire up to 50 µs late, and an open loop would measure that, on any path
        slack = prctl(PR_GET_TIMERSLACK)
        prctl(PR_SET_TIMERSLACK, <unsigned long> 1)
        if client:
            trial.meter.mark(0)  # with no warm-up the first message is measured; a server waits for it yet
        if not client and ops.pull:
            status = COMPLETE  # the memory is there; nobody here has anything to do
        elif what == 1:
            if not client:
                status = stream_server(trial, ops)
            elif ops.pull:
                status = stream_pull(trial, ops, settle_ns)
            else:
                status = stream_client(trial, ops, transport.window, settle_ns)
        elif not client:
            status = answering_server(trial, ops, what == 2)
        elif what == 0:
            status = pingpong_client(trial, ops, rest)
            # what Python does behind the loop is no message's
            mark_end()
        else:
            status = paced_client(trial, ops)
        end_by_time(trial)
        # After an error there is no polite end: `finish` would wait for an end that is gone.
        if status > 0:
            ending = ops.finish(ops.me)
            if ending < 0 and ending != FINISHED:
                status = ending
        # the end that sees what became of the messages: of a stream the one that receives
        if status in (COMPLETE, LIMIT, FINISHED) and client != (what == 1) and ops.lossy and (
                trial.tally.delivered == 0):
            status = NOTHING
        # The slack belongs to the thread (prctl(2)), and the thread is Python's.
        prctl(PR_SET_TIMERSLACK, <unsigned long> slack)
    return status
