# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""What the verbs transports share: one end, which makes and takes down what the data path works on (`verbs_ring`)."""

import secrets

cimport cython
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from cython_ext.core.beat cimport stop_beat
from cython_ext.core.transport cimport EVENT_STATUS, FINISHED, WC_STATUS, Transport
from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_ATOMIC,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_SEND_INLINE,
    IBV_WC_SUCCESS,
    IBV_WC_WR_FLUSH_ERR,
    ibv_poll_cq,
    ibv_recv_wr,
    ibv_send_wr,
    ibv_sge,
    ibv_wc,
    ibv_wr_opcode,
)
from cython_ext.verbs.verbs_device cimport ProtectionDomain
from cython_ext.verbs.verbs_event cimport look_for_events, start_watch
from cython_ext.verbs.verbs_queue cimport CompletionChannel, CompletionQueue, QueuePair
from cython_ext.verbs.verbs_region cimport MemoryRegion
from cython_ext.verbs.verbs_registering cimport MessageRegions
from cython_ext.verbs.verbs_ring cimport BATCH, State, post_varying, queue_release
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport acknowledge

from cython_ext.verbs import wc_words
from cython_ext.verbs.verbs_device import verbs_error
from hwrx.errors import MachineError, UsageError

# Bytes that one ring of buffers may take: locked memory, faulted in before each trial.
RING_LIMIT = 64 << 20
READS = 16             # READs outstanding, where the devices can
MOST_INLINE = 4096     # bytes that no device takes inline


@cython.no_gc_clear
cdef class VerbsTransport(Transport):
    """One end of a verbs path; subclasses say of which shape.

    Pins and registers the buffers, chooses inline, creates the queues and a queue pair in INIT. `connect(remote)` takes
    it to RTS. All of these, and the open device, belong to this object; `close()` takes them down in reverse order.

    :param prepare: a `hwrx.control.messages.Prepare`: setting, role, and where we are
    :param chosen_port: a `hwrx.paths.verbs_port.ChosenPort`: an open device, its port, GID and MTU, as they were
        chosen. It is also asked what this end is to tell the other, and whether the two fit
    :raises MachineError: if the device's memory or its queues cannot be had; the device is then closed
    :raises UsageError: if the setting does not fit the device
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
        stop_beat(&st.beat)
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

    def __init__(self, prepare, chosen_port):
        self.prepare = prepare
        self.chosen_port = chosen_port
        self.size = prepare.setting.size
        self.context = chosen_port.context
        try:
            self.port = chosen_port.port
            self.gid = chosen_port.gid
            self.path_mtu = chosen_port.mtu
            self.pd = ProtectionDomain(self.context)
            start_watch(&self.st.watch, self.context.ptr, self.port.number)
            self.set_up(self.shape())
            if prepare.setting.connect == "cm":
                self.managed = chosen_port.listen_or_call(prepare)
            self.end = self._describe()
            self.counted = self._counters()
        except BaseException:
            self.close()
            raise

    def shape(self) -> Shape:
        """What a subclass needs of rings, queues and access rights.

        :return: a Shape
        """
        raise TypeError("VerbsTransport is made through its subclasses")

    cdef set_up(self, Shape shape):
        """Rings, regions, queues and the queue pair, of a `Shape`; the receive requests are posted."""
        self._plan(shape)
        self._pin(shape)
        self._make_queues(shape)
        self._link_sends(shape)
        if shape.receives:
            self._link_receives(shape)
            self._check(queue_release(self.st, shape.receives), "ibv_post_recv")

    def _plan(self, Shape shape):
        """Sizes and distances in both rings."""
        cdef State *st = self.st
        setting = self.prepare.setting
        cdef uint32_t length = max(self.size, shape.least)
        st.size = self.size
        st.lengths = &self.lengths
        st.stride = aligned(length)
        room = self.context.limits["max_qp_wr"] - shape.spare
        window = min(setting.window, room, RING_LIMIT // st.stride)
        if shape.landing_out:  # requests are of landing buffers, of which there may be fewer, and one stays apart
            window = min(window, shape.slots - 1)
        st.window = self.window = max(1, window)
        # where the distance between completions is the whole window, it would empty before it is filled again
        st.signal_every = setting.signal_every if setting.signal_every < st.window else max(1, st.window // 2)
        # READ delivers by its completions; and a buffer is deregistered when its own completion says that it was sent
        if self.completes_by_send or setting.registration == "message":
            st.signal_every = 1
        st.head = shape.head
        st.landing_stride = aligned(length + st.head)
        st.slots = shape.slots
        st.total = setting.total
        # a ping-pong's full checks are messages of their own (see loops.pingpong), but of READ: no server answers one
        if setting.pattern == "pingpong" and setting.check_every and not self.completes_by_send:
            st.total += -(-setting.total // setting.check_every)
        st.patience_ns = round(min(setting.patience, setting.limit) * 1e9)
        st.trial = self.prepare.trial
        st.limit_ns = round(setting.limit * 1e9)

    def _pin(self, Shape shape):
        """One buffer for both rings, and a memory region over each."""
        cdef State *st = self.st
        cdef size_t out_bytes = 0 if shape.landing_out else <size_t> (st.window + shape.spare) * st.stride
        cdef size_t landing_bytes = <size_t> st.slots * st.landing_stride
        self._get_memory(paged(out_bytes) + paged(landing_bytes))
        st.out = self.buffer.base
        st.landing = self.buffer.base + paged(out_bytes)
        if shape.landing_out:
            st.out = st.landing
        # where each message is registered, what goes out is not registered besides; but for what is said aside (UD)
        elif self.each is None or shape.spare:
            self.out_mr = self._register(0, out_bytes, 0)
        self.landing_mr = self._register(paged(out_bytes), landing_bytes, IBV_ACCESS_LOCAL_WRITE | shape.access)
        if self.each is not None:
            # of READ the completions are the deliveries, which the loop takes
            self.each.begin(st, IBV_ACCESS_LOCAL_WRITE if shape.landing_out else 0, not shape.landing_out)

    def _get_memory(self, size_t size):
        """The buffer for all rings, of the kind that the setting asks for."""
        setting = self.prepare.setting
        self.buffer = self.chosen_port.get_memory(setting, size)
        if setting.registration == "message":
            self.each = MessageRegions(self.pd, self.buffer)

    def _register(self, size_t offset, size_t length, int access) -> MemoryRegion:
        """A part of the buffer, for the device."""
        return MemoryRegion(self.pd, self.buffer, offset, length, access, kind=self.prepare.setting.mr)

    def _make_queues(self, Shape shape):
        """Completion queues, with channels where their completions are waited for in sleep, and the queue pair."""
        cdef State *st = self.st
        setting = self.prepare.setting
        events = setting.wait != "poll"
        most = self.context.limits["max_cqe"]
        # a latency pattern never sleeps on its sends: their completions are read from mapped memory in passing
        if events and (setting.pattern == "stream" or self.completes_by_send):
            self.send_channel = CompletionChannel(self.context)
        if events and shape.receives:
            self.recv_channel = CompletionChannel(self.context)
        self.send_cq = CompletionQueue(self.context, min(st.window + shape.spare + 1, most), self.send_channel)
        depth = setting.completions or shape.receives + 1
        self.recv_cq = CompletionQueue(self.context, max(1, min(depth, most)), self.recv_channel)
        inline = self.size if setting.inline is None or self.size <= setting.inline else 0
        # READ carries nothing out; and what is copied into the request needs no registration
        if shape.landing_out or inline > MOST_INLINE or self.each is not None:
            inline = 0
        self.qp = QueuePair(
            self.pd, self.send_cq, self.recv_cq, self.port, datagram=shape.datagram,
            sends=st.window + shape.spare, receives=max(1, shape.receives), inline=inline, access=shape.access,
            pkey_index=setting.pkey_index,
        )
        if inline and self.qp.max_inline >= inline:
            st.flags = IBV_SEND_INLINE
        else:
            self._need_no_inline(shape)
        st.qp = self.qp.ptr
        st.sends.cq = self.send_cq.ptr
        st.receives.cq = self.recv_cq.ptr
        st.sends.channel = NULL if self.send_channel is None else self.send_channel.ptr
        st.receives.channel = NULL if self.recv_channel is None else self.recv_channel.ptr

    def _need_no_inline(self, Shape shape):
        """UsageError if messages were to be sent inline, which the device does not take."""
        asked = self.prepare.setting.inline
        if asked is not None and self.size <= asked and not shape.landing_out:
            raise UsageError(
                f"{self.context.name} port {self.port.number} takes no {self.size} bytes inline, as --inline"
                f" {asked} asks for messages of that size",
                remedy=f"--inline {self.size - 1} or less, or leave it out: then the device's limit decides",
            )

    def _link_sends(self, Shape shape):
        """A work request for each buffer that goes out, in a circle."""
        cdef State *st = self.st
        cdef bint landing_out = shape.landing_out
        cdef uint32_t i, stride = st.landing_stride if landing_out else st.stride
        cdef uint32_t lkey = 0  # each message is registered
        if landing_out:
            lkey = self.landing_mr.ptr.lkey
        elif self.out_mr is not None:
            lkey = self.out_mr.ptr.lkey
        cdef int opcode = shape.opcode
        st.send_wr = <ibv_send_wr *> calloc(st.window, sizeof(ibv_send_wr))
        st.send_sge = <ibv_sge *> calloc(st.window, sizeof(ibv_sge))
        if st.send_wr == NULL or st.send_sge == NULL:
            raise MemoryError
        for i in range(st.window):
            st.send_sge[i].addr = <uintptr_t> st.out + <uint64_t> i * stride
            st.send_sge[i].length = self.size
            st.send_sge[i].lkey = lkey
            st.send_wr[i].sg_list = &st.send_sge[i]
            st.send_wr[i].num_sge = 1
            st.send_wr[i].opcode = <ibv_wr_opcode> opcode
            st.send_wr[i].next = &st.send_wr[(i + 1) % st.window]

    def _link_receives(self, Shape shape):
        """A receive request for each landing buffer, in a circle; `shape.receives` of them are posted at a time."""
        cdef State *st = self.st
        cdef uint32_t i, length = max(self.size, shape.least) + st.head
        cdef int pieces = 1 if shape.into else 0
        st.recv_wr = <ibv_recv_wr *> calloc(st.slots, sizeof(ibv_recv_wr))
        st.recv_sge = <ibv_sge *> calloc(st.slots, sizeof(ibv_sge))
        if st.recv_wr == NULL or st.recv_sge == NULL:
            raise MemoryError
        for i in range(st.slots):
            st.recv_sge[i].addr = <uintptr_t> st.landing + <uint64_t> i * st.landing_stride
            st.recv_sge[i].length = length
            st.recv_sge[i].lkey = self.landing_mr.ptr.lkey
            st.recv_wr[i].wr_id = i
            st.recv_wr[i].sg_list = &st.recv_sge[i]
            st.recv_wr[i].num_sge = pieces
            st.recv_wr[i].next = &st.recv_wr[(i + 1) % st.slots]

    def vary(self, sizes):
        """As every transport: work requests are then as long as their messages. All are inline if the longest is.

        :param sizes: a table of uint32 bytes
        """
        Transport.vary(self, sizes)
        self.st.post_one_size = self.ops.post
        self.ops.post = post_varying

    def _check(self, int status, str verb):
        if status < 0:
            raise verbs_error(verb, self._where(), -status)

    def _where(self) -> str:
        return f"{self.context.name} port {self.port.number} QP {self.qp.number}"

    def _describe(self):
        cdef uint32_t lowest = self.context.limits["max_qp_rd_atom"]
        return self.chosen_port.describe_end(
            path=self.prepare.setting.path, size=self.size, qpn=self.qp.number, psn=secrets.randbits(24),
            reads=min(READS, lowest), address=<uintptr_t> self.st.landing, rkey=self.landing_mr.rkey,
            slots=self.st.slots, stride=self.st.landing_stride,
            cm_port=0 if self.managed is None else self.managed.port,
        )

    def describe(self) -> dict:
        """What the other end needs: the fields of `hwrx.paths.verbs_end.End`.

        :return: a dict that JSON can hold; the same at each call, the first packet sequence number included
        """
        return {name: getattr(self.end, name) for name in self.end.__struct_fields__}

    def connect(self, remote):
        """Check the other end, agree on the MTU, take the queue pair to RTS. Refuses two ends on one rxe device.

        :param remote: what `describe` of the other end returned
        :raises PeerError: if it describes no end of this path
        :raises UsageError: if both ends stand on one rxe device, which hands packets over without any network
        :raises PathError: naming the step that failed
        """
        there, self.path_mtu = self.chosen_port.agree_with(self.end, remote)
        self.remote = there
        self.st.remote = there.address
        self.st.remote_slots = there.slots
        self.st.remote_stride = there.stride
        self._connect(there)
        if self.each is not None:
            self.register_each(self.each)

    cdef void register_each(self, MessageRegions each) noexcept:
        """Stand in front of the path's post, which the subclass has set."""
        each.stand_before(&self.ops)

    def _connect(self, there):
        self._connect_pair(self.qp, there, self.end.psn, there.qpn, there.psn)
        self._check_parameters()

    def _connect_pair(self, qp, there, psn, remote_qpn, remote_psn):
        """Connect one queue pair to one of the other end's."""
        cdef int reads_out = min(there.reads, self.context.limits["max_qp_init_rd_atom"], READS)
        setting = self.prepare.setting
        common = {
            "mtu": self.path_mtu, "reads_out": reads_out, "reads_in": self.end.reads, "timeout": setting.ack_timeout,
            "retry_count": setting.retry_count, "rnr_retry": setting.rnr_retry,
            "traffic_class": setting.traffic_class, "service_level": setting.service_level,
        }
        if self.managed is not None:
            self.managed.connect(qp, peer=there.address_text, peer_port=there.cm_port, **common)
            return
        qp.connect(
            psn=psn, remote_psn=remote_psn, remote_qpn=remote_qpn, gid_index=self.gid.number,
            remote_gid=bytes.fromhex(there.gid), remote_lid=there.lid, **common,
        )

    def _check_parameters(self):
        """What was asked for holds: some devices take a value, keep none of it, and say so only when they are asked."""
        for name, has in self.qp.parameters().items():
            asked = getattr(self.prepare.setting, name)
            if has != asked:
                raise MachineError(
                    f"{self._where()} was given {name} {asked} and has {has}: this device does not keep it",
                    remedy=f"leave {name} out, or use a device that has it",
                )

    def chosen(self) -> dict:
        """Device, port, GID, MTU, window, inline and the buffers' addresses; the MTU is final once connected.

        :return: a dict that JSON can hold: the manifest's `chosen`; sizes in bytes, `window` in messages
        """
        cdef State *st = self.st
        result = {
            "device": self.context.name, "port": self.port.number, "rxe": self.context.is_rxe,
            "gid": self.chosen_port.address, "gid_index": self.gid.number, "gid_type": self.gid.type,
            "netdev": self.gid.netdev, "mtu": self.path_mtu, "window": self.window,
            "wait": "event" if self.recv_channel is not None or self.send_channel is not None else "poll",
            "signal_every": st.signal_every, "receive_buffers": st.slots,
            "inline": self.size if st.flags & IBV_SEND_INLINE else 0, "inline_limit": self.qp.max_inline,
            # of RoCE the ICRC, which rxe computes on a CPU; the checksum of its UDP is 0
            "checksum_sent_by": "rxe" if self.context.is_rxe else "device",
            "checksum_verified_by": "rxe" if self.context.is_rxe else "device",
            "memory": self.chosen_port.describe_memory(self.prepare.setting, self.buffer),
            "send_address": hex(<uintptr_t> st.out),
            "receive_address": hex(<uintptr_t> st.landing),
        }
        if self.remote is not None:
            setting = self.prepare.setting
            result.update(self.qp.parameters(), connected_by=setting.connect)
            if self.qp.datagram:  # its packets have what the address has that goes with each request
                result.update(traffic_class=setting.traffic_class, service_level=setting.service_level)
        try:
            pages = self.buffer.physical_pages()
        except MachineError:  # not for this user: /proc/self/pagemap needs CAP_SYS_ADMIN
            return result
        at = st.landing - self.buffer.base
        result["receive_physical"] = hex(pages[at // self.buffer.page_size] + at % self.buffer.page_size)
        return result

    def counts(self):
        """What the device's own counters counted since the endpoint was made; of whatever used it, not of us alone.

        `inline_bytes`: payload that this end posted inline, which ibv_post_send copies into the send queue.
        """
        after = self._counters()
        found = {name: after[name] - before for name, before in self.counted.items() if name in after}
        if self.st.flags & IBV_SEND_INLINE:
            # of messages that differ, as many of each as the table has
            mean = self.size if self.sizes is None else sum(self.sizes) / len(self.sizes)
            found["inline_bytes"] = round(self.st.posted * mean)
        if self.each is not None:
            found.update(self.each.counts())
        return found

    def _counters(self) -> dict:
        """What is counted by others: the device, and the kernel of its pages where they are faulted in on demand."""
        setting = self.prepare.setting
        at = <uintptr_t> self.st.landing
        paging = self.chosen_port.count_paging(setting, at, <size_t> self.st.slots * self.st.landing_stride)
        return {**self.chosen_port.counters(), **paging}

    def resent(self) -> int:
        """As every transport's: rxe's count of retries, of the whole device; 0 on hardware, which counts others."""
        return self.chosen_port.counters().get("hw_completer_retry_err", 0)

    def failure(self):
        """Of a sender: what became of the first work request that failed.

        :return: its status (ibv_wc_status) and how many were posted from that one on; None if none did. RC completes in
            order, so those before it were acknowledged, and none of these was
        """
        if not self.st.has_failed:
            return None
        return <int> self.st.failed.status, self.st.posted - self.st.failed.wr_id + 1

    def arrived(self) -> int:
        """Take the completions that wait in the receive queue. For an end without a loop.

        :return: how many of them were messages
        """
        cdef ibv_wc[BATCH] wc
        cdef int n = BATCH, i, messages = 0
        while n == BATCH:
            n = ibv_poll_cq(self.st.receives.cq, BATCH, wc)
            for i in range(n):
                messages += wc[i].status == IBV_WC_SUCCESS
        return messages

    def explain(self, int status):
        """One sentence for a status; for a completion with error its name, what it means and the usual cause.

        :param status: -errno, FINISHED, WC_STATUS - ibv_wc_status or EVENT_STATUS - ibv_event_type
        """
        cdef ibv_wc *wc = &self.st.failed
        if status > WC_STATUS or status == FINISHED:
            return Transport.explain(self, status)
        if status <= EVENT_STATUS:
            return f"{wc_words.explain_event(EVENT_STATUS - status)} (on {self.context.name} port {self.port.number})"
        words = wc_words.explain_status(WC_STATUS - status)
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
        """Take everything down in reverse order; harmless when called twice.

        The regions before the memory, the queue pair before its queues, the device last: each is in use by the one
        that was made after it.
        """
        self.release_rings()
        if self.managed is not None:
            self.managed.close()
        self._close_path()
        for part in (self.qp, self.send_cq, self.recv_cq, self.send_channel, self.recv_channel, self.each, self.out_mr,
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
ACCESS_ATOMIC = IBV_ACCESS_REMOTE_ATOMIC


def ring_slots(size: int, wanted: int) -> int:
    """How many landing buffers of `size` bytes: `wanted`, as far as RING_LIMIT goes, and at least one."""
    return max(1, min(wanted, RING_LIMIT // aligned(size)))
