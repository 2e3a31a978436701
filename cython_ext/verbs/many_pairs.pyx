# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Many connections of one process: one completion queue a direction, one memory region, shared receive requests.

What RC queue pairs need is all here; `many_atomics` and `many_datagrams` say what is different of theirs. What happens
to a message is in `many_requests`.
"""

import secrets

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free

from cython_ext.core.connections cimport Connections
from cython_ext.core.lengths cimport length_of_number
from cython_ext.core.payload cimport build_source
from cython_ext.core.transport cimport Transport
from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_SEND_INLINE,
    IBV_SEND_SIGNALED,
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_SEND,
    ibv_qp,
    ibv_wr_opcode,
)
from cython_ext.verbs.many_requests cimport (
    BUFFERS,
    ManyState,
    many_finish,
    many_outgoing,
    many_post,
    many_receive,
    many_release,
    post_receive,
)
from cython_ext.verbs.pair_numbers cimport note_number, room_for_numbers
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_queue cimport CompletionChannel, CompletionQueue, QueuePair, SharedReceiveQueue
from cython_ext.verbs.verbs_ring cimport BATCH, State
from cython_ext.verbs.verbs_shape cimport Shape

from cython_ext.core.lengths import read_entries
from cython_ext.verbs.verbs_path import MOST_INLINE, RING_LIMIT
from hwrx.errors import PeerError, UsageError

OPCODES = {"rdma-send": IBV_WR_SEND, "rdma-write": IBV_WR_RDMA_WRITE, "rdma-read": IBV_WR_RDMA_READ}
# what the other end may do with our memory
RIGHTS = {"rdma-send": 0, "rdma-write": IBV_ACCESS_REMOTE_WRITE, "rdma-read": IBV_ACCESS_REMOTE_READ}


@cython.no_gc_clear
cdef class ManyPairsTransport(VerbsTransport):
    """As many connections as the setting says: RC queue pairs, by the path SEND both ways, WRITE or READ.

    `connections` is the account that `loops.many` fills, and its table of functions.

    :param prepare, chosen_port: VerbsTransport's
    :raises UsageError: if buffers for all connections are more than an endpoint takes, or the device has no room for
        so many queue pairs
    """

    def __dealloc__(self):
        free(self.m.pairs)
        free(self.m.numbers.entries)
        free(self.m.turn)
        free(self.m.under_way)
        free(self.m.far)
        free(self.m.asked)

    def shape(self):
        """Of which kind: how many buffers and requests that takes follows from the number of connections."""
        path = self.prepare.setting.path
        return Shape(
            opcode=OPCODES[path], access=RIGHTS[path] if self.prepare.role == "server" else 0, slots=1,
            receives=path == "rdma-send", landing_out=path == "rdma-read",
        )

    cdef set_up(self, Shape shape):
        setting = self.prepare.setting
        cdef ManyState *m = &self.m
        m.st = self.st
        m.count = setting.connections
        m.reads = setting.path == "rdma-read"
        m.one_sided = shape.receives == 0
        m.one_pair = shape.datagram and self.prepare.role == "client"
        m.head = shape.head
        self._check_limits()
        self._pin_all(shape)
        self._make_pairs(shape)
        self._link_all(shape)
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
        if self.m.count > limits["max_qp"] and not self.m.one_pair:
            room = f"{self.context.name} has room for {limits['max_qp']} queue pairs"
            raise UsageError(f"{room}, not for {self.m.count}", remedy=f"--connections {limits['max_qp']} or less")
        if self.prepare.setting.srq and not self.m.one_sided and limits["max_srq"] == 0:
            raise UsageError(f"{self.context.name} has no shared receive queues", remedy="--no-srq: one for each")

    def _pin_all(self, Shape shape):
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
        m.stride = st.stride = (self.size + 63) & ~<uint32_t> 63
        m.landing_stride = st.landing_stride = (self.size + m.head + 63) & ~<uint32_t> 63
        if m.one_sided:
            # one slot more than connections, so that a READ never finds what its buffer held before; of messages that
            # differ in size one for each entry of the table
            m.slots = m.count + 1 if self.prepare.role == "server" else 0
            if m.slots and m.reads and self.prepare.setting.mix:
                m.slots = read_entries(self.size)
            out_bytes = <size_t> m.count * m.stride if self.prepare.role == "client" else 0
        else:
            # one under way on each connection, and those that the loop holds while their answers bring the next
            m.slots = m.count + BATCH if self.prepare.setting.srq or m.one_pair else BUFFERS * m.count
            out_bytes = <size_t> BUFFERS * m.count * m.stride
        landing_bytes = <size_t> m.slots * m.landing_stride
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
        self.landing_mr = self._register(0, out_bytes + landing_bytes, IBV_ACCESS_LOCAL_WRITE | shape.access)

    def _make_pairs(self, Shape shape):
        cdef State *st = self.st
        cdef ManyState *m = &self.m
        cdef uint32_t k, together = m.count if m.one_pair else 1  # connections of one queue pair
        cdef QueuePair pair
        setting = self.prepare.setting
        events = setting.wait != "poll"
        most = self.context.limits["max_cqe"]
        wanted = max(BUFFERS * m.count, m.slots) + 1
        if wanted > most:
            room = f"{self.context.name} has completion queues of {most} entries"
            raise UsageError(f"{room}, {m.count} connections need {wanted}", remedy="fewer --connections")
        if m.one_pair and wanted > self.context.limits["max_qp_wr"]:
            room = f"{self.context.name} has queue pairs of {self.context.limits['max_qp_wr']} requests"
            raise UsageError(f"{room}, {m.count} connections over one need {wanted}", remedy="fewer --connections")
        # sends are waited for by one-sided paths; with the others their completions are taken in passing
        if events and m.one_sided:
            self.send_channel = CompletionChannel(self.context)
        if events and not m.one_sided:
            self.recv_channel = CompletionChannel(self.context)
        self.send_cq = CompletionQueue(self.context, BUFFERS * m.count + 1, self.send_channel)
        self.recv_cq = CompletionQueue(self.context, m.slots + 1, self.recv_channel)
        # one queue pair has one receive queue anyway
        if setting.srq and not m.one_sided and not m.one_pair:
            self.shared = SharedReceiveQueue(self.pd, m.slots)
            m.shared = self.shared.ptr
        inline = self.size if setting.inline is None or self.size <= setting.inline else 0
        # what is fetched carries nothing out
        if shape.landing_out or inline > MOST_INLINE:
            inline = 0
        m.pairs = <ibv_qp **> calloc(m.count, sizeof(ibv_qp *))
        m.numbers = room_for_numbers(m.count)
        m.turn = <uint8_t *> calloc(m.count, 1)
        m.under_way = <uint8_t *> calloc(m.count, 1)
        if m.pairs == NULL or m.numbers.entries == NULL or m.turn == NULL or m.under_way == NULL:
            raise MemoryError
        self.pairs = []
        self.numbers = []
        for k in range(m.count):
            if k % together == 0:
                pair = QueuePair(
                    self.pd, self.send_cq, self.recv_cq, self.port, datagram=shape.datagram, sends=BUFFERS * together,
                    receives=m.slots if m.one_pair else BUFFERS, inline=inline, access=shape.access,
                    pkey_index=setting.pkey_index, shared=self.shared,
                )
                psn = secrets.randbits(24)
                if inline and pair.max_inline < inline:
                    inline = 0  # the first has asked the device
            self.pairs.append(pair)
            self.numbers.append(psn)
            m.pairs[k] = pair.ptr
            # of one queue pair for all, the other end's numbers tell: they are noted when they are known
            if not m.one_pair:
                note_number(&m.numbers, pair.ptr.qp_num, k)
        self.qp = self.pairs[0]
        if inline:
            st.flags = IBV_SEND_INLINE
        else:
            self._need_no_inline(shape)
        st.qp = self.qp.ptr
        st.sends.cq = self.send_cq.ptr
        st.receives.cq = self.recv_cq.ptr
        st.sends.channel = NULL if self.send_channel is None else self.send_channel.ptr
        st.receives.channel = NULL if self.recv_channel is None else self.recv_channel.ptr

    def _link_all(self, Shape shape):
        """The one request of each kind, which is copied at each post; and all receive requests."""
        cdef ManyState *m = &self.m
        cdef State *st = self.st
        cdef uint32_t slot
        cdef int opcode = shape.opcode
        m.wr.sg_list = &m.sge
        m.wr.num_sge = 1
        m.wr.opcode = <ibv_wr_opcode> opcode
        # each one is signalled: its completion is its connection's
        m.wr.send_flags = IBV_SEND_SIGNALED | st.flags
        m.sge.lkey = m.recv_sge.lkey = self.landing_mr.lkey
        m.recv_wr.sg_list = &m.recv_sge
        m.recv_wr.num_sge = 1
        m.recv_sge.length = self.size + m.head
        if shape.landing_out and self.prepare.role == "server":
            self._fill_slots()
        if not m.one_sided:
            for slot in range(m.slots):
                self._check(post_receive(m, slot, 0 if m.one_pair else slot // BUFFERS), "ibv_post_recv")

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

    def _far_pairs(self, there) -> list:
        """Queue pair and first packet sequence number of each connection at the other end.

        :raises PeerError: if it has another number of connections
        """
        if len(there.more) + 1 != self.m.count:
            raise PeerError(f"the ends do not fit: {self.m.count} connections here, {len(there.more) + 1} there")
        return [(there.qpn, there.psn), *there.more]

    def _connect(self, there):
        for pair, psn, (qpn, remote_psn) in zip(self.pairs, self.numbers, self._far_pairs(there), strict=True):
            self._connect_pair(pair, there, psn, qpn, remote_psn)
        self._check_parameters()
        self.m.wr.wr.rdma.rkey = there.rkey
        if self.m.reads:
            self.ops.modulo = there.slots

    def chosen(self):
        """As every verbs transport's; and what is of many connections.

        :return: with `connections`; `queue_pairs`, which are as many, or one for all; and `shared_receives`, the
            requests that connections share, or 0
        """
        cdef ManyState *m = &self.m
        return {
            **VerbsTransport.chosen(self), "connections": m.count, "queue_pairs": 1 if m.one_pair else m.count,
            "shared_receives": m.slots if self.shared is not None or m.one_pair else 0,
        }

    def counts(self):
        """As every verbs transport; and `strayed`."""
        return {**VerbsTransport.counts(self), **self.connections.counts()}

    def _close_path(self):
        for pair in self.pairs or ():
            pair.close()
        if self.shared is not None:
            self.shared.close()
