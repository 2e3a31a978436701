# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The ping-pong, and the server of an open loop, which answers likewise; see loop.pyx.

What is checked of a ping-pong to the last byte is an exchange of its own (`check_exchange`): a client knows moments in
which nothing is timed, its server does not.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.arrival cimport (
    COMPLETE,
    LIMIT,
    NO_SEQUENCE,
    accept,
    fits,
    is_checked,
    next_buffer,
    recognise,
    record,
    record_answer,
)
from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of_number
from cython_ext.core.marker cimport mark_receive, mark_send
from cython_ext.core.payload cimport (
    GOOD,
    MAGIC,
    MAGIC_CHECK,
    OTHER_TRIAL,
    SMALLEST,
    build_check,
    fill,
    glance,
    magic_of,
    seal,
    sequence_of,
    stamp,
    stamp_send_time,
    verify,
)
from cython_ext.core.transport cimport FINISHED, Delivery, Ops
from cython_ext.core.trial cimport Trial

cdef extern from *:
    """
    /* As many instructions as are asked for, in twos, and a few of a call: whatever the compiler thinks of it.
       64 stand in an iteration, which an emulator translates as one piece: most being NOPs, it is done as fast as 2. */
    static inline void hwrx_rest(unsigned long instructions)
    {
    #if defined(__x86_64__)
        unsigned long whole = instructions / 64, twos = instructions % 64 / 2;
        if (whole)
            __asm__ volatile("1: .fill 62, 1, 0x90; dec %0; jnz 1b" : "+r"(whole) : : "cc");
        if (twos)
            __asm__ volatile("1: dec %0; jnz 1b" : "+r"(twos) : : "cc");
    #else
        for (unsigned long twos = instructions / 2; twos; twos--)
            __asm__ volatile("");
    #endif
    }
    """
    void hwrx_rest(unsigned long instructions) noexcept nogil


cdef inline bint is_check(Trial t, const Delivery *d) noexcept nogil:
    # Told by its magic alone: a check has the sequence number of the timed message behind it.
    return fits(t, d) and magic_of(d.data) == MAGIC_CHECK


cdef inline void count_check(Trial t, const Delivery *d) noexcept nogil:
    cdef int verdict
    # Verifying reads the whole payload. The meter stands meanwhile, or it would be part of the CPU time a message.
    t.meter.leave()
    verdict = verify(MAGIC_CHECK, d.data, d.size, t.plan.trial)
    t.meter.back()
    t.meter.beside += t.meter.readings == 1
    if verdict == GOOD:
        t.tally.checked += 1
    elif verdict == OTHER_TRIAL:
        t.tally.stale += 1
    else:
        t.tally.corrupt += 1


cdef int check_exchange(Trial t, const Ops *ops, uint64_t sequence) noexcept nogil:
    """A message that is not timed, filled and verified to the last byte by either end, before that of `sequence`.

    COMPLETE also if a lossy path has lost it, or its answer: a message more or less to be checked.
    """
    cdef char *message = NULL
    cdef Delivery d
    cdef int64_t before, after, got
    cdef bint found = False
    cdef int status = next_buffer(t, ops, &message)
    if status != COMPLETE:
        return status
    t.meter.leave()
    # Filled to the last byte after the wait for room and before the clock: nothing is timed here.
    build_check(message, length_of_number(&t.plan.lengths, sequence), sequence, t.plan.trial, 0)
    t.meter.back()
    before = now()
    status = ops.post(ops.me, 1)
    if status < 0:
        return status
    while not found:
        # Only a path that loses gives up at its patience. On the others `limit_ns` ends it, below.
        status = ops.receive_until(ops.me, &d, 1, before + t.plan.patience_ns) if ops.lossy else (
            ops.receive(ops.me, &d, 1)
        )
        after = now()
        if status < 0:
            return status
        if status == 1:
            # `message` was posted and may only be read: the path may still be sending it.
            found = is_check(t, &d) and sequence_of(d.data, d.size) == sequence_of(message, d.size)
            if found:
                count_check(t, &d)
            # An answer that was given up may still come. One to a message that was never sent cannot be of this trial.
            elif d.size >= SMALLEST and magic_of(d.data) == MAGIC and sequence_of(d.data, d.size) >= sequence:
                t.tally.stale += 1  # of what was not sent yet
            else:
                got = recognise(t, ops, &d, NO_SEQUENCE, False)
                if got >= 0:
                    record_answer(t, <uint64_t> got, after)
            # Back only now: until here the payload was read in the path's buffer.
            status = ops.release(ops.me, 1)
            if status < 0:
                return status
        elif ops.lossy and after - before >= t.plan.patience_ns:
            # The check or its answer is lost. That is told as such; the timed messages go on.
            t.tally.unchecked += 1
            return COMPLETE
        elif after - before > t.plan.limit_ns:
            return LIMIT
    return COMPLETE


cdef int await_answer(Trial t, const Ops *ops, uint64_t sequence, int64_t before, bint in_full) noexcept nogil:
    """COMPLETE if the answer to message `sequence`, sent at `before`, came; LIMIT if not in time; or an error.

    Answers to messages that were given up come here, too: late, but with their times.
    """
    cdef Delivery d
    cdef int64_t after, got
    cdef bint again = False  # something came, or patience ended early: what is left of it is waited for by the clock
    cdef int status
    while True:
        if again and ops.lossy:
            status = ops.receive_until(ops.me, &d, 1, before + t.plan.patience_ns)
        else:
            status = ops.receive(ops.me, &d, 1)
        # The end of the timed interval. Everything below lies outside of it.
        mark_receive()
        after = now()
        if status == 1:
            # Stored behind the second reading of the clock, so a cache miss of this store is not timed.
            t.sent_at[sequence] = before
            got = recognise(t, ops, &d, <int64_t> sequence, in_full)
            if got >= 0:
                record_answer(t, <uint64_t> got, after)
            # The buffer goes back before the next message leaves, so its answer finds as many free ones as this one
            # did.
            status = ops.release(ops.me, 1)
            if status < 0:
                return status
            # An answer to a message that was given up has been recorded above, as late; the wait goes on.
            if got == <int64_t> sequence:
                # A closed loop has no time at which it should have sent: the intended send is the actual one.
                record(t, t.intended_at, sequence, before)
                return COMPLETE
        elif status < 0:
            return status
        if after - before >= (t.plan.patience_ns if ops.lossy else t.plan.limit_ns):
            t.sent_at[sequence] = before
            record(t, t.intended_at, sequence, before)
            return LIMIT
        again = True


cdef int pingpong_client(Trial t, const Ops *ops, unsigned long rest) noexcept nogil:
    cdef uint64_t sequence = 0, next_check = 0 if t.plan.check_every else <uint64_t> -1
    cdef int64_t before, alive = now()
    cdef char *message = NULL
    cdef bint in_full
    cdef uint32_t size
    cdef int status
    # read again each time: of a trial that goes on for a time the meter says, by the clock, how many there are
    while sequence < t.total:
        # outside of the timed region: a check, a free buffer, all of the message but its send time
        in_full = False
        if sequence == next_check:
            next_check += t.plan.check_every
            # READ has no server to exchange a check with: the message that it fetches is verified itself.
            in_full = ops.pull
            if not ops.pull:
                status = check_exchange(t, ops, sequence)
                if status != COMPLETE:
                    return status
        # A pause outside of every timed interval: it moves the send and is part of no figure.
        hwrx_rest(rest)
        status = next_buffer(t, ops, &message)
        if status != COMPLETE:
            return status
        # All but the send time is written before the clock is read; what is left is one store of 8 bytes.
        size = length_of_number(&t.plan.lengths, sequence)
        stamp(message, size, sequence, t.plan.trial, 0)
        # Counted here for the same reason: no book-keeping between the two readings of the clock.
        t.tally.posted += 1

        # The timed region begins here and ends in `await_answer`, at `after`. Whoever watches the processor is told
        # before either reading of the clock, so that the mark is within one of the two at most: one instruction.
        mark_send()
        before = now()
        stamp_send_time(message, size, before)
        status = ops.post(ops.me, 1)
        if status < 0:
            return status
        status = await_answer(t, ops, sequence, before, in_full)
        if status < 0:
            return status
        # One message given up is a loss. Nothing at all for the limit is an end: the other end or the path is gone.
        if status == COMPLETE:
            alive = before
        elif not ops.lossy or before - alive > t.plan.limit_ns:
            return LIMIT
        # Outside of the timed region. The meter reads the clocks of the CPU at most twice a trial.
        sequence += 1
        t.meter.mark(sequence)
    return collect_late(t, ops) if ops.lossy and t.tally.delivered < t.total else COMPLETE


cdef int collect_late(Trial t, const Ops *ops) noexcept nogil:
    """All is sent, and the last one was given up or came: answers to those before may take one more patience."""
    cdef int64_t after, got, deadline = now() + t.plan.patience_ns
    cdef Delivery d
    cdef int status
    while t.tally.delivered < t.total:
        status = ops.receive_until(ops.me, &d, 1, deadline)
        # The clock first, as above: late answers have their times, too.
        after = now()
        if status < 0:
            return status
        if status == 0:
            if after >= deadline:
                break
            continue
        got = recognise(t, ops, &d, NO_SEQUENCE, False)
        if got >= 0:
            record_answer(t, <uint64_t> got, after)
        status = ops.release(ops.me, 1)
        if status < 0:
            return status
    return COMPLETE


cdef int answer_check(Trial t, const Ops *ops, const Delivery *d) noexcept nogil:
    """The server's part of `check_exchange`: verify, fill, answer; the client times nothing meanwhile."""
    cdef char *message = NULL
    cdef int status
    # Verified before the answer goes out: the client waits for it untimed, and `d` is ours until it is released.
    count_check(t, d)
    status = next_buffer(t, ops, &message)
    if status != COMPLETE:
        return status
    t.meter.leave()
    # The answer is another message filled to the last byte, so both directions are checked.
    build_check(message, d.size, sequence_of(d.data, d.size), t.plan.trial, 0)
    t.meter.back()
    return ops.post(ops.me, 1)


cdef int answer(Trial t, const Ops *ops, const Delivery *d, int64_t at, bint paced) noexcept nogil:
    """Answer a good message with one of the same sequence number; it goes out before anything is counted.

    An open loop knows no exchange that is not timed: what is checked of it is checked here.
    """
    cdef uint64_t sequence = sequence_of(d.data, d.size)
    cdef bint in_full = paced and is_checked(&t.plan, sequence)
    cdef char *message = NULL
    cdef int64_t got
    # not earlier: a window of one has room only when the last answer is acknowledged, and to wait for that
    # before the next message would take the CPU from those who bring the acknowledgement
    cdef int status = next_buffer(t, ops, &message)
    if status != COMPLETE:
        return status
    # Of an open loop the pattern is written inside the client's interval, on every path alike.
    if in_full:
        fill(message, d.size, sequence)
    stamp(message, d.size, sequence, t.plan.trial, at)
    if in_full:
        seal(message, d.size, sequence)
    # From here the answer is on its way. The message itself is still ours: its buffer is released last.
    status = ops.post(ops.me, 1)
    if status < 0:
        return status
    t.tally.posted += 1
    # Behind the send, so the client waits for none of it; through io_uring it leaves with the next call that waits.
    got = recognise(t, ops, d, NO_SEQUENCE, True) if in_full else accept(t, sequence, d.size)
    if got >= 0 and at:
        record(t, t.delivered_at, <uint64_t> got, at)
    return COMPLETE


cdef int answering_server(Trial t, const Ops *ops, bint paced) noexcept nogil:
    """Answer each message of a ping-pong or an open loop."""
    cdef int64_t at = 0, quiet = 0
    cdef Delivery d
    cdef int status
    while t.tally.delivered < t.total:
        status = ops.receive(ops.me, &d, 1)
        if status == 0:
            # Set by the thread that hears the other end. On a path that cannot lose, silence is an error.
            if t.stopped and ops.lossy:
                return FINISHED
            # the client's first message may take its time: the controller watches over that, not this loop
            if quiet == 0:
                quiet = now()
            elif t.tally.delivered and now() - quiet > t.plan.limit_ns:
                return LIMIT
            continue
        if status < 0:
            return status
        quiet = 0
        if t.plan.stamped:
            # Directly behind the receiving call: this is the moment at which the message is delivered.
            at = now()
        # The look at header and trailer is the same whether messages are checked or not, so both cost the same.
        if fits(t, &d) and glance(d.data, d.size, t.plan.trial) == GOOD:
            status = answer(t, ops, &d, at, paced)
        elif is_check(t, &d):
            status = answer_check(t, ops, &d)
        else:
            recognise(t, ops, &d, NO_SEQUENCE, False)
        if status < 0 or status == LIMIT:
            return status
        # Behind the answer: to give a buffer back is a system call on some paths, and the client does not wait for it.
        status = ops.release(ops.me, 1)
        if status < 0:
            return status
        t.meter.mark(t.highest)
    return COMPLETE
