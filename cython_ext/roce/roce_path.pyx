# cython: language_level=3
"""RoceTransport: SEND, WRITE, WRITE with immediate and READ of our own queue pair, for the loops.

A SEND of one packet is delivered in the frame in which it came: the link's buffers are the receive buffers, and an ACK
or a stranger that takes one of them costs nothing. All other messages have slots of the receiver's, in turn. Where the
link can, they land there (cython_ext/frames/landing.pxd); else the responder copies them. What is sent is gathered from
where the loop has built it, if the link's device reaches that.
"""

import secrets

from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from cython_ext.core.lengths cimport length_of_number
from cython_ext.core.payload cimport build_source
from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport FINISHED, WC_STATUS, Ops, Transport
from cython_ext.frames.stamps cimport StageStamps
from cython_ext.headers.infiniband_verbs cimport (
    IBV_WR_RDMA_READ,
    IBV_WR_RDMA_WRITE,
    IBV_WR_RDMA_WRITE_WITH_IMM,
    IBV_WR_SEND,
)
from cython_ext.roce.memory_region cimport ProtectionDomain
from cython_ext.roce.packet cimport AETH, BTH, ETHERNET, IMMDT, IPV4, RETH, UDP_HEADER
from cython_ext.roce.queue_pair cimport RoceQueuePair
from cython_ext.roce.roce_ops cimport *

from cython_ext.core.lengths import read_entries
from cython_ext.roce.packet import address_vector
from cython_ext.verbs import wc_words

cdef enum:
    PLAIN = ETHERNET + IPV4 + UDP_HEADER + BTH      # headers of a packet without extended ones
    PACKETS = 64            # under way: the other end has buffers for as many
    DEEP = 512              # receive requests of a stream or an open loop, as RcSendTransport has them
    ANSWERING = 16          # of a ping-pong
    SLOTS_LIMIT = 32 << 20  # bytes of slots

TIMEOUT = 16                # 268 ms: a busy machine's silence is not taken for a lossy wire
READS = 16
VERBS = {
    "roce-send": IBV_WR_SEND, "roce-write": IBV_WR_RDMA_WRITE, "roce-write-imm": IBV_WR_RDMA_WRITE_WITH_IMM,
    "roce-read": IBV_WR_RDMA_READ,
}
# The other end may be a verbs device, whose paths have the verbs' names.
TWINS = {path: path.replace("roce-", "rdma-") for path in VERBS}


cdef class RoceTransport(Transport):
    """One end of a path over a queue pair of our own.

    :param prepare: a `hwrx.control.messages.Prepare`: setting, role, and where we are
    :param port: a `hwrx.paths.roce_port.RocePort`, whose link belongs to this object from now on. It is also asked what
        the other end is to be told, and whether the two fit
    :raises MachineError: if memory cannot be had; the link is closed then
    :raises UsageError: if the setting does not fit the link
    """

    def __init__(self, prepare, port):
        self.prepare = prepare
        self.port = port
        self.link = port.link
        self.size = prepare.setting.size
        try:
            self.set_up()
        except BaseException:
            self.close()
            raise

    cdef set_up(self):
        cdef RoceState *s = &self.state
        setting = self.prepare.setting
        window = max(1, min(setting.window, SLOTS_LIMIT // self.size))
        self.notes = dict(self.port.notes)
        self.domain = ProtectionDomain()
        s.verb = VERBS[setting.path]
        s.size = self.size
        s.lengths = &self.lengths
        s.window = self.window = window
        s.slots, receives = self.count_slots()
        self.pair = RoceQueuePair(
            self.link, self.domain, qpn=self.port.choose_qpn(self.prepare), mtu=self.port.mtu, send_depth=window,
            receive_depth=max(1, receives), reads=READS,
            window=max(1, min(PACKETS, self.link.frames // 2)),
            access=("local write", "remote write", "remote read"),
        )
        s.c = &self.pair.connection
        s.link = &self.link.table
        s.patience_ns = round(min(setting.patience, setting.limit) * 1e9)
        s.limit_ns = round(setting.limit * 1e9)
        s.total = setting.total
        # The frame is the receive buffer if a whole message is in one. Those that wait must not be all that there are.
        s.c.in_frames = s.verb == IBV_WR_SEND and self.size <= self.port.mtu and self.link.frames >= 4
        if s.c.in_frames:
            receives = min(receives, self.link.frames // 2)
        self.make_buffers()
        s.next_out, s.behind_out = s.out, s.out + <size_t> s.window * s.stride
        self.choose_ops()
        # of a ping-pong each message is answered, and the ACK goes with the answer: the other end is woken once
        s.c.ack_waits = setting.pattern == "pingpong"
        for _ in range(s.c.receive_mask + 1 if s.c.in_frames else receives):
            roce_post_receive(s)
        s.c.receive_posted = receives
        self.end = self.port.describe_end(
            path=TWINS[setting.path], size=self.size, qpn=self.pair.qpn, psn=secrets.randbelow(1 << 24), reads=READS,
            address=0 if self.landing_region is None else self.landing_region.address,
            rkey=0 if self.landing_region is None else self.landing_region.key, slots=s.slots, stride=s.landing_stride,
        )

    def count_slots(self):
        """Messages that this end has room for, and receive requests that it keeps posted."""
        setting = self.prepare.setting
        verb = VERBS[setting.path]
        fit = max(1, SLOTS_LIMIT // (self.size + 4095 & ~4095))
        if verb == IBV_WR_RDMA_READ:
            # of messages that differ in size one for each entry of the table, so that none ever changes its own
            if setting.mix:
                return read_entries(self.size), 0
            # one more than may be asked for at a time: what a landing buffer held before is not what it should hold now
            return max(2, min(fit, setting.window + 1)), 0
        if setting.pattern == "stream" and self.prepare.role == "client":
            return 1, 1
        wanted = ANSWERING if setting.pattern == "pingpong" else max(DEEP, 2 * setting.window)
        if verb == IBV_WR_RDMA_WRITE:
            # a power of two: no multiple of the 255 values that a message's trailer has
            wanted = min(max(2, fit), 2 * setting.window if setting.pattern != "paced" else 4096)
            return 1 << (wanted.bit_length() - 1), 0
        if verb == IBV_WR_RDMA_WRITE_WITH_IMM:
            # A slot more than requests, for the message whose first packets come while all are in use.
            return min(fit, wanted) + 1, min(fit, wanted)
        return min(fit, wanted), min(fit, wanted)

    cdef make_buffers(self):
        """What is sent stands where the link's device fetches it; what comes, where it lands, if it can."""
        cdef RoceState *s = &self.state
        cdef bint reads = s.verb == IBV_WR_RDMA_READ
        cdef bint client = self.prepare.role == "client"
        # whole cache lines; and no packet's payload crosses the end of a page, which would cost a descriptor more
        s.stride = (self.size + 4095) & ~<uint32_t> 4095 if self.size > 2048 else max(64, power_of_two(self.size))
        s.landing_stride = s.stride
        if reads:
            # the end that asks has landing buffers, the other one what is read
            if client:
                self.landing, s.stride = self.landing_pages(s.window)
                self.out_region = self.domain.register(self.landing)
            else:
                self.out = self.link.sending_memory(<size_t> s.slots * s.stride)
                self.out_region = self.domain.register(self.out)
                if not self.prepare.setting.mix:
                    self.fill_slots()
            s.out = <char *> <uintptr_t> self.out_region.address
            s.out_key = self.out_region.key
            self.landing_region = self.out_region
            s.landing_stride = s.stride
            return
        self.out = self.link.sending_memory(<size_t> s.window * s.stride)
        self.out_region = self.domain.register(self.out)
        s.out = <char *> <uintptr_t> self.out_region.address
        s.out_key = self.out_region.key
        if s.c.in_frames:
            return
        self.landing, s.landing_stride = self.landing_pages(s.slots)
        self.landing_region = self.domain.register(self.landing)
        s.landing = <char *> <uintptr_t> self.landing_region.address
        s.landing_key = self.landing_region.key

    def landing_pages(self, slots):
        """Memory for so many messages, and how far one is from the next: in place where the link can, or plain."""
        cdef RoceState *s = &self.state
        setting = self.prepare.setting
        whole = max(1, (self.size + self.port.mtu - 1) // self.port.mtu)
        comes = setting.pattern != "stream" or (self.prepare.role == "server") != (s.verb == IBV_WR_RDMA_READ)
        if not (self.port.interleaves and comes and (whole == 1 or self.port.mtu == 4096)) or setting.mix:
            self.notes["lands"] = "copied: " + (
                "where a message lies in its page is foretold from one size" if setting.mix else
                "no message comes to this end" if not comes
                else f"{whole} packets of {self.port.mtu} bytes do not begin with pages" if self.port.interleaves
                else "nothing lays pages out for this link"
            )
            return PinnedBuffer(slots * s.stride), s.stride
        last = PLAIN
        first = PLAIN + (RETH if s.verb in (IBV_WR_RDMA_WRITE, IBV_WR_RDMA_WRITE_WITH_IMM) else 0)
        if s.verb == IBV_WR_RDMA_WRITE_WITH_IMM:
            last += IMMDT
            first += IMMDT if whole == 1 else 0
        elif s.verb == IBV_WR_RDMA_READ:
            first = last = PLAIN + AETH
        # of a ping-pong, and of an open loop as long as nothing is late: our own message is acknowledged in between
        aside = setting.pattern != "stream" and s.verb != IBV_WR_RDMA_READ
        user = self.link.prepare_landing(
            slots=slots, size=self.size, mtu=self.port.mtu, first=first, middle=PLAIN, last=last, asides=aside,
            asides_first=self.prepare.role == "client",
        )
        self.pair.use_landing()
        s.moves = True
        self.notes["lands"] = "in the user's pages"
        return user, whole * 4096

    cdef fill_slots(self):
        """What the other end reads: filled before it learns the address."""
        cdef RoceState *s = &self.state
        cdef uint32_t slot
        cdef char *at
        for slot in range(s.slots):
            at = <char *> <uintptr_t> self.out_region.address + <size_t> slot * s.stride
            # as RcReadTransport has it: the memory is passive and cannot count the questions
            build_source(at, length_of_number(s.lengths, slot), slot, self.prepare.trial)

    def end_at(self, uint64_t total):
        """As every transport: the receiver of a stream of WRITEs sleeps until that message stands."""
        self.state.total = total

    def vary(self, sizes):
        """As every transport; what is read has as many entries as there are slots.

        :param sizes: a table of uint32 bytes
        """
        cdef RoceState *s = &self.state
        Transport.vary(self, sizes)
        self.ops.post = roce_read_post_varying if s.verb == IBV_WR_RDMA_READ else roce_post_varying
        if s.verb == IBV_WR_RDMA_READ and self.prepare.role == "server":
            self.fill_slots()

    cdef choose_ops(self):
        cdef RoceState *s = &self.state
        cdef bint blind = s.verb == IBV_WR_RDMA_WRITE and self.prepare.setting.pattern == "stream"
        # modulo, pull, lossy, brought_at, blind
        self.ops = Ops(s, roce_outgoing, roce_room, roce_post, roce_receive, roce_receive_until, roce_release,
                       roce_finish, 0, False, False, NULL, blind)
        if s.verb == IBV_WR_RDMA_WRITE:
            self.ops.receive = roce_blind_receive if blind else roce_write_receive
            self.ops.receive_until = roce_write_receive_until
            self.ops.release = roce_write_release
            self.ops.room = roce_blind_room if blind else roce_room
            if blind and s.moves:
                # nobody looks at a stream of WRITEs before its end: every slot is free at any time
                s.c.landing.released = <uint64_t> 1 << 62
        elif s.verb == IBV_WR_RDMA_READ:
            self.ops.pull = True
            self.ops.room = roce_read_room
            self.ops.post = roce_read_post
            self.ops.receive = roce_read_receive
            self.ops.receive_until = roce_read_receive_until
            self.ops.release = roce_read_release
            if self.prepare.role == "server":
                self.ops.finish = roce_read_finish

    def describe(self):
        """What the other end needs to reach this one, in the words of a verbs end.

        :return: the fields of a `hwrx.paths.verbs_end.End`
        """
        return {name: getattr(self.end, name) for name in self.end.__struct_fields__}

    def connect(self, remote):
        """Take the queue pair to RTS.

        :param remote: what `describe` of the other end returned, or a verbs path's
        :raises PeerError: if it describes no end of this path
        :raises PathError: if it cannot be reached from here
        """
        cdef RoceState *s = &self.state
        there, mtu = self.port.agree_with(self.end, remote)
        self.pair.connect(
            address_vector(self.link.mac, there.mac, self.port.address, self.port.address_of(there)), there.qpn,
            expects=there.psn, begins=self.end.psn, mtu=mtu, timeout=TIMEOUT,
        )
        s.remote, s.remote_key = there.address, there.rkey
        s.remote_slots, s.remote_stride = max(1, there.slots), there.stride
        prepare_requests(s)
        if s.verb == IBV_WR_RDMA_READ:
            self.ops.modulo = there.slots if self.prepare.role == "client" else 0
        self.notes |= {"mtu": mtu, "peer_mac": there.mac, "peer": there.device}

    def stamp_stages(self, uint64_t first, uint64_t count):
        """From now on stamp the stages of each message, as DatagramTransport does.

        :param first, count: sequence numbers `first` to `first + count - 1` are kept
        """
        cdef uint64_t address, size
        self.stamps = StageStamps(first, count)
        address, size = self.link.device_memory()
        self.stamps.state.low = <const char *> address
        self.stamps.state.high = <const char *> address + size
        self.state.c.stamps = &self.stamps.state
        self.state.c.trial = self.prepare.trial

    def chosen(self):
        """What was chosen that the user did not say, for the manifest.

        :return: a dict of JSON values: the link's notes, the MTU, where messages land, buffers' addresses
        """
        cdef RoceState *s = &self.state
        return {
            "window": self.window, "mtu": self.port.mtu, "receive_buffers": s.slots,
            "lands": "in frames that are the receive buffers", "qpn": self.pair.qpn,
            # the ICRC; the checksum of RoCE's UDP is 0
            "checksum_sent_by": "hwrx", "checksum_verified_by": "hwrx",
            "send_address": hex(<uintptr_t> s.out), **self.notes,
        }

    def counts(self):
        """Packets and bytes of the queue pair that are not 0, and what the link counts.

        :return: a dict of whole numbers: the names of `Counters` in cython_ext/roce/connection.pxd with `roce_` in
            front: `roce_copied` is what the responder copied, `roce_placed` and `roce_in_frames` what it need not
        """
        counters = self.pair.counters
        found = {f"roce_{name}": value for name, value in counters.items() if value}
        return {**found, **self.link.statistics(), **({} if self.stamps is None else self.stamps.counts())}

    def resent(self) -> int:
        """Packets that were sent again."""
        return self.pair.counters["sent_again"]

    def interrupt(self):
        """End the loop: a NIC that is in our hands can then be given back."""
        self.link.abandon()
        return True

    def explain(self, int status):
        """One sentence for a status, as verbs paths have it, with what the link has to say about itself."""
        words = wc_words.explain_status(WC_STATUS - status) if status <= WC_STATUS and status != FINISHED else (
            Transport.explain(self, status))
        return "; ".join([words, *self.link.diagnose()])

    def close(self):
        """Close the queue pair and its regions, and give the link back; harmless when called twice."""
        if self.pair is not None:
            self.pair.close()
        for region in (self.out_region, self.landing_region):
            if region is not None:
                region.close()
        self.link.close()


cdef uint32_t power_of_two(size) except 0:
    return 1 << (size - 1).bit_length()
