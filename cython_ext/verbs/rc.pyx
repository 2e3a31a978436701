# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The reliable-connected transports whose messages are seen as completions: SEND, WRITE with immediate, READ."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.lengths cimport length_of, length_of_number
from cython_ext.core.payload cimport build_source
from cython_ext.core.transport cimport WC_STATUS, Delivery
from cython_ext.headers.infiniband_verbs cimport (
    IBV_WC_SUCCESS,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE_WITH_IMM,
    IBV_WR_SEND,
    ibv_send_wr,
)
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_ring cimport (
    BATCH,
    State,
    fail,
    queue_receive,
    queue_receive_until,
    queue_release,
    ring_finish,
    ring_outgoing,
    ring_room,
    submit,
)
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport wait_cq, wait_cq_until

from cython_ext.core.lengths import read_entries
from cython_ext.verbs.verbs_path import ACCESS_READ, ACCESS_WRITE, ring_slots

# Receive buffers of a stream or an open loop: a sender that finds none waits for the RNR timer, and that is measured.
DEEP = 512


def receive_slots(prepare, size: int) -> int:
    """How many receive buffers one end posts: deep if messages come unasked, few if each answers one of ours.

    :param prepare: a `hwrx.control.messages.Prepare`
    :param size: bytes of a message
    :return: as many as RING_LIMIT allows, at least one
    """
    setting = prepare.setting
    if setting.receives is not None:
        return ring_slots(size, setting.receives)
    if setting.pattern == "pingpong":
        return ring_slots(size, min(setting.window, 16))
    # Its server sends nothing back; the queue pair wants one request all the same.
    if setting.pattern == "stream" and prepare.role == "client":
        return 1
    return ring_slots(size, max(DEEP, 2 * setting.window))


# --- SEND ----------------------------------------------------------------------------------------------------------

cdef int send_post(void *me, uint32_t count) noexcept nogil:
    # Nothing to aim: the other end's oldest receive request says where it lands.
    return submit(<State *> me, count)


@cython.no_gc_clear
cdef class RcSendTransport(VerbsTransport):
    """RC SEND: each message lands in the oldest receive buffer that the other end posted.

    :param prepare, chosen_port: VerbsTransport's
    """

    def shape(self):
        """Receive requests that name the landing buffers; nothing for the other end to reach into."""
        slots = receive_slots(self.prepare, self.size)
        return Shape(opcode=IBV_WR_SEND, access=0, slots=slots, receives=slots)

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        use_queues(self)


cdef void use_queues(VerbsTransport transport) noexcept:
    # `me` points to memory that the object owns: who calls a loop holds the object meanwhile.
    transport.ops.me = transport.st
    transport.ops.outgoing = ring_outgoing
    transport.ops.room = ring_room
    transport.ops.post = send_post
    transport.ops.receive = queue_receive
    transport.ops.receive_until = queue_receive_until
    transport.ops.release = queue_release
    transport.ops.finish = ring_finish


# --- WRITE with immediate ------------------------------------------------------------------------------------------

cdef inline void aim(State *st, uint32_t count) noexcept nogil:
    """Point the next `count` work requests at the other end's slots, in turn."""
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef uint32_t _
    for _ in range(count):
        # In turn, and never back: the next slot is the one that the other end gives back next.
        wr.wr.rdma.remote_addr = st.remote + <uint64_t> st.remote_slot * st.remote_stride
        st.remote_slot += 1
        if st.remote_slot == st.remote_slots:
            st.remote_slot = 0
        wr = wr.next


cdef int write_imm_post(void *me, uint32_t count) noexcept nogil:
    # Before `submit`: afterwards the provider has copied the requests into its queue, with the addresses of then.
    aim(<State *> me, count)
    return submit(<State *> me, count)


cdef aim_at(VerbsTransport transport):
    cdef uint32_t i, rkey = transport.remote.rkey
    # The rkey is the same for every slot, as one memory region covers them all: written once.
    for i in range(transport.st.window):
        transport.st.send_wr[i].wr.rdma.rkey = rkey


@cython.no_gc_clear
cdef class RcWriteImmTransport(VerbsTransport):
    """RC WRITE with immediate: lands where the sender says, and takes a receive request, so the receiver gets a CQE.

    The sender goes round the other end's slots in the order in which that end gives them back. Of a message of several
    packets only the last takes a receive request (RXE_RWR_MASK in rxe_opcode.c): those before it land while the
    receiver may still hold a message for each of its requests. There is a slot more than requests for that one message,
    so none is overwritten unseen.

    :param prepare, chosen_port: VerbsTransport's
    """

    def shape(self):
        """Receive requests without buffers, and one slot more to write to."""
        # An immediate needs a request and no buffer of it: the payload goes where the sender aims (into=False).
        receives = receive_slots(self.prepare, self.size)
        return Shape(
            opcode=IBV_WR_RDMA_WRITE_WITH_IMM, access=ACCESS_WRITE, slots=receives + 1, receives=receives, into=False
        )

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        use_queues(self)
        self.ops.post = write_imm_post

    def connect(self, remote):
        """As every verbs transport; and aim at the other end's memory."""
        VerbsTransport.connect(self, remote)
        aim_at(self)


# --- READ ----------------------------------------------------------------------------------------------------------

# Its room, deliveries and end are those of the atomics, too (rc.pxd): both fetch, and no receiver takes part.

cdef int read_room(void *me) noexcept nogil:
    """Landing buffers that are free. Never waits: only a delivery that is given back makes room."""
    cdef State *st = <State *> me
    # Counted by what was given back, not by completions: a completed READ is a message that the loop still holds.
    return <int> (st.window - <uint32_t> (st.posted - st.completed))


cdef inline void poison(char *landing, uint32_t size) noexcept nogil:
    """So that what stands in a landing buffer afterwards was read, from its header to its trailer."""
    # Before the hand-over. From `submit` on the device writes here, and a poison that came late would destroy a
    # message.
    memset(landing, POISON, min(size, <uint32_t> POISONED))
    # The trailer as well: with the header alone, a READ whose end is missing would pass.
    landing[size - 1] = <char> POISON


cdef int read_post(void *me, uint32_t count) noexcept nogil:
    """Poison each landing buffer; then ask."""
    cdef State *st = <State *> me
    cdef uint32_t k
    for k in range(count):
        # Still ours: posted is none of it, and what lay here before was given back.
        poison(ring_outgoing(me, k), st.size)
    aim(st, count)
    return submit(st, count)


cdef int read_post_varying(void *me, uint32_t count) noexcept nogil:
    """As `read_post`, of messages that differ in size: the k-th READ asks for slot k, of which both ends know it."""
    cdef State *st = <State *> me
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef uint32_t k
    for k in range(count):
        # Known without a look at the payload, which is the other end's: slots are asked for in turn, and there are as
        # many as the table has entries.
        wr.sg_list.length = length_of_number(st.lengths, st.posted + k)
        # Where its own trailer will stand; what lies behind it is of another message, and nobody looks there.
        poison(ring_outgoing(me, k), wr.sg_list.length)
        wr = wr.next
    # As with one size: the requests are the provider's only when they say how much, and from where.
    aim(st, count)
    return submit(st, count)


cdef inline int hand_out_reads(State *st, Delivery *out, int n) noexcept nogil:
    cdef int i, status
    for i in range(n):
        if st.wc[i].status != IBV_WC_SUCCESS:
            status = fail(st, &st.wc[i])
            return i if i else status
        # The CQE is the hand-over back. Before it the bytes may be there in part, and in any order.
        out[i].data = st.out + <size_t> st.take_slot * st.stride
        # Of what stands there now, which is no message if the READ did not bring one.
        out[i].size = length_of(st.lengths, out[i].data)
        # READs complete in the order of posting (every one is signalled), so counting finds the buffer.
        st.take_slot += 1
        if st.take_slot == st.window:
            st.take_slot = 0
    return n


cdef int read_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef State *st = <State *> me
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    # The completions of sends are the deliveries: no receive request exists on this path.
    n = wait_cq(&st.sends, &st.beat, st.wc, <int> min(most, <uint32_t> BATCH))
    return hand_out_reads(st, out, n) if n > 0 else n


cdef int read_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef State *st = <State *> me
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    n = wait_cq_until(&st.sends, st.wc, <int> min(most, <uint32_t> BATCH), deadline)
    return hand_out_reads(st, out, n) if n > 0 else n


cdef int read_release(void *me, uint32_t count) noexcept nogil:
    cdef State *st = <State *> me
    # Only this makes room: `read_post` may poison the buffer again.
    st.completed += count
    return 0


cdef int read_finish(void *me) noexcept nogil:
    # The loop has taken every answer or given up, so no completion is waited for here.
    stop_beat(&(<State *> me).beat)
    return 0


@cython.no_gc_clear
cdef class RcReadTransport(VerbsTransport):
    """RC READ: the client fetches from buffers that the server filled beforehand; the server's CPU takes no part.

    The k-th READ fetches slot k modulo the number of slots. There is one slot more than landing buffers, so what a
    landing buffer held before is never what it should hold now.

    :param prepare, chosen_port: VerbsTransport's
    """

    def shape(self):
        """Landing buffers as far as the window goes; work requests name them; every completion is a delivery."""
        self.completes_by_send = True
        return Shape(
            opcode=IBV_WR_RDMA_READ, access=ACCESS_READ if self.prepare.role == "server" else 0,
            slots=self._slots(), receives=0, landing_out=True,
        )

    def _slots(self):
        # of messages that differ: one for each entry of the table, so that a slot's message never changes its size
        setting = self.prepare.setting
        return read_entries(self.size) if setting.mix else ring_slots(self.size, setting.window) + 1

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        cdef State *st = self.st
        if prepare.role == "server" and not prepare.setting.mix:
            self.fill_slots()
        self.ops.me = st
        self.ops.outgoing = ring_outgoing
        self.ops.room = read_room
        self.ops.post = read_post
        self.ops.receive = read_receive
        self.ops.receive_until = read_receive_until
        self.ops.release = read_release
        self.ops.finish = read_finish
        self.ops.pull = True

    def fill_slots(self):
        """What is fetched; before the other end learns the address (`describe`): no READ can come earlier."""
        cdef State *st = self.st
        cdef uint32_t slot
        cdef char *at
        for slot in range(st.slots):
            at = st.landing + <size_t> slot * st.landing_stride
            # The slot's number stands for the sequence: the memory is passive and cannot count the questions.
            build_source(at, length_of_number(st.lengths, slot), slot, st.trial)

    def vary(self, sizes):
        """As every transport; the table has as many entries as there are slots.

        :param sizes: a table of uint32 bytes
        """
        VerbsTransport.vary(self, sizes)
        self.ops.post = read_post_varying
        if self.prepare.role == "server":
            self.fill_slots()

    def connect(self, remote):
        """As every verbs transport; and aim at the other end's memory."""
        VerbsTransport.connect(self, remote)
        aim_at(self)
        self.ops.modulo = self.st.remote_slots
