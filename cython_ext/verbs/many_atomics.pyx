# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""RC atomics over many connections: each has a queue pair, and a counter of its own in the other end's memory.

A counter for each, because with one for all its number would say nothing of a connection: the k-th operation of a
connection brings what k of its own left, if each was carried out exactly once, whatever the others do meanwhile.
"""

cimport cython
from libc.errno cimport EBADMSG, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from cython_ext.core.clock cimport now
from cython_ext.core.payload cimport sequence_of
from cython_ext.headers.infiniband_verbs cimport (
    IBV_WC_SUCCESS,
    IBV_WR_ATOMIC_FETCH_AND_ADD,
)
from cython_ext.verbs.atomic_counter cimport counted
from cython_ext.verbs.many_pairs cimport ManyPairsTransport
from cython_ext.verbs.many_requests cimport ManyState, many_finish, poison, post_on
from cython_ext.verbs.pair_numbers cimport NOT_OURS
from cython_ext.verbs.verbs_ring cimport BATCH, State, fail
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport wait_cq

from cython_ext.verbs.rc_atomic import atomic_shape


cdef int ask(ManyState *m, uint32_t connection) noexcept nogil:
    """Post the one request on the connection, for its counter: 1 or an error."""
    cdef char *at = m.out + <size_t> connection * m.stride
    # Nothing of a message is built, so nobody but this writes here before the device does.
    poison(m, at)
    m.wr.wr.atomic.remote_addr = m.st.remote + <uint64_t> connection * m.st.remote_stride
    return post_on(m, connection, at)


cdef int atomic_post_on(void *me, uint32_t connection) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    if m.st.swaps:
        # The connection's last operation has been answered, so this is what the counter holds now.
        m.wr.wr.atomic.compare_add = counted(m.asked[connection])
        m.wr.wr.atomic.swap = counted(m.asked[connection] + 1)
    m.asked[connection] += 1
    return ask(m, connection)


cdef int take_counters(ManyState *m, uint32_t count) noexcept nogil:
    """Wait for what `count` counters are, and compare: 0 or an error."""
    cdef State *st = m.st
    cdef int64_t until = now() + st.limit_ns
    cdef uint32_t connection
    cdef uint64_t said
    cdef int n, i
    while count:
        n = wait_cq(&st.sends, &st.beat, m.wc, BATCH)
        if n < 0:
            return n
        if n == 0 and now() > until:
            return -ETIMEDOUT
        for i in range(n):
            if m.wc[i].status != IBV_WC_SUCCESS:
                return fail(st, &m.wc[i])
            connection = <uint32_t> m.wc[i].wr_id - 1
            said = sequence_of(m.out + <size_t> connection * m.stride, m.sge.length)
            st.counter += said
            # 32 bits, as `counted` has it
            if said != <uint32_t> m.asked[connection] and m.wrong == NOT_OURS:
                m.wrong = connection
                m.says = said
            count -= 1
    return 0


cdef int atomic_finish_all(void *me) noexcept nogil:
    """Ask what each counter is at last, by adding nothing: 0, -EBADMSG if one is not what was done, or an error."""
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef uint32_t connection
    cdef int status = 0, ending
    # The end with the counters asks nothing; nor does one whose trial ended without the answers to all.
    if st.posted == 0 or st.completed < st.posted:
        return many_finish(me)
    m.wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD
    m.wr.wr.atomic.compare_add = 0
    for connection in range(m.count):
        status = ask(m, connection)
        if status < 0:
            break
    if status >= 0:
        status = take_counters(m, m.count)
    ending = many_finish(me)
    if status < 0 or ending < 0:
        return status if status < 0 else ending
    return 0 if m.wrong == NOT_OURS else -EBADMSG


@cython.no_gc_clear
cdef class ManyAtomicsTransport(ManyPairsTransport):
    """As many RC queue pairs as the setting has connections, by the path fetch and add, or compare and swap.

    :param prepare, chosen_port: VerbsTransport's
    :raises MachineError: if the device has no atomics
    """

    def shape(self):
        """Of RcAtomicTransport's kind."""
        self.completes_by_send = True
        return atomic_shape(self, 1)

    cdef set_up(self, Shape shape):
        cdef ManyState *m = &self.m
        m.asked = <uint64_t *> calloc(self.prepare.setting.connections, sizeof(uint64_t))
        if m.asked == NULL:
            raise MemoryError
        m.wrong = NOT_OURS
        ManyPairsTransport.set_up(self, shape)
        m.sge.length = self.size
        self.st.swaps = self.prepare.setting.path == "rdma-cas"
        self.connections.ops.post = atomic_post_on
        self.connections.ops.finish = atomic_finish_all
        self.connections.own_numbers = True

    def _fill_slots(self):
        """A counter in each slot, before the other end learns where they are."""
        cdef ManyState *m = &self.m
        cdef uint64_t first = counted(0)
        cdef uint32_t slot
        for slot in range(m.slots):
            memcpy(m.landing + <size_t> slot * m.landing_stride, &first, sizeof(first))

    def _connect(self, there):
        ManyPairsTransport._connect(self, there)
        self.m.wr.wr.atomic.compare_add = <uint64_t> 1 << 32
        self.m.wr.wr.atomic.rkey = there.rkey
        self.ops.modulo = <uint64_t> 1 << 32

    def counts(self):
        """As of many queue pairs; and of a client `counter`, which is what all counters together said at last."""
        found = ManyPairsTransport.counts(self)
        return {**found, "counter": self.st.counter} if self.prepare.role == "client" else found

    def explain(self, int status):
        """As every verbs transport's; and of a counter that is not what was done."""
        cdef ManyState *m = &self.m
        if status == -EBADMSG:
            done = m.asked[m.wrong]
            return f"the counter of connection {m.wrong} says {m.says} at the end, after {done} operations"
        return ManyPairsTransport.explain(self, status)
