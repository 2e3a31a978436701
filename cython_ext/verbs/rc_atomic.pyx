# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""RC atomics, whose messages are what a counter in the other end's memory was: fetch and add, compare and swap."""

cimport cython
from libc.errno cimport EBADMSG, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.core.clock cimport now
from cython_ext.core.payload cimport sequence_of
from cython_ext.core.transport cimport Delivery
from cython_ext.headers.infiniband_verbs cimport (
    IBV_WR_ATOMIC_CMP_AND_SWP,
    IBV_WR_ATOMIC_FETCH_AND_ADD,
    ibv_send_wr,
)
from cython_ext.verbs.atomic_counter cimport counted
from cython_ext.verbs.rc cimport (
    POISON,
    read_finish,
    read_receive,
    read_receive_until,
    read_release,
    read_room,
)
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_ring cimport State, ring_outgoing, submit
from cython_ext.verbs.verbs_shape cimport Shape

from cython_ext.verbs.verbs_path import ACCESS_ATOMIC, ring_slots
from hwrx.errors import MachineError


cdef int atomic_post(void *me, uint32_t count) noexcept nogil:
    """Ask `count` times for the counter as it is, and for one more in its place."""
    cdef State *st = <State *> me
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef uint32_t k
    for k in range(count):
        # Before the hand-over, as READ does: what stands here afterwards came from the counter.
        memset(ring_outgoing(me, k), POISON, st.size)
        if st.swaps:
            # Of one queue pair they are carried out in the order of posting, so the k-th finds what the one before
            # left.
            wr.wr.atomic.compare_add = counted(st.posted + k)
            wr.wr.atomic.swap = counted(st.posted + k + 1)
        wr = wr.next
    return submit(st, count)


cdef int atomic_finish(void *me) noexcept nogil:
    """Ask what the counter is at last, by adding nothing: 0, -EBADMSG if that is not what was done, or an error."""
    cdef State *st = <State *> me
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef ibv_send_wr as_it_was = wr[0]
    cdef uint64_t posted = st.posted
    cdef int64_t until = now() + st.limit_ns
    cdef Delivery last
    cdef int status
    # The end with the counter asks nothing; nor does one whose trial ended without the answers to all.
    if st.posted == 0 or st.completed < st.posted:
        return read_finish(me)
    wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD
    wr.wr.atomic.compare_add = 0
    status = submit(st, 1)
    wr[0] = as_it_was
    while status >= 0:
        status = read_receive(me, &last, 1)
        if status == 1:
            st.counter = sequence_of(last.data, last.size)
            status = read_finish(me)
            return status if status < 0 else (0 if st.counter == posted else -EBADMSG)
        if status == 0 and now() > until:
            status = -ETIMEDOUT
    read_finish(me)
    return status


@cython.no_gc_clear
cdef class RcAtomicTransport(VerbsTransport):
    """RC atomics on 8 bytes of the other end's memory, whose CPU takes no part: fetch and add, or compare and swap.

    The counter is a message: its magic, and above that its number. Each operation adds 1 to the number and brings what
    was there before, so that the k-th brings message k, if each of those before it was carried out exactly once.

    :param prepare, chosen_port: VerbsTransport's
    :raises MachineError: if the device has no atomics
    """

    def shape(self):
        """Landing buffers as far as the window goes; every completion is a delivery; of the server one counter."""
        self.completes_by_send = True
        return atomic_shape(self, ring_slots(self.size, self.prepare.setting.window) + 1)

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        cdef State *st = self.st
        cdef uint64_t first = counted(0)
        st.swaps = prepare.setting.path == "rdma-cas"
        if prepare.role == "server":
            # Before the other end learns the address; the slots behind it are of no use.
            memcpy(st.landing, &first, sizeof(first))
        self.ops.me = st
        self.ops.outgoing = ring_outgoing
        self.ops.room = read_room
        self.ops.post = atomic_post
        self.ops.receive = read_receive
        self.ops.receive_until = read_receive_until
        self.ops.release = read_release
        self.ops.finish = atomic_finish
        self.ops.pull = True

    def connect(self, remote):
        """As every verbs transport; and aim at the other end's counter."""
        VerbsTransport.connect(self, remote)
        cdef State *st = self.st
        cdef uint32_t i, rkey = self.remote.rkey
        for i in range(st.window):
            st.send_wr[i].wr.atomic.remote_addr = st.remote
            st.send_wr[i].wr.atomic.rkey = rkey
            st.send_wr[i].wr.atomic.compare_add = <uint64_t> 1 << 32
        self.ops.modulo = <uint64_t> 1 << 32

    def counts(self):
        """As every verbs transport; and of a client `counter`, which is what the other end's counter said at last."""
        found = VerbsTransport.counts(self)
        return {**found, "counter": self.st.counter} if self.prepare.role == "client" else found

    def explain(self, int status):
        """As every verbs transport's; and of a counter that is not what was done."""
        if status == -EBADMSG:
            # the question itself was posted, and is no operation
            return f"the counter says {self.st.counter} at the end, after {self.st.posted - 1} operations"
        return VerbsTransport.explain(self, status)


def atomic_shape(transport, slots):
    """What a transport of the atomics needs.

    :param transport: a VerbsTransport whose context is open
    :param slots: buffers in which answers land
    :return: a Shape
    :raises MachineError: if its device has no atomics
    """
    context, prepare = transport.context, transport.prepare
    if not context.limits["atomics"]:
        words = f"{context.name} has no atomics (atomic_cap of ibv_query_device(3))"
        raise MachineError(words, remedy="rdma-read, say")
    swaps = prepare.setting.path == "rdma-cas"
    return Shape(
        opcode=IBV_WR_ATOMIC_CMP_AND_SWP if swaps else IBV_WR_ATOMIC_FETCH_AND_ADD,
        access=ACCESS_ATOMIC if prepare.role == "server" else 0, slots=slots, receives=0, landing_out=True,
    )
