# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the verbs transports share: buffers in two rings, queues, a queue pair, and the C functions over them.

The data path reads downwards as a message travels: a free buffer (`ring_outgoing`), its work request to the device
(`submit`), the sender's completion (`reap`), the receiver's (`queue_receive`), the buffer back to the device
(`queue_release`). The class below it makes and takes down what these work on.
"""

import secrets
from pathlib import Path

cimport cython
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from cython_ext.clock cimport now
from cython_ext.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_SEND_INLINE,
    IBV_SEND_SIGNALED,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    ibv_poll_cq,
    ibv_post_recv,
    ibv_post_send,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_sge,
    ibv_wc,
    ibv_wr_opcode,
)
from cython_ext.pinned cimport PinnedBuffer
from cython_ext.transport cimport EVENT_STATUS, FINISHED, WC_STATUS, Delivery, Transport
from cython_ext.verbs_device cimport Context, ProtectionDomain
from cython_ext.verbs_event cimport look_for_events, start_watch
from cython_ext.verbs_queue cimport CompletionChannel, CompletionQueue, MemoryRegion, QueuePair
from cython_ext.verbs_wait cimport acknowledge, arm, stop_tick, wait_cq, wait_cq_until

from cython_ext.verbs_device import verbs_error

from hwrx import wc as wc_words
from hwrx.errors import MachineError, UsageError
from hwrx.paths.verbs_end import End, agree, choose_gid, choose_mtu, gid_text, hw_counters, parse_end

# Bytes that one ring of buffers may take: locked memory, faulted in before each trial.
RING_LIMIT = 64 << 20
READS = 16             # READs outstanding, where the devices can


# --- the data path -------------------------------------------------------------------------------------------------

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
        wr.wr_id = st.posted
        if st.since_signal >= st.signal_every or st.posted == st.total:
            wr.send_flags = st.flags | IBV_SEND_SIGNALED
            st.since_signal = 0
            st.signalled = st.posted
        else:
            wr.send_flags = st.flags
    following = wr.next
    wr.next = NULL
    error = ibv_post_send(st.qp, first, &bad)
    wr.next = following
    st.slot += count
    if st.slot >= st.window:
        st.slot -= st.window
    if error:
        return -error if error > 0 else error  # rxe's provider returns -ENOMEM where verbs say ENOMEM
    return <int> count


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
        n = ibv_poll_cq(st.sends.cq, 16, wc)
        for i in range(n):
            if wc[i].status != IBV_WC_SUCCESS:
                return fail(st, &wc[i])
            complete(st, &wc[i])
        if n < 16:
            return 0


cdef int ring_room(void *me) noexcept nogil:
    cdef State *st = <State *> me
    cdef uint32_t left = st.window - <uint32_t> (st.posted - st.completed)
    cdef int n, i
    if left > st.window >> 1:
        return <int> left
    n = reap(st)
    if n < 0:
        return n
    left = st.window - <uint32_t> (st.posted - st.completed)
    if left:
        return <int> left
    n = wait_cq(&st.sends, &st.tick, st.wc, BATCH)
    if n < 0:
        return n
    for i in range(n):
        if st.wc[i].status != IBV_WC_SUCCESS:
            return fail(st, &st.wc[i])
        complete(st, &st.wc[i])
    if n == 0:
        return look_for_errors(st)
    return <int> (st.window - <uint32_t> (st.posted - st.completed))


cdef int ring_finish(void *me) noexcept nogil:
    """Wait for the last signalled completion. RC reports an error where the other end is gone, so this ends."""
    cdef State *st = <State *> me
    cdef int64_t until = now() + st.limit_ns
    cdef int n = 0, i
    while st.completed < st.signalled:
        n = wait_cq(&st.sends, &st.tick, st.wc, BATCH)
        for i in range(n):
            if st.wc[i].status != IBV_WC_SUCCESS:
                n = fail(st, &st.wc[i])
                break
            complete(st, &st.wc[i])
        if n == 0 and now() > until:
            n = -ETIMEDOUT
        if n < 0:
            break
    stop_tick(&st.tick)
    return n if n < 0 else 0


cdef inline int hand_out(State *st, Delivery *out, int n) noexcept nogil:
    """Completions to deliveries, in order; those before a failed one are delivered first."""
    cdef int i, status
    cdef ibv_wc *wc
    for i in range(n):
        wc = &st.wc[i]
        if wc.status != IBV_WC_SUCCESS:
            status = fail(st, wc)
            return i if i else status
        out[i].data = st.landing + <size_t> st.take_slot * st.landing_stride + st.head
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
    n = wait_cq(&st.receives, &st.tick, st.wc, <int> min(most, <uint32_t> BATCH))
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
    last = &st.recv_wr[(st.free_slot if st.free_slot else st.slots) - 1]
    following = last.next
    last.next = NULL
    error = ibv_post_recv(st.qp, first, &bad)
    last.next = following
    if error:
        return -error if error > 0 else error
    return arm(&st.receives) if st.eager else 0


# --- completions with error ----------------------------------------------------------------------------------------

cdef int fail(State *st, const ibv_wc *wc) noexcept nogil:
    """Remember the error that tells most, and return it as a status.

    A queue pair in error flushes all its work requests; the first cause may stand in the other queue.
    """
    cdef ibv_wc other
    if not st.has_failed or st.failed.status == IBV_WC_WR_FLUSH_ERR:
        st.failed = wc[0]
        st.has_failed = True
    while st.failed.status == IBV_WC_WR_FLUSH_ERR and ibv_poll_cq(st.sends.cq, 1, &other) == 1:
        if other.status != IBV_WC_SUCCESS:
            st.failed = other
    while st.failed.status == IBV_WC_WR_FLUSH_ERR and ibv_poll_cq(st.receives.cq, 1, &other) == 1:
        if other.status != IBV_WC_SUCCESS:
            st.failed = other
    return WC_STATUS - <int> st.failed.status


cdef int look_for_errors(State *st) noexcept nogil:
    """Nothing came while we waited: has a send failed meanwhile, or the device said something? 0 where not."""
    cdef int status = WC_STATUS - <int> st.failed.status if st.has_failed else reap(st)
    return status if status < 0 else look_for_events(&st.watch)


# --- the owner -----------------------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class VerbsTransport(Transport):
    """One end of a verbs path; subclasses say of which shape.

    Made from a `Prepare` and the name of a device: opens it, chooses port, GID, MTU and inline, pins and registers the
    buffers, creates the queues and a queue pair in INIT. `connect(remote)` takes it to RTS.
    """

    def __cinit__(self, *args, **kwargs):
        self.st = <State *> calloc(1, sizeof(State))
        if self.st == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef State *st = self.st
        if st != NULL:
            self.release_rings()
            free(st)

    cdef void release_rings(self) noexcept:
        cdef State *st = self.st
        stop_tick(&st.tick)
        acknowledge(&st.sends)
        acknowledge(&st.receives)
        free(st.send_wr)
        free(st.send_sge)
        free(st.recv_wr)
        free(st.recv_sge)
        st.send_wr = NULL
        st.send_sge = NULL
        st.recv_wr = NULL
        st.recv_sge = NULL

    def __init__(self, prepare, str device not None):
        setting = prepare.setting
        self.prepare = prepare
        self.size = setting.size
        try:
            self.context = Context(device)
            self.port = self.context.port(prepare.here.port)
            where = f"{device} port {self.port.number}"
            if not self.port.active:
                raise MachineError(
                    f"{where} is not active ({self.port.state})",
                    remedy="bring its netdev up ('ip link set NETDEV up'), and plug the cable in",
                )
            if self.size > self.port.max_message:
                raise UsageError(
                    f"{where} carries messages of up to {self.port.max_message} bytes, not {self.size}",
                    remedy="a smaller --size",
                )
            self.gid = choose_gid(
                self.context.gids(self.port.number), where=where, ethernet=self.port.ethernet,
                index=setting.gid_index, address=prepare.here.address,
            )
            self.path_mtu = choose_mtu(self.port.mtu, setting.mtu, where)
            self.pd = ProtectionDomain(self.context)
            start_watch(&self.st.watch, self.context.ptr, self.port.number)
            self.set_up(self.shape())
            self.end = self._describe()
            self.counted = hw_counters(device, self.port.number)
        except BaseException:
            self.close()
            raise

    def shape(self) -> dict:
        """What a subclass needs; see `set_up`."""
        raise TypeError("VerbsTransport is made through its subclasses")

    cdef set_up(self, dict shape):
        """Rings, regions, queues and the queue pair, from what a subclass says:

        opcode: of its work requests. slots: buffers in which messages land. head: bytes before the message in each.
        receives: receive requests, which complete at each message: 0 or `slots`. into: whether these name the buffers.
        access: what the other end may do with the landing ring. datagram: UD instead of RC.
        landing_out: work requests name the landing ring (READ). spare: send requests and buffers beyond the window.
        least: bytes that each landing buffer takes even where messages are smaller.
        """
        cdef State *st = self.st
        setting = self.prepare.setting
        client = self.prepare.role == "client"
        stream = setting.pattern == "stream"
        events = setting.wait != "poll"
        limits = self.context.limits
        cdef uint32_t i, slots = shape["slots"], receives = shape["receives"], head = shape.get("head", 0)
        cdef uint32_t spare = shape.get("spare", 0), length = max(self.size, shape.get("least", 0))
        cdef bint landing_out = shape.get("landing_out", False)
        cdef size_t out_bytes, landing_bytes

        st.size = self.size
        st.stride = aligned(length)
        st.window = self.window = max(1, min(setting.window, limits["max_qp_wr"] - spare, RING_LIMIT // st.stride))
        # where the distance between completions is the whole window, it would empty before it is filled again
        st.signal_every = setting.signal_every if setting.signal_every < st.window else max(1, st.window // 2)
        if self.completes_by_send:
            st.signal_every = 1
        st.head = head
        st.landing_stride = aligned(length + head)
        st.slots = slots
        st.total = setting.warmup + setting.messages + setting.cooldown
        st.trial = self.prepare.trial
        st.limit_ns = round(setting.limit * 1e9)

        out_bytes = 0 if landing_out else <size_t> (st.window + spare) * st.stride
        landing_bytes = <size_t> slots * st.landing_stride
        self.buffer = PinnedBuffer(paged(out_bytes) + paged(landing_bytes), huge=setting.huge_pages)
        st.out = self.buffer.base
        st.landing = self.buffer.base + paged(out_bytes)
        if landing_out:
            st.out = st.landing
        else:
            self.out_mr = MemoryRegion(self.pd, self.buffer, 0, out_bytes, 0)
        self.landing_mr = MemoryRegion(
            self.pd, self.buffer, paged(out_bytes), landing_bytes, IBV_ACCESS_LOCAL_WRITE | <int> shape["access"]
        )

        # a latency pattern never sleeps on its sends: their completions are read from mapped memory in passing
        if events and (stream or self.completes_by_send):
            self.send_channel = CompletionChannel(self.context)
        if events and receives:
            self.recv_channel = CompletionChannel(self.context)
        self.send_cq = CompletionQueue(self.context, min(st.window + spare + 1, limits["max_cqe"]), self.send_channel)
        depth = setting.completions or receives + 1
        self.recv_cq = CompletionQueue(self.context, max(1, min(depth, limits["max_cqe"])), self.recv_channel)
        inline = self.size if setting.inline is None or self.size <= setting.inline else 0
        if landing_out or inline > 4096:  # READ carries nothing out, and no device takes so many inline
            inline = 0
        self.qp = QueuePair(
            self.pd, self.send_cq, self.recv_cq, self.port, datagram=shape.get("datagram", False),
            sends=st.window + spare, receives=max(1, receives), inline=inline, access=shape["access"],
        )
        if inline and self.qp.max_inline >= inline:
            st.flags = IBV_SEND_INLINE
        st.qp = self.qp.ptr
        st.sends.cq = self.send_cq.ptr
        st.receives.cq = self.recv_cq.ptr
        st.sends.channel = NULL if self.send_channel is None else self.send_channel.ptr
        st.receives.channel = NULL if self.recv_channel is None else self.recv_channel.ptr
        st.eager = client and not stream

        st.send_wr = <ibv_send_wr *> calloc(st.window, sizeof(ibv_send_wr))
        st.send_sge = <ibv_sge *> calloc(st.window, sizeof(ibv_sge))
        if st.send_wr == NULL or st.send_sge == NULL:
            raise MemoryError
        for i in range(st.window):
            st.send_sge[i].addr = <uintptr_t> st.out + <uint64_t> i * (st.landing_stride if landing_out else st.stride)
            st.send_sge[i].length = self.size
            st.send_sge[i].lkey = self.landing_mr.ptr.lkey if landing_out else self.out_mr.ptr.lkey
            st.send_wr[i].sg_list = &st.send_sge[i]
            st.send_wr[i].num_sge = 1
            st.send_wr[i].opcode = <ibv_wr_opcode> <int> shape["opcode"]
            st.send_wr[i].next = &st.send_wr[(i + 1) % st.window]
        if receives:
            st.recv_wr = <ibv_recv_wr *> calloc(slots, sizeof(ibv_recv_wr))
            st.recv_sge = <ibv_sge *> calloc(slots, sizeof(ibv_sge))
            if st.recv_wr == NULL or st.recv_sge == NULL:
                raise MemoryError
            for i in range(slots):
                st.recv_sge[i].addr = <uintptr_t> st.landing + <uint64_t> i * st.landing_stride
                st.recv_sge[i].length = length + head
                st.recv_sge[i].lkey = self.landing_mr.ptr.lkey
                st.recv_wr[i].wr_id = i
                st.recv_wr[i].sg_list = &st.recv_sge[i]
                st.recv_wr[i].num_sge = 1 if shape.get("into", True) else 0
                st.recv_wr[i].next = &st.recv_wr[(i + 1) % slots]
            self._check(queue_release(st, slots), "ibv_post_recv")
            st.free_slot = 0

    def _check(self, int status, str verb):
        if status < 0:
            raise verbs_error(verb, self._where(), -status)

    def _where(self) -> str:
        return f"{self.context.name} port {self.port.number} QP {self.qp.number}"

    def _describe(self) -> End:
        cdef uint32_t lowest = self.context.limits["max_qp_rd_atom"]
        netdev = self.gid.netdev
        mac = Path(f"/sys/class/net/{netdev}/address").read_text().strip() if netdev else ""
        return End(
            path=self.prepare.setting.path, size=self.size, device=self.context.name, port=self.port.number,
            node_guid=self.context.node_guid, mac=mac, rxe=self.context.is_rxe,
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            gid=self.gid.raw.hex(), lid=self.port.lid, mtu=self.path_mtu, qpn=self.qp.number,
            psn=secrets.randbits(24), reads=min(READS, lowest), address=<uintptr_t> self.st.landing,
            rkey=self.landing_mr.rkey, slots=self.st.slots, stride=self.st.landing_stride,
        )

    def describe(self) -> dict:
        """What the other end needs: the fields of `hwrx.paths.verbs_end.End`."""
        return {name: getattr(self.end, name) for name in self.end.__struct_fields__}

    def connect(self, remote):
        """Check the other end, agree on the MTU, take the queue pair to RTS. Refuses two ends on one rxe device."""
        there = parse_end(remote)
        self.path_mtu = agree(self.end, there)
        self.remote = there
        self.st.remote = there.address
        self.st.remote_slots = there.slots
        self.st.remote_stride = there.stride
        self._connect(there)
        if self.st.eager:
            self._check(arm(&self.st.sends if self.completes_by_send else &self.st.receives), "ibv_req_notify_cq")

    def _connect(self, there):
        cdef int reads_out = min(there.reads, self.context.limits["max_qp_init_rd_atom"], READS)
        self.qp.connect(
            psn=self.end.psn, remote_psn=there.psn, remote_qpn=there.qpn, mtu=self.path_mtu, gid_index=self.gid.number,
            remote_gid=bytes.fromhex(there.gid), remote_lid=there.lid, reads_out=reads_out, reads_in=self.end.reads,
        )

    def chosen(self) -> dict:
        """Device, port, GID, MTU, window, inline and the buffers' addresses; the MTU is final once connected."""
        cdef State *st = self.st
        result = {
            "device": self.context.name, "port": self.port.number, "rxe": self.context.is_rxe,
            "gid": gid_text(self.gid.raw), "gid_index": self.gid.number, "gid_type": self.gid.type,
            "netdev": self.gid.netdev, "mtu": self.path_mtu, "window": self.window,
            "wait": "event" if self.recv_channel is not None or self.send_channel is not None else "poll",
            "signal_every": st.signal_every, "receive_buffers": st.slots,
            "inline": self.size if st.flags & IBV_SEND_INLINE else 0, "inline_limit": self.qp.max_inline,
            "page_size": self.buffer.page_size, "send_address": hex(<uintptr_t> st.out),
            "receive_address": hex(<uintptr_t> st.landing),
        }
        try:
            pages = self.buffer.physical_pages()
        except MachineError:  # not for this user: /proc/self/pagemap needs CAP_SYS_ADMIN
            return result
        at = st.landing - self.buffer.base
        result["receive_physical"] = hex(pages[at // self.buffer.page_size] + at % self.buffer.page_size)
        return result

    def counts(self):
        """What the device's own counters counted since the endpoint was made; of whatever used it, not of us alone."""
        after = hw_counters(self.context.name, self.port.number)
        return {name: after[name] - before for name, before in self.counted.items() if name in after}

    def resent(self) -> int:
        """As every transport's: rxe's count of retries, of the whole device; 0 on hardware, which counts others."""
        return hw_counters(self.context.name, self.port.number).get("hw_completer_retry_err", 0)

    def failure(self):
        """Of a sender: status of the first work request that failed, and how many were posted from that one on.

        None where none did. RC completes in order, so those before it were acknowledged, and none of these was.
        """
        if not self.st.has_failed:
            return None
        return <int> self.st.failed.status, self.st.posted - self.st.failed.wr_id + 1

    def arrived(self) -> int:
        """Take the completions that wait in the receive queue; how many were messages. For an end without a loop."""
        cdef ibv_wc[BATCH] wc
        cdef int n = BATCH, i, messages = 0
        while n == BATCH:
            n = ibv_poll_cq(self.st.receives.cq, BATCH, wc)
            for i in range(n):
                messages += wc[i].status == IBV_WC_SUCCESS
        return messages

    def explain(self, int status):
        """One sentence for a status; for a completion with error its name, what it means and the usual cause."""
        cdef ibv_wc *wc = &self.st.failed
        if status > WC_STATUS or status == FINISHED:
            return Transport.explain(self, status)
        if status <= EVENT_STATUS:
            return f"{wc_words.explain_event(EVENT_STATUS - status)} (on {self.context.name} port {self.port.number})"
        words = wc_words.explain(WC_STATUS - status)
        if status == WC_STATUS - <int> IBV_WC_WR_FLUSH_ERR:
            # what threw the request away may have been told by an event, which nobody has looked for yet
            self.st.watch.looked = 0
            event = look_for_events(&self.st.watch)
            if event < 0:
                words = f"{wc_words.explain_event(EVENT_STATUS - event)}; then {words}"
        if self.st.has_failed and self.qp is not None:
            return f"{words} (on {self.context.name} port {self.port.number}, vendor error {wc.vendor_err:#x})"
        return words

    def close(self):
        """Take everything down in reverse order; harmless when called twice."""
        self.release_rings()
        self._close_path()
        for part in (self.qp, self.send_cq, self.recv_cq, self.send_channel, self.recv_channel, self.out_mr,
                     self.landing_mr, self.buffer, self.pd, self.context):
            if part is not None:
                part.close()

    def _close_path(self):
        """What a subclass has to give back before its queue pair."""


cdef uint32_t aligned(size_t size) except 0:
    """A slot's distance from the next: whole cache lines, so that two messages never share one."""
    cdef size_t stride = (size + 63) & ~<size_t> 63
    if stride >> 31:
        raise UsageError(f"a message of {size} bytes is more than one buffer holds", remedy="a smaller --size")
    return <uint32_t> stride


cdef size_t paged(size_t size):
    return (size + 4095) & ~<size_t> 4095


ACCESS_LOCAL = IBV_ACCESS_LOCAL_WRITE
ACCESS_WRITE = IBV_ACCESS_REMOTE_WRITE
ACCESS_READ = IBV_ACCESS_REMOTE_READ


def ring_slots(size: int, wanted: int) -> int:
    """How many landing buffers of `size` bytes: `wanted`, as far as RING_LIMIT goes, and at least one."""
    return max(1, min(wanted, RING_LIMIT // aligned(size)))
