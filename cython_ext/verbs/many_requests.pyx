# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many connections over verbs: the parts of `ManyOps`.

It reads downwards as a message travels: a buffer of its connection's two (`many_outgoing`), posted on its queue pair
(`many_post`), found in the one receive queue (`many_receive`), its buffer back to whatever the next message comes on
(`many_release`). READ and WRITE are one-sided: the other end's memory is passive, and our own completion the answer.

A connection has two buffers that go out, used in turn. The second is needed because an answer may overtake the
completion of its question: RC acknowledges when it likes. So a third message waits for the completion of the first.
"""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.clock cimport now
from cython_ext.core.connections cimport Arrival
from cython_ext.core.lengths cimport length_of, length_of_number
from cython_ext.core.transport cimport WC_STATUS
from cython_ext.headers.infiniband_verbs cimport (
    IBV_WC_SUCCESS,
    ibv_poll_cq,
    ibv_post_recv,
    ibv_post_send,
    ibv_post_srq_recv,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_wc,
)
from cython_ext.verbs.pair_numbers cimport NOT_OURS, connection_of
from cython_ext.verbs.rc cimport POISON, POISONED
from cython_ext.verbs.verbs_event cimport look_for_events
from cython_ext.verbs.verbs_ring cimport BATCH, State, fail
from cython_ext.verbs.verbs_wait cimport wait_cq

# --- sending -------------------------------------------------------------------------------------------------------

cdef inline void completed(ManyState *m, const ibv_wc *wc) noexcept nogil:
    # a work request's number is its connection's, from 1 on
    m.under_way[wc.wr_id - 1] -= 1


cdef int wait_for_buffer(ManyState *m, uint32_t connection) noexcept nogil:
    """Take completions of sends until one of the connection's buffers is ours: 1, 0 at the limit, or an error."""
    cdef State *st = m.st
    cdef int64_t until = now() + st.limit_ns
    cdef int n, i
    while m.under_way[connection] == BUFFERS:
        n = wait_cq(&st.sends, &st.beat, m.wc, BATCH)
        for i in range(n):
            if m.wc[i].status != IBV_WC_SUCCESS:
                return fail(st, &m.wc[i])
            completed(m, &m.wc[i])
        if n == 0:
            n = look_for_errors_of_many(m)
            if n == 0 and now() > until:
                return 0
        if n < 0:
            return n
    return 1


cdef int look_for_errors_of_many(ManyState *m) noexcept nogil:
    """Nothing came while we waited: has a send failed meanwhile, or the device said something? 0 if not."""
    cdef State *st = m.st
    cdef ibv_wc wc
    while not m.one_sided and ibv_poll_cq(st.sends.cq, 1, &wc) == 1:
        if wc.status != IBV_WC_SUCCESS:
            return fail(st, &wc)
        completed(m, &wc)
    # Not `look_for_errors`: the completions that it would take are those of a single connection's ring. Of one-sided
    # paths they are deliveries, which the next `receive` finds.
    return WC_STATUS - <int> st.failed.status if st.has_failed else look_for_events(&st.watch)


cdef int many_outgoing(void *me, uint32_t connection, char **message) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef int status
    if m.one_sided:
        # its one buffer: free, because its completion was what the loop has taken
        message[0] = m.out + <size_t> connection * m.stride
        return 1
    if m.under_way[connection] == BUFFERS:
        status = wait_for_buffer(m, connection)
        if status <= 0:
            return status
    message[0] = m.out + <size_t> (BUFFERS * connection + m.turn[connection]) * m.stride
    return 1


cdef int post_on(ManyState *m, uint32_t connection, char *at) noexcept nogil:
    """Hand the one request to the device, for the message that lies at `at`: 1 or an error."""
    cdef ibv_send_wr *bad
    cdef int error
    m.sge.addr = <uintptr_t> at
    m.wr.wr_id = connection + 1
    m.st.posted += 1
    # The provider copies request and list into the queue pair's own queue: both are ours again when it returns.
    error = ibv_post_send(m.pairs[connection], &m.wr, &bad)
    if error:
        return -error if error > 0 else error
    return 1


cdef void poison(ManyState *m, char *at) noexcept nogil:
    """Before the hand-over of what is fetched: what stands here afterwards came from the other end."""
    memset(at, POISON, min(m.sge.length, <uint32_t> POISONED))
    at[m.sge.length - 1] = <char> POISON


cdef int many_post(void *me, uint32_t connection) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef char *at
    if m.one_sided:
        at = m.out + <size_t> connection * m.stride
        # READ takes the other end's slots in turn; WRITE has one there for each connection.
        m.wr.wr.rdma.remote_addr = st.remote + st.remote_stride * (
            st.posted % st.remote_slots if m.reads else connection)
        if m.reads:
            m.sge.length = length_of_number(st.lengths, st.posted)
            poison(m, at)
        else:
            m.sge.length = length_of(st.lengths, at)
    else:
        at = m.out + <size_t> (BUFFERS * connection + m.turn[connection]) * m.stride
        m.turn[connection] ^= 1
        m.under_way[connection] += 1
        m.sge.length = length_of(st.lengths, at)
    return post_on(m, connection, at)


cdef int many_finish(void *me) noexcept nogil:
    """Wait until each of our buffers is ours again."""
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef int64_t until = now() + st.limit_ns
    cdef uint32_t connection = 0
    cdef int n = 0, i
    while not m.one_sided and connection < m.count:
        if m.under_way[connection] == 0:
            connection += 1
            continue
        n = wait_cq(&st.sends, &st.beat, m.wc, BATCH)
        for i in range(n):
            if m.wc[i].status != IBV_WC_SUCCESS:
                n = fail(st, &m.wc[i])
                break
            completed(m, &m.wc[i])
        if n == 0 and now() > until:
            n = -ETIMEDOUT
        if n < 0:
            break
    stop_beat(&st.beat)
    return n if n < 0 else 0


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline uint32_t connection_by(const ManyState *m, const ibv_wc *wc) noexcept nogil:
    """Which connection a message came on; NOT_OURS if it is a datagram that the connection's other end did not send."""
    # With shared requests only the queue pair's number tells; with one queue pair for all (UD) only the sender's.
    cdef uint32_t connection = connection_of(&m.numbers, wc.src_qp if m.one_pair else wc.qp_num)
    if m.far != NULL and connection != NOT_OURS and m.far[connection] != wc.src_qp:
        return NOT_OURS
    return connection


cdef int many_receive(void *me, Arrival *out, uint32_t most) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef ibv_wc *wc
    cdef uint32_t connection, slot
    cdef int n, i, k = 0, status
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    n = wait_cq(&st.sends if m.one_sided else &st.receives, &st.beat, m.wc, <int> min(most, <uint32_t> BATCH))
    if n <= 0:
        return look_for_errors_of_many(m) if n == 0 else n
    m.holds = 0
    for i in range(n):
        wc = &m.wc[i]
        if wc.status != IBV_WC_SUCCESS:
            n = fail(st, wc)
            # Those before it go out first; the error is returned at the next call, from `failed`.
            return k if k else n
        if m.one_sided:
            connection = <uint32_t> wc.wr_id - 1
            out[k].message.data = m.out + <size_t> connection * m.stride
            out[k].message.size = length_of(st.lengths, out[k].message.data)
            st.completed += 1
        else:
            slot = <uint32_t> wc.wr_id
            connection = connection_by(m, wc)
            if connection == NOT_OURS:
                # Nothing of it is looked at, and its buffer goes back to the queue that it was taken from.
                m.foreign += 1
                status = post_receive(m, slot, 0 if m.one_pair else connection_of(&m.numbers, wc.qp_num))
                if status < 0:
                    return status
                continue
            # Behind the route header, if there is one; byte_len counts it.
            out[k].message.data = m.landing + <size_t> slot * m.landing_stride + m.head
            out[k].message.size = wc.byte_len - m.head
            m.held[k] = slot
            m.holder[k] = connection
            m.holds += 1
        out[k].connection = connection
        k += 1
    return k


cdef int post_receive(ManyState *m, uint32_t slot, uint32_t connection) noexcept nogil:
    """The hand-over of a landing buffer: to all connections, or to the one that it belongs to."""
    cdef ibv_recv_wr *bad
    cdef int error
    m.recv_sge.addr = <uintptr_t> m.landing + <uint64_t> slot * m.landing_stride
    m.recv_wr.wr_id = slot
    if m.shared != NULL:
        error = ibv_post_srq_recv(m.shared, &m.recv_wr, &bad)
    else:
        error = ibv_post_recv(m.pairs[connection], &m.recv_wr, &bad)
    return -error if error > 0 else error


cdef int many_release(void *me) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef uint32_t k
    cdef int status
    for k in range(m.holds):
        status = post_receive(m, m.held[k], m.holder[k])
        if status < 0:
            return status
    m.holds = 0
    return 0
