# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""UD SEND: datagrams between queue pairs, no larger than the MTU. Nobody acknowledges them, and they may be lost.

Each receive buffer begins with 40 bytes for the global route header. Because a sender's completions say only that the
datagram left, the receiver of a stream grants credits: every half window it says how far it has come, and a sender
with a whole window unheard of waits for that. A credit that is lost is replaced by the next; a sender that hears
nothing for a while takes its window for lost and goes on (`slides`). The end is said, and answered, by a datagram of
its own.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cython_ext.core.clock cimport now
from cython_ext.core.credit cimport (
    FINISH_TRIES,
    Control,
    Credit,
    a_control,
    allowed,
    due,
    heed,
    is_whole,
    notice,
    slide,
)
from cython_ext.core.payload cimport MAGIC_CREDIT, MAGIC_FINISH
from cython_ext.core.transport cimport FINISHED, WC_STATUS, Delivery
from cython_ext.headers.infiniband_verbs cimport (
    IBV_SEND_SIGNALED,
    IBV_WC_SUCCESS,
    IBV_WR_SEND,
    ibv_poll_cq,
    ibv_post_recv,
    ibv_post_send,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_sge,
)
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_queue cimport AddressHandle
from cython_ext.verbs.verbs_registering cimport MessageRegions, deregister_to, register_outgoing
from cython_ext.verbs.verbs_ring cimport (
    BATCH,
    State,
    fail,
    look_for_errors,
    measure,
    reap,
    ring_finish,
    ring_outgoing,
    ring_room,
    submit,
)
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport wait_cq, wait_cq_until

from cython_ext.verbs.rc import receive_slots
from cython_ext.verbs.verbs_queue import QKEY

from hwrx.errors import MachineError, UsageError

cdef enum:
    GRH = 40                    # bytes; InfiniBand specification 8.3
    ASIDES = 8                  # of these under way at a time
    FINISH_NS = 40_000_000      # how long each of FINISH_TRIES waits for its answer

GRH_BYTES = GRH  # for Python


cdef struct UdState:
    State *st
    bint client
    Credit credit               # its window is no more than the receiver has buffers for
    uint32_t *order             # slots delivered and not given back, oldest first: a ring of `slots`
    uint32_t put
    uint32_t get
    uint32_t aside
    ibv_send_wr[ASIDES] control_wr
    ibv_sge[ASIDES] control_sge


cdef inline int give_back(State *st, uint32_t slot) noexcept nogil:
    cdef ibv_recv_wr *bad
    cdef int error
    # One request alone: the circle of `_link_receives` would post all of them.
    st.recv_wr[slot].next = NULL
    # The hand-over: the device may write into this buffer at once.
    error = ibv_post_recv(st.qp, &st.recv_wr[slot], &bad)
    return -error if error > 0 else error


cdef int say(UdState *u, uint32_t magic, uint64_t count) noexcept nogil:
    """Send a credit or an end; drops it if the last ones have not left yet, since none is ever the only one."""
    cdef State *st = u.st
    cdef ibv_send_wr *wr = &u.control_wr[u.aside]
    cdef ibv_send_wr *bad
    cdef char *at = <char *> <uintptr_t> u.control_sge[u.aside].addr
    cdef Control control = a_control(&u.credit, magic, count)
    # Completions first, because they free these requests and their buffers for the next Control.
    cdef int error = reap(st)
    if error < 0 or st.asides == ASIDES:
        return error
    # The buffer is ours: its last Control has completed, as fewer than ASIDES are under way and they complete in order.
    # In the byte order and layout of every datagram path: see credit.pxd.
    memcpy(at, &control, sizeof(Control))
    error = ibv_post_send(st.qp, wr, &bad)
    if error:
        return -error if error > 0 else error
    # Only what was posted comes back as a completion (`complete`, wr_id 0).
    st.asides += 1
    u.aside = (u.aside + 1) % ASIDES
    return 0


cdef int sort_out(UdState *u, Delivery *out, int n) noexcept nogil:
    """Of `n` completions: messages into `out`, what is said aside taken in. How many messages, or an error."""
    cdef State *st = u.st
    cdef int i, k = 0, status
    cdef uint32_t slot, length
    cdef char *at
    for i in range(n):
        # Then nothing else of it is looked at: byte_len is not valid in a completion with error (ibv_poll_cq(3)).
        if st.wc[i].status != IBV_WC_SUCCESS:
            status = fail(st, &st.wc[i])
            return k if k else status
        # wr_id names the buffer. Controls go back at once and out of turn, so counting would not find it.
        slot = <uint32_t> st.wc[i].wr_id
        # Behind 40 bytes, which belong to the GRH even if none came (ibv_post_recv(3)); byte_len counts them.
        at = st.landing + <size_t> slot * st.landing_stride + GRH
        length = st.wc[i].byte_len - GRH
        # Back to the device at once: a Control must not take the place of a message. A Control has a length that a
        # message may have as well, so `heed` goes by its magic; and a credit that came late, or twice, never takes back
        # what a newer one has granted. The sender of a stream (out: NULL) gets Controls alone.
        if heed(&u.credit, at, length) or out == NULL:
            status = give_back(st, slot)
            if status < 0:
                return status
            continue
        out[k].data = at
        out[k].size = length
        # Of a stream only: how far it has come, whatever was lost on the way, is what the next credit will say.
        if u.credit.granted and is_whole(&u.credit, at, length):
            notice(&u.credit, at, length)
        # The order of delivery, in which `ud_release` gives them back; slots in use differ from it by the Controls.
        u.order[u.put] = slot
        u.put = u.put + 1 if u.put + 1 < st.slots else 0
        k += 1
    return k


cdef int ud_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef UdState *u = <UdState *> me
    cdef State *st = u.st
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    while True:
        # Once the end was heard, one look without waiting: what has come is in the queue.
        n = wait_cq_until(&st.receives, st.wc, <int> min(most, <uint32_t> BATCH), 0 if u.credit.finishing else deadline)
        if n < 0:
            return n
        if n == 0:
            # Messages first, then the end: FINISH may have overtaken some of them.
            return finished(u) if u.credit.finishing else look_for_errors(st)
        n = sort_out(u, out, n)
        if n != 0:
            return n


cdef int finished(UdState *u) noexcept nogil:
    if not u.client:
        say(u, MAGIC_FINISH, u.credit.taken)   # the answer; if it is lost the client asks again, or gives up asking
    return FINISHED


cdef int ud_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef UdState *u = <UdState *> me
    cdef State *st = u.st
    cdef int64_t since = 0
    cdef int n
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    if u.credit.finishing:
        return ud_receive_until(me, out, most, 0)
    # The clock is read only if a whole beat brought nothing, so it costs nothing while messages come.
    while since == 0 or now() - since < st.patience_ns:
        n = wait_cq(&st.receives, &st.beat, st.wc, <int> min(most, <uint32_t> BATCH))
        if n == 0:
            if since == 0:
                since = now()
            n = look_for_errors(st)
        elif n > 0:
            # Controls alone are no delivery: the wait goes on, unless one of them was the end.
            n = sort_out(u, out, n)
            if n == 0 and u.credit.finishing:
                return ud_receive_until(me, out, most, 0)
        if n != 0:
            return n
    return 0


cdef int ud_release(void *me, uint32_t count) noexcept nogil:
    cdef UdState *u = <UdState *> me
    cdef State *st = u.st
    cdef ibv_recv_wr *bad
    cdef ibv_recv_wr *first = &st.recv_wr[u.order[u.get]]
    cdef ibv_recv_wr *wr = first
    cdef uint32_t k
    cdef int error
    # Chained in the order of delivery, and the newest ends the chain: one call for all.
    for k in range(count):
        if k:
            wr.next = &st.recv_wr[u.order[u.get]]
            wr = wr.next
        u.get = u.get + 1 if u.get + 1 < st.slots else 0
    wr.next = NULL
    # The hand-over. A datagram that finds no request is dropped without a word (rxe_resp.c, RESPST_ERR_RNR: drop_msg).
    error = ibv_post_recv(st.qp, first, &bad)
    if error:
        return -error if error > 0 else error
    # Behind the hand-over: the credit invites datagrams, and their buffers must be posted by then.
    return say(u, MAGIC_CREDIT, u.credit.taken) if due(&u.credit) else 0


cdef int ud_post(void *me, uint32_t count) noexcept nogil:
    cdef UdState *u = <UdState *> me
    cdef int status = submit(u.st, count)
    # By the thread that also heeds credits, so no credit can be for more than this.
    u.credit.posted = u.st.posted
    return status


cdef int ud_post_varying(void *me, uint32_t count) noexcept nogil:
    # Before the hand-over, and behind the loop's stamp: the number that says how long a datagram is stands in it by
    # now. The receive requests are as long as the longest, and the receiver's completion says how much came
    # (byte_len), so a datagram of another message's size shows.
    measure((<UdState *> me).st, count)
    return ud_post(me, count)


cdef int ud_registering_post(void *me, uint32_t count) noexcept nogil:
    # In front of the path's own post, as `registering_post` stands before the others'.
    cdef int status = register_outgoing((<UdState *> me).st, count)
    return status if status < 0 else ud_post(me, count)


cdef int ud_registering_finish(void *me) noexcept nogil:
    cdef State *st = (<UdState *> me).st
    cdef int status = ud_finish(me)
    # All sends have completed behind it, the last one, too: none of their buffers is in use.
    return status if status < 0 else deregister_to(st, st.completed)


cdef char *ud_outgoing(void *me, uint32_t k) noexcept nogil:
    return ring_outgoing((<UdState *> me).st, k)


cdef int await_credit(UdState *u) noexcept nogil:
    """1 when there is one, or when it must be taken for lost; 0 when patience is over; or an error."""
    cdef State *st = u.st
    cdef int64_t give_up = now() + st.patience_ns
    cdef int n
    # Counted by the highest number that the receiver has seen, so a lost datagram does not narrow the window for good.
    while allowed(&u.credit) == 0:
        # Credits come in on the receive queue, so to wait for one is to receive. The sender of a stream gets no
        # messages.
        n = wait_cq(&st.receives, &st.beat, st.wc, BATCH)
        if n > 0:
            n = sort_out(u, NULL, n)
        if n < 0:
            return n
        if u.credit.finishing:
            return FINISHED
        # Credits or messages were lost. To go on risks a full receiver; to stop would be for ever.
        if now() >= give_up:
            slide(&u.credit)
    return 1


cdef int ud_room(void *me) noexcept nogil:
    cdef UdState *u = <UdState *> me
    cdef State *st = u.st
    # Two windows: the send queue's, which completions open, and the receiver's buffers, which only credits open.
    cdef int n, room = ring_room(st)
    if room <= 0 or not (u.credit.granted and u.client):
        return room
    # A look in passing: a credit that is there saves the wait.
    n = ibv_poll_cq(st.receives.cq, BATCH, st.wc)
    if n > 0:
        n = sort_out(u, NULL, n)
        if n < 0:
            return n
    if allowed(&u.credit) == 0:
        n = await_credit(u)
        if n <= 0:
            return n
    return <int> min(<uint64_t> room, allowed(&u.credit))


cdef int ud_finish(void *me) noexcept nogil:
    """The client says that nothing more comes until it is answered, or until it has said so often enough."""
    cdef UdState *u = <UdState *> me
    cdef State *st = u.st
    cdef int64_t until
    cdef int n, tries = 0
    # Nobody answers this one, so it is said once more; the client asks until it hears it.
    if not u.client:
        n = say(u, MAGIC_FINISH, u.credit.taken)
        return n if n < 0 else ring_finish(st)
    while not u.credit.finishing and tries < FINISH_TRIES:
        # Each try may be lost, and so may its answer.
        n = say(u, MAGIC_FINISH, st.posted)
        if n < 0:
            return n
        until = now() + FINISH_NS
        while not u.credit.finishing and now() < until:
            n = wait_cq_until(&st.receives, st.wc, BATCH, until)
            if n > 0:
                n = sort_out(u, NULL, n)
            if n < 0:
                return n
        tries += 1
    # The buffers are ours again only when the last signalled send has completed.
    return ring_finish(st)


@cython.no_gc_clear
cdef class UdSendTransport(VerbsTransport):
    """UD SEND between two queue pairs that know each other's number and GID.

    :param prepare, chosen_port: VerbsTransport's
    :raises UsageError: if a message is larger than the path's MTU
    """
    cdef UdState u
    cdef AddressHandle way

    def __dealloc__(self):
        free(self.u.order)
        self.u.order = NULL

    def shape(self):
        """Receive buffers with room for the route header and for what is said aside.

        The header (GRH, 40 bytes) is written in front of each message by the device: InfiniBand specification 8.3.
        """
        check_datagram(self)
        slots = receive_slots(self.prepare, self.size)
        if self.prepare.setting.receives is None:
            # Controls take receive requests, too, and must not take those of messages.
            slots += 2 * ASIDES
        return Shape(
            opcode=IBV_WR_SEND, access=0, datagram=True, head=GRH, least=sizeof(Control), spare=ASIDES,
            slots=slots, receives=slots,
        )

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        cdef State *st = self.st
        cdef int i
        try:
            self.u.order = <uint32_t *> calloc(st.slots, sizeof(uint32_t))
            if self.u.order == NULL:
                raise MemoryError
            self.u.st = st
            self.u.client = prepare.role == "client"
            # Only a stream can run ahead of its receiver: a ping-pong waits, and an open loop is to show its losses.
            self.u.credit.granted = prepare.setting.pattern == "stream"
            self.u.credit.size = st.size
            self.u.credit.lengths = st.lengths
            self.u.credit.trial = st.trial
            self.u.credit.patience_ns = st.patience_ns
            # Requests of their own, behind the window's: what is said aside never waits for room in the window.
            for i in range(ASIDES):
                self.u.control_sge[i].addr = <uintptr_t> st.out + <uint64_t> (st.window + <uint32_t> i) * st.stride
                self.u.control_sge[i].length = sizeof(Control)
                self.u.control_sge[i].lkey = self.out_mr.ptr.lkey
                self.u.control_wr[i].sg_list = &self.u.control_sge[i]
                self.u.control_wr[i].num_sge = 1
                self.u.control_wr[i].opcode = IBV_WR_SEND
                # Every one signalled, as its completion is what frees its buffer.
                self.u.control_wr[i].send_flags = IBV_SEND_SIGNALED
        except BaseException:
            self.close()
            raise
        self.ops.me = &self.u
        self.ops.outgoing = ud_outgoing
        self.ops.room = ud_room
        self.ops.post = ud_post
        self.ops.receive = ud_receive
        self.ops.receive_until = ud_receive_until
        self.ops.release = ud_release
        self.ops.finish = ud_finish
        self.ops.lossy = True

    def vary(self, sizes):
        """As every transport: work requests are then as long as their messages.

        :param sizes: a table of uint32 bytes
        """
        VerbsTransport.vary(self, sizes)
        self.ops.post = ud_post_varying

    cdef void register_each(self, MessageRegions each) noexcept:
        # Messages alone: what is said aside goes out of the ring's end, which is registered once.
        self.ops.post = ud_registering_post
        self.ops.finish = ud_registering_finish

    def _connect(self, there):
        cdef State *st = self.st
        cdef uint32_t i, qpn = there.qpn, qkey = QKEY
        check_datagram(self)
        if self.u.credit.granted:
            # what finds no receive buffer is thrown away, and nobody is told; both ends narrow it alike
            self.u.credit.window = self.window = min(st.window, (there if self.u.client else self.end).slots)
        # UD gets to RTS without a peer: the address goes with each request.
        self.qp.connect(psn=self.end.psn)
        self.way = way_to(self, there)
        for i in range(st.window):
            # Once for all: the handle must live until the last request has completed (ibv_post_send(3)).
            st.send_wr[i].wr.ud.ah = self.way.ptr
            st.send_wr[i].wr.ud.remote_qpn = qpn
            st.send_wr[i].wr.ud.remote_qkey = qkey
        for i in range(ASIDES):
            self.u.control_wr[i].wr.ud.ah = self.way.ptr
            self.u.control_wr[i].wr.ud.remote_qpn = qpn
            self.u.control_wr[i].wr.ud.remote_qkey = qkey

    @property
    def slides(self) -> int:
        """How often the sender of a stream gave up waiting for a credit: each is a wait of a whole patience."""
        return self.u.credit.slides

    def counts(self):
        """As every verbs transport; and `slides`."""
        return {**VerbsTransport.counts(self), "slides": self.u.credit.slides}

    def _close_path(self):
        if self.qp is not None:
            self.qp.close()   # nothing may use the address handle any more
        if self.way is not None:
            self.way.close()


def check_datagram(transport):
    """Refuse messages that are larger than one datagram.

    :param transport: a VerbsTransport; its MTU is its own port's before it knows the other end, then the smaller one
    :raises UsageError: if they are
    """
    mtu, size = transport.path_mtu, transport.size
    if size <= mtu:
        return
    if transport.remote is not None:
        words = f"the smaller MTU of both ports, {mtu} bytes, not {size}"
    else:
        words = f"the MTU, {mtu} bytes on {transport.context.name} port {transport.port.number}, not {size}"
    raise UsageError(
        f"a UD datagram carries at most {words}", remedy="a smaller --size, a larger MTU of the netdev, or rdma-send"
    )


def way_to(transport, there):
    """The way from an end to the other one's port.

    :param transport: a VerbsTransport
    :param there: the End of the other side
    :return: an AddressHandle, which must live as long as any request that names it is under way; the caller closes it
    :raises MachineError: if it is to have a service level, and the device is rxe
    """
    setting = transport.prepare.setting
    # an address handle cannot be asked what it has, as a queue pair can; rxe_av has no field for it (rdma_user_rxe.h)
    if setting.service_level and transport.context.is_rxe:
        raise MachineError(
            f"{transport.context.name} port {transport.port.number} was given service_level {setting.service_level}:"
            " rxe does not keep it",
            remedy="leave service_level out, or use a device that has it",
        )
    return AddressHandle(
        transport.pd, transport.port, transport.gid.number, bytes.fromhex(there.gid), there.lid,
        traffic_class=setting.traffic_class, service_level=setting.service_level,
    )
