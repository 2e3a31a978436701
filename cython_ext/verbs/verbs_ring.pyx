# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The data path of the verbs transports: C functions over two rings of buffers, two queues and a queue pair.

It reads downwards as a message travels: a free buffer (`ring_outgoing`), its work request to the device (`submit`), the
sender's completion (`reap`), the receiver's (`queue_receive`), the buffer back to the device (`queue_release`).
"""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.clock cimport now
from cython_ext.core.lengths cimport length_of
from cython_ext.core.transport cimport WC_STATUS, Delivery
from cython_ext.headers.infiniband_verbs cimport (
    IBV_SEND_SIGNALED,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    ibv_poll_cq,
    ibv_post_recv,
    ibv_post_send,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_wc,
)
from cython_ext.verbs.verbs_event cimport look_for_events
from cython_ext.verbs.verbs_wait cimport wait_cq, wait_cq_until


cdef char *ring_outgoing(void *me, uint32_t k) noexcept nogil:
    cdef State *st = <State *> me
    cdef uint32_t slot = st.slot + k
    if slot >= st.window:
        slot -= st.window
    return st.out + <size_t> slot * st.stride


cdef int submit(State *st, uint32_t count) noexcept nogil:
    """Post the next `count` work requests, which must be filled but for id and signalling, as one list."""
    cdef ibv_send_wr *first = &st.send_wr[st.slot]
    cdef ibv_send_wr *wr = first
    cdef ibv_send_wr *following
    cdef ibv_send_wr *bad
    cdef uint32_t k
    cdef int error
    for k in range(count):
        if k:
            wr = wr.next
        st.posted += 1
        st.since_signal += 1
        # How many were posted up to here, so one completion tells of all before it (`complete`).
        wr.wr_id = st.posted
        # Only each n-th is signalled: rxe makes no CQE for the others (rxe_comp.c, do_complete). The last one always
        # is, or `ring_finish` would wait for nothing.
        if st.since_signal >= st.signal_every or st.posted == st.total:
            wr.send_flags = st.flags | IBV_SEND_SIGNALED
            st.since_signal = 0
            st.signalled = st.posted
        else:
            wr.send_flags = st.flags
    # The requests are linked in a circle; for this call the list ends here (ibv_post_send(3): NULL if last).
    following = wr.next
    wr.next = NULL
    # One call for the list: a provider orders its stores and rings the doorbell. rxe's writes the WQEs and then enters
    # the kernel once (providers/rxe/rxe.c, post_send_db). From here the buffers are the device's until their
    # completion.
    error = ibv_post_send(st.qp, first, &bad)
    # The requests themselves are ours again: the provider has copied them into the queue. Only the buffers are not.
    wr.next = following
    # Also after an error: some of the list may have been taken, and a status below 0 ends the trial.
    st.slot += count
    if st.slot >= st.window:
        st.slot -= st.window
    if error:
        return -error if error > 0 else error  # rxe's provider may return -ENOMEM; verbs say ENOMEM
    return <int> count


cdef void measure(State *st, uint32_t count) noexcept nogil:
    """Of messages that differ in size: the next `count` work requests are as long as what was built for them."""
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef uint32_t _
    for _ in range(count):
        wr.sg_list.length = length_of(st.lengths, <const char *> <uintptr_t> wr.sg_list.addr)
        wr = wr.next


cdef int post_varying(void *me, uint32_t count) noexcept nogil:
    """In front of a path's own `post`, if messages differ in size."""
    cdef State *st = <State *> me
    measure(st, count)
    return st.post_one_size(me, count)


cdef inline void complete(State *st, const ibv_wc *wc) noexcept nogil:
    # a message's work request carries how many were posted with it; 0 stands for one that is no message
    if wc.wr_id:
        st.completed = wc.wr_id
    else:
        st.asides -= 1


cdef int reap(State *st) noexcept nogil:
    """Take what completions the send queue has: 0, or an error."""
    cdef ibv_wc[16] wc
    cdef int n, i
    while True:
        # Reads mapped memory. The provider loads the producer's index with acquire (rxe_queue.h, queue_empty).
        n = ibv_poll_cq(st.sends.cq, 16, wc)
        for i in range(n):
            # Only wr_id, status, qp_num and vendor_err are valid in a completion with error (ibv_poll_cq(3)).
            if wc[i].status != IBV_WC_SUCCESS:
                return fail(st, &wc[i])
            complete(st, &wc[i])
        # Fewer than asked for: the queue was empty at that moment, and to look again would only cost time.
        if n < 16:
            return 0


cdef int ring_room(void *me) noexcept nogil:
    cdef State *st = <State *> me
    cdef uint32_t left = st.window - <uint32_t> (st.posted - st.completed)
    cdef int n, i
    # More than half is free: no look at the queue at all, so a look brings many completions together.
    if left > st.window >> 1:
        return <int> left
    # In passing, without waiting: most completions are there by now.
    n = reap(st)
    if n < 0:
        return n
    left = st.window - <uint32_t> (st.posted - st.completed)
    if left:
        return <int> left
    # None is free. A completion of the oldest one frees its buffer and all before it.
    n = wait_cq(&st.sends, &st.beat, st.wc, BATCH)
    if n < 0:
        return n
    for i in range(n):
        if st.wc[i].status != IBV_WC_SUCCESS:
            return fail(st, &st.wc[i])
        complete(st, &st.wc[i])
    # Silence may mean an error that came as an event, or a send that failed in the queue just looked at.
    if n == 0:
        return look_for_errors(st)
    return <int> (st.window - <uint32_t> (st.posted - st.completed))


cdef int ring_finish(void *me) noexcept nogil:
    """Wait for the last signalled completion. RC reports an error if the other end is gone, so this ends."""
    cdef State *st = <State *> me
    cdef int64_t until = now() + st.limit_ns
    cdef int n = 0, i
    # Up to the last signalled one: on RC it vouches for those before it, so all buffers are ours again behind this
    # loop.
    while st.completed < st.signalled:
        n = wait_cq(&st.sends, &st.beat, st.wc, BATCH)
        for i in range(n):
            if st.wc[i].status != IBV_WC_SUCCESS:
                # Then the queue pair is in error, and every request behind this one is flushed: nothing more to wait
                # for.
                n = fail(st, &st.wc[i])
                break
            complete(st, &st.wc[i])
        if n == 0 and now() > until:
            n = -ETIMEDOUT
        if n < 0:
            break
    # The timer belongs to this thread: to stop it here leaves no signal that strikes what the thread does next.
    stop_beat(&st.beat)
    return n if n < 0 else 0


cdef inline int hand_out(State *st, Delivery *out, int n) noexcept nogil:
    """Completions to deliveries, in order; those before a failed one are delivered first."""
    cdef int i, status
    cdef ibv_wc *wc
    for i in range(n):
        wc = &st.wc[i]
        if wc.status != IBV_WC_SUCCESS:
            status = fail(st, wc)
            # Deliveries of this look go out first; `queue_receive` returns the error at the next call, from `failed`.
            return i if i else status
        # Receive requests complete in the order of posting, so the slot follows from counting, not from wr_id.
        out[i].data = st.landing + <size_t> st.take_slot * st.landing_stride + st.head
        # The device's CQE comes behind its payload, and polling it was an acquire: the bytes are there to be read.
        out[i].size = wc.byte_len - st.head
        st.take_slot += 1
        if st.take_slot == st.slots:
            st.take_slot = 0
    st.taken += <uint64_t> n
    return n


cdef int queue_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef State *st = <State *> me
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    # No more than the loop can hold: what stays in the queue keeps its buffer and its place.
    n = wait_cq(&st.receives, &st.beat, st.wc, <int> min(most, <uint32_t> BATCH))
    if n <= 0:
        return look_for_errors(st) if n == 0 else n
    return hand_out(st, out, n)


cdef int queue_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef State *st = <State *> me
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    n = wait_cq_until(&st.receives, st.wc, <int> min(most, <uint32_t> BATCH), deadline)
    if n <= 0:
        return look_for_errors(st) if n == 0 else n
    return hand_out(st, out, n)


cdef int queue_release(void *me, uint32_t count) noexcept nogil:
    """Post the oldest `count` receive buffers again, as one list."""
    cdef State *st = <State *> me
    cdef ibv_recv_wr *first = &st.recv_wr[st.free_slot]
    cdef ibv_recv_wr *last
    cdef ibv_recv_wr *following
    cdef ibv_recv_wr *bad
    cdef int error
    st.free_slot += count
    if st.free_slot >= st.slots:
        st.free_slot -= st.slots
    # The circle is cut behind the newest of them for this call, as in `submit`.
    last = &st.recv_wr[(st.free_slot if st.free_slot else st.slots) - 1]
    following = last.next
    last.next = NULL
    # The hand-over: the device may write into these buffers at once. No system call on rxe: rxe_post_one_recv moves an
    # index. An RC sender that finds none gets an RNR NAK and waits for the timer (rxe_resp.c, RESPST_ERR_RNR).
    error = ibv_post_recv(st.qp, first, &bad)
    last.next = following
    return -error if error > 0 else error


# --- completions with error ----------------------------------------------------------------------------------------

cdef int fail(State *st, const ibv_wc *wc) noexcept nogil:
    """Remember the error that tells most, and return it as a status.

    A queue pair in error flushes all its work requests; the first cause may stand in the other queue.
    """
    cdef ibv_wc other
    if not st.has_failed or st.failed.status == IBV_WC_WR_FLUSH_ERR:
        st.failed = wc[0]
        st.has_failed = True
    # A flush is only the consequence. Both queues are searched for the request that failed by itself.
    while st.failed.status == IBV_WC_WR_FLUSH_ERR and ibv_poll_cq(st.sends.cq, 1, &other) == 1:
        if other.status != IBV_WC_SUCCESS:
            st.failed = other
    while st.failed.status == IBV_WC_WR_FLUSH_ERR and ibv_poll_cq(st.receives.cq, 1, &other) == 1:
        if other.status != IBV_WC_SUCCESS:
            st.failed = other
    return WC_STATUS - <int> st.failed.status


cdef int look_for_errors(State *st) noexcept nogil:
    """Nothing came while we waited: has a send failed meanwhile, or the device said something? 0 if not."""
    # The send queue first: of a peer that is gone only an end with a message on its way learns by a completion.
    cdef int status = WC_STATUS - <int> st.failed.status if st.has_failed else reap(st)
    return status if status < 0 else look_for_events(&st.watch)
