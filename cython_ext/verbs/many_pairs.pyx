# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many RC queue pairs of one process: one completion queue a direction, one memory region, shared receive requests.

It reads downwards as a message travels: a buffer of its connection's two (`many_outgoing`), posted on its queue pair
(`many_post`), found in the one receive queue (`many_receive`), its buffer back to whatever the next message comes on
(`many_release`). READ and WRITE are one-sided: the other end's memory is passive, and our own completion the answer.

A connection has two buffers that go out, used in turn. The second is needed because an answer may overtake the
completion of its question: RC acknowledges when it likes. So a third message waits for the completion of the first.
"""

import secrets

cimport cython
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.clock cimport now
from cython_ext.core.connections cimport Arrival, Connections
from cython_ext.core.lengths cimport length_of, length_of_number
from cython_ext.core.payload cimport build_source
from cython_ext.core.transport cimport WC_STATUS, Transport
from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_SEND_INLINE,
    IBV_SEND_SIGNALED,
    IBV_WC_SUCCESS,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_SEND,
    ibv_poll_cq,
    ibv_post_recv,
    ibv_post_send,
    ibv_post_srq_recv,
    ibv_qp,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_sge,
    ibv_srq,
    ibv_wc,
    ibv_wr_opcode,
)
from cython_ext.verbs.pair_numbers cimport Numbers, connection_of, note_number, room_for_numbers
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_queue cimport (
    CompletionChannel,
    CompletionQueue,
    QueuePair,
    SharedReceiveQueue,
)
from cython_ext.verbs.verbs_ring cimport BATCH, State, fail, look_for_errors
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport wait_cq

from cython_ext.core.lengths import read_entries
from cython_ext.verbs.verbs_path import MOST_INLINE, RING_LIMIT
from hwrx.errors import PeerError, UsageError

cdef enum:
    BUFFERS = 2            # that go out, and own receive requests, of each connection
    POISON = 0xA5          # as in rc.pyx
    POISONED = 24

OPCODES = {"rdma-send": IBV_WR_SEND, "rdma-write": IBV_WR_RDMA_WRITE, "rdma-read": IBV_WR_RDMA_READ}


cdef struct ManyState:
    State *st
    uint32_t count
    ibv_qp **pairs
    ibv_srq *shared             # NULL: each queue pair has receive requests of its own
    Numbers numbers             # from a queue pair's number to its connection
    bint one_sided
    bint reads

    char *out
    uint32_t stride
    uint8_t *turn               # of the connection's two buffers, the next one
    uint8_t *under_way          # of them, those that are the device's
    ibv_send_wr wr
    ibv_sge sge
    uint32_t out_lkey

    char *landing
    uint32_t slots
    ibv_recv_wr recv_wr
    ibv_sge recv_sge
    uint32_t held[BATCH]        # slots that the last receive handed out
    uint32_t holder[BATCH]      # and their connections
    uint32_t holds
    ibv_wc wc[BATCH]


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
    return look_for_errors(st)


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


cdef int many_post(void *me, uint32_t connection) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef ibv_send_wr *bad
    cdef char *at
    cdef int error
    if m.one_sided:
        at = m.out + <size_t> connection * m.stride
        # READ takes the other end's slots in turn; WRITE has one there for each connection.
        m.wr.wr.rdma.remote_addr = st.remote + st.remote_stride * (
            st.posted % st.remote_slots if m.reads else connection)
        if m.reads:
            # Before the hand-over: what stands here afterwards was read.
            m.sge.length = length_of_number(st.lengths, st.posted)
            memset(at, POISON, min(m.sge.length, <uint32_t> POISONED))
            at[m.sge.length - 1] = <char> POISON
        else:
            m.sge.length = length_of(st.lengths, at)
    else:
        at = m.out + <size_t> (BUFFERS * connection + m.turn[connection]) * m.stride
        m.turn[connection] ^= 1
        m.under_way[connection] += 1
        m.sge.length = length_of(st.lengths, at)
    m.sge.addr = <uintptr_t> at
    m.wr.wr_id = connection + 1
    st.posted += 1
    # The provider copies request and list into the queue pair's own queue: both are ours again when it returns.
    error = ibv_post_send(m.pairs[connection], &m.wr, &bad)
    if error:
        return -error if error > 0 else error
    return 1


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

cdef int many_receive(void *me, Arrival *out, uint32_t most) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    cdef State *st = m.st
    cdef ibv_wc *wc
    cdef int n, i
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
            return i if i else n
        if m.one_sided:
            out[i].connection = <uint32_t> wc.wr_id - 1
            out[i].message.data = m.out + <size_t> out[i].connection * m.stride
            out[i].message.size = length_of(st.lengths, out[i].message.data)
            continue
        # With shared requests only the queue pair's number tells on which connection a message came.
        out[i].connection = connection_of(&m.numbers, wc.qp_num)
        out[i].message.data = m.landing + <size_t> wc.wr_id * m.stride
        out[i].message.size = wc.byte_len
        m.held[i] = <uint32_t> wc.wr_id
        m.holder[i] = out[i].connection
        m.holds += 1
    return n


cdef int post_receive(ManyState *m, uint32_t slot, uint32_t connection) noexcept nogil:
    """The hand-over of a landing buffer: to all connections, or to the one that it belongs to."""
    cdef ibv_recv_wr *bad
    cdef int error
    m.recv_sge.addr = <uintptr_t> m.landing + <uint64_t> slot * m.stride
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


# --- the endpoint --------------------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class ManyPairsTransport(VerbsTransport):
    """As many RC queue pairs as the setting has connections, by the path SEND both ways, WRITE or READ.

    `connections` is the account that `loops.many` fills, and its table of functions.

    :param prepare, chosen_port: VerbsTransport's
    :raises UsageError: if buffers for all connections are more than an endpoint takes, or the device has no room for
        so many queue pairs
    """
    cdef ManyState m
    cdef readonly Connections connections
    cdef SharedReceiveQueue shared
    cdef list pairs
    cdef list numbers           # first packet sequence number of each queue pair

    def __dealloc__(self):
        free(self.m.pairs)
        free(self.m.numbers.entries)
        free(self.m.turn)
        free(self.m.under_way)

    def shape(self):
        """Unused but for the opcode: `set_up` makes what many queue pairs need."""
        return Shape(opcode=OPCODES[self.prepare.setting.path], access=0, slots=1, receives=0)

    cdef set_up(self, Shape shape):
        setting = self.prepare.setting
        cdef ManyState *m = &self.m
        m.st = self.st
        m.count = setting.connections
        m.reads = setting.path == "rdma-read"
        m.one_sided = setting.path != "rdma-send"
        self._check_limits()
        self._pin_all()
        self._make_pairs()
        self._link_all(shape.opcode)
        self.connections = Connections(m.count)
        self.connections.ops.me = self.ops.me = m
        self.connections.ops.outgoing = many_outgoing
        self.connections.ops.post = many_post
        self.connections.ops.receive = many_receive
        self.connections.ops.release = many_release
        self.connections.ops.finish = many_finish
        self.ops.pull = m.one_sided
        self.ops.blind = setting.path == "rdma-write"

    def _check_limits(self):
        limits = self.context.limits
        if self.m.count > limits["max_qp"]:
            room = f"{self.context.name} has room for {limits['max_qp']} queue pairs"
            raise UsageError(f"{room}, not for {self.m.count}", remedy=f"--connections {limits['max_qp']} or less")
        if self.prepare.setting.srq and not self.m.one_sided and limits["max_srq"] == 0:
            raise UsageError(f"{self.context.name} has no shared receive queues", remedy="--no-srq: one for each")

    def _pin_all(self):
        """One buffer and one memory region for all: what goes out, and behind it where messages land."""
        cdef State *st = self.st
        cdef ManyState *m = &self.m
        cdef size_t out_bytes, landing_bytes
        st.size = self.size
        st.lengths = &self.lengths
        st.window = self.window = m.count
        st.limit_ns = round(self.prepare.setting.limit * 1e9)
        st.trial = self.prepare.trial
        st.signal_every = 1
        m.stride = st.stride = st.landing_stride = (self.size + 63) & ~<uint32_t> 63
        if m.one_sided:
            # one slot more than connections, so that a READ never finds what its buffer held before; of messages that
            # differ in size one for each entry of the table
            m.slots = m.count + 1 if self.prepare.role == "server" else 0
            if m.slots and m.reads and self.prepare.setting.mix:
                m.slots = read_entries(self.size)
            out_bytes = <size_t> m.count * m.stride if self.prepare.role == "client" else 0
        else:
            # one under way on each connection, and those that the loop holds while their answers bring the next
            m.slots = m.count + BATCH if self.prepare.setting.srq else BUFFERS * m.count
            out_bytes = <size_t> BUFFERS * m.count * m.stride
        landing_bytes = <size_t> m.slots * m.stride
        st.slots = m.slots
        if out_bytes + landing_bytes > 2 * RING_LIMIT:
            need = f"{m.count} connections with messages of {self.size} bytes need {out_bytes + landing_bytes} bytes"
            raise UsageError(
                f"{need} of pinned memory, and an endpoint takes {2 * RING_LIMIT}",
                remedy="fewer --connections, or a smaller --size",
            )
        self._get_memory(out_bytes + landing_bytes)
        m.out = st.out = self.buffer.base
        m.landing = st.landing = self.buffer.base + (out_bytes if landing_bytes else 0)
        access = IBV_ACCESS_LOCAL_WRITE
        if m.one_sided and self.prepare.role == "server":
            access |= IBV_ACCESS_REMOTE_READ if m.reads else IBV_ACCESS_REMOTE_WRITE
        self.landing_mr = self._register(0, out_bytes + landing_bytes, access)

    def _make_pairs(self):
        cdef State *st = self.st
        cdef ManyState *m = &self.m
        cdef uint32_t k
        cdef QueuePair pair
        setting = self.prepare.setting
        events = setting.wait != "poll"
        most = self.context.limits["max_cqe"]
        wanted = max(BUFFERS * m.count, m.slots) + 1
        if wanted > most:
            room = f"{self.context.name} has completion queues of {most} entries"
            raise UsageError(f"{room}, {m.count} connections need {wanted}", remedy="fewer --connections")
        # sends are waited for by one-sided paths; with the others their completions are taken in passing
        if events and m.one_sided:
            self.send_channel = CompletionChannel(self.context)
        if events and not m.one_sided:
            self.recv_channel = CompletionChannel(self.context)
        self.send_cq = CompletionQueue(self.context, BUFFERS * m.count + 1, self.send_channel)
        self.recv_cq = CompletionQueue(self.context, m.slots + 1, self.recv_channel)
        if setting.srq and not m.one_sided:
            self.shared = SharedReceiveQueue(self.pd, m.slots)
            m.shared = self.shared.ptr
        inline = self.size if setting.inline is None or self.size <= setting.inline else 0
        if m.reads or inline > MOST_INLINE:
            inline = 0
        m.pairs = <ibv_qp **> calloc(m.count, sizeof(ibv_qp *))
        m.numbers = room_for_numbers(m.count)
        m.turn = <uint8_t *> calloc(m.count, 1)
        m.under_way = <uint8_t *> calloc(m.count, 1)
        if m.pairs == NULL or m.numbers.entries == NULL or m.turn == NULL or m.under_way == NULL:
            raise MemoryError
        access = 0
        if m.one_sided and self.prepare.role == "server":
            access = IBV_ACCESS_REMOTE_READ if m.reads else IBV_ACCESS_REMOTE_WRITE
        self.pairs = []
        self.numbers = [secrets.randbits(24) for _ in range(m.count)]
        for k in range(m.count):
            pair = QueuePair(
                self.pd, self.send_cq, self.recv_cq, self.port, datagram=False, sends=BUFFERS, receives=BUFFERS,
                inline=inline, access=access, pkey_index=setting.pkey_index, shared=self.shared,
            )
            if inline and pair.max_inline < inline:
                inline = 0  # the first has asked the device
            self.pairs.append(pair)
            m.pairs[k] = pair.ptr
            note_number(&m.numbers, pair.ptr.qp_num, k)
        self.qp = self.pairs[0]
        if inline:
            st.flags = IBV_SEND_INLINE
        st.qp = self.qp.ptr
        st.sends.cq = self.send_cq.ptr
        st.receives.cq = self.recv_cq.ptr
        st.sends.channel = NULL if self.send_channel is None else self.send_channel.ptr
        st.receives.channel = NULL if self.recv_channel is None else self.recv_channel.ptr

    def _link_all(self, int opcode):
        """The one request of each kind, which is copied at each post; and all receive requests."""
        cdef ManyState *m = &self.m
        cdef State *st = self.st
        cdef uint32_t slot
        m.wr.sg_list = &m.sge
        m.wr.num_sge = 1
        m.wr.opcode = <ibv_wr_opcode> opcode
        # each one is signalled: its completion is its connection's
        m.wr.send_flags = IBV_SEND_SIGNALED | st.flags
        m.sge.lkey = m.recv_sge.lkey = self.landing_mr.lkey
        m.recv_wr.sg_list = &m.recv_sge
        m.recv_wr.num_sge = 1
        m.recv_sge.length = self.size
        if m.reads and self.prepare.role == "server":
            self._fill_slots()
        if not m.one_sided:
            for slot in range(m.slots):
                self._check(post_receive(m, slot, slot // BUFFERS), "ibv_post_recv")

    def _fill_slots(self):
        """What is fetched, as RcReadTransport has it."""
        cdef ManyState *m = &self.m
        cdef uint32_t slot
        for slot in range(m.slots):
            build_source(m.landing + <size_t> slot * m.stride, length_of_number(m.st.lengths, slot), slot, m.st.trial)

    def vary(self, sizes):
        """As every transport: each request is as long as its message anyway.

        :param sizes: a table of uint32 bytes
        """
        Transport.vary(self, sizes)
        if self.m.reads and self.prepare.role == "server":
            self._fill_slots()

    def _describe(self):
        cdef VerbsTransport base = self
        return self.chosen_port.describe_end(
            path=self.prepare.setting.path, size=self.size, qpn=self.qp.number, psn=self.numbers[0], reads=1,
            address=<uintptr_t> base.st.landing, rkey=self.landing_mr.rkey, slots=base.st.slots,
            stride=base.st.landing_stride,
            more=[(pair.number, psn) for pair, psn in zip(self.pairs[1:], self.numbers[1:], strict=True)],
        )

    def _connect(self, there):
        if len(there.more) + 1 != self.m.count:
            raise PeerError(f"the ends do not fit: {self.m.count} connections here, {len(there.more) + 1} there")
        far = [(there.qpn, there.psn), *there.more]
        for pair, psn, (qpn, remote_psn) in zip(self.pairs, self.numbers, far, strict=True):
            self._connect_pair(pair, there, psn, qpn, remote_psn)
        self._check_parameters()
        self.m.wr.wr.rdma.rkey = there.rkey
        if self.m.reads:
            self.ops.modulo = there.slots

    def chosen(self):
        """As every verbs transport's; and what is of many connections.

        :return: with `connections`, and `shared_receives`, the requests that they share, or 0
        """
        shared = self.m.slots if self.shared is not None else 0
        return {**VerbsTransport.chosen(self), "connections": self.m.count, "shared_receives": shared}

    def counts(self):
        """As every verbs transport; and `strayed`."""
        return {**VerbsTransport.counts(self), **self.connections.counts()}

    def _close_path(self):
        for pair in self.pairs or ():
            pair.close()
        if self.shared is not None:
            self.shared.close()
