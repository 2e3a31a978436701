# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""RC WRITE: the sender writes into the receiver's memory, and no completion tells the receiver so.

In a ping-pong or an open loop the receiver watches the slot in which the next message will stand until its last byte
and then its header are those of the message. Devices place the bytes of one message in ascending order on every
machine that people poll memory on (verbs do not promise it), so the trailer is looked at first.

In a stream nobody watches: a CPU that polls would be part of what is measured. The receiver sleeps until the last
message stands in its slot, and then verifies what the slots hold; the sender stamps its completions.

Nothing holds the sender back: one that goes round all slots writes over messages that nobody has looked at. That is the
end of an open loop, unless the receiver was told to go on with what still stands.
"""

cimport cython
from libc.errno cimport EOVERFLOW
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp
from posix.time cimport nanosleep, timespec

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.lengths cimport length_of, length_of_number
from cython_ext.core.payload cimport AT_SEQUENCE, MAGIC, MAGIC_CHECK, magic_of, sequence_of, trailer, trial_of
from cython_ext.core.transport cimport FINISHED, WC_STATUS, Delivery
from cython_ext.headers.infiniband_verbs cimport IBV_WR_RDMA_WRITE, ibv_send_wr
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_ring cimport (
    State,
    look_for_errors,
    reap,
    ring_finish,
    ring_outgoing,
    ring_room,
    submit,
)
from cython_ext.verbs.verbs_shape cimport Shape
from cython_ext.verbs.verbs_wait cimport BEAT_NS

from cython_ext.verbs.verbs_path import ACCESS_WRITE, ring_slots

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from *:
    """
    static inline unsigned char hwrx_load_byte(const void *at)
    {
        return __atomic_load_n((const unsigned char *) at, __ATOMIC_ACQUIRE);
    }
    static inline unsigned long long hwrx_load_word(const void *at)
    {
        return __atomic_load_n((const unsigned long long *) at, __ATOMIC_ACQUIRE);
    }
    """
    unsigned char hwrx_load_byte(const void *at) nogil
    unsigned long long hwrx_load_word(const void *at) nogil

cdef enum:
    LOOKS_A_YIELD = 31      # waiting by event: looks between two offers of the CPU to others, as a mask
    NAP_NS = 10_000_000     # the end is noticed so much later, and only that

UNREAD_LIMIT = 1 << 20      # bytes of slots where only the last messages of a stream are verified
CHECKED_LIMIT = 256 << 20   # bytes of slots where every message of a stream is to be verified


cdef inline char *slot_of(State *st, uint64_t sequence) noexcept nogil:
    # the number of slots is a power of two
    return st.landing + <size_t> (sequence & (st.slots - 1)) * st.landing_stride


cdef inline bint is_next(const State *st, uint32_t magic) noexcept nogil:
    # a check comes once, and has the number of the message that comes after it
    return magic == MAGIC or (magic == MAGIC_CHECK and not st.checked)


cdef inline bint stands(const State *st, const char *at, uint64_t sequence) noexcept nogil:
    """Whether the message of that sequence number, or the one that is to be checked before it, stands here, whole."""
    cdef uint32_t size = length_of_number(st.lengths, sequence)
    cdef uint64_t word
    # The last byte first, because devices write upwards. Nothing promises that: ibv_query_qp_data_in_order(3) asks.
    # rxe copies by memcpy, a page at a time (rxe_mr_copy), and the stores of one string instruction may be seen out of
    # order (Intel SDM 3A, "Fast-String Operation and Out-of-Order Stores").
    if size >= 17:
        # An acquire: header and payload are read after this byte, never before it.
        if hwrx_load_byte(at + size - 1) != trailer(sequence):
            return False
        # the message that was here before may have had the same trailer: the header, read only now, tells them apart
        return is_next(st, magic_of(at)) and memcmp(at + AT_SEQUENCE, &sequence, 8) == 0
    # Magic and low half of the number in one load, so they cannot be of two messages.
    word = hwrx_load_word(at)
    if word >> 32 != <uint32_t> sequence or not is_next(st, <uint32_t> word):
        return False
    # 9 to 16 bytes have no trailer, but all of their fields are known beforehand
    if size >= 12 and sequence_of(at, size) != sequence:
        return False
    return size < 16 or trial_of(at) == st.trial


cdef inline uint64_t expected(const State *st) noexcept nogil:
    """The sequence number of the next message, or of the one that a check stands before."""
    # A check takes a slot and no number of its own.
    return st.taken - st.checks


cdef inline int deliver(State *st, Delivery *out, uint32_t most) noexcept nogil:
    cdef uint32_t n = 0
    cdef char *at
    # As many as stand, without a wait: the first one that does not stand ends the lot.
    while n < most:
        at = slot_of(st, st.taken)
        if not stands(st, at, expected(st)):
            break
        out[n].data = at
        out[n].size = length_of_number(st.lengths, expected(st))
        st.checked = magic_of(at) == MAGIC_CHECK
        st.checks += st.checked
        # The slot is not given back to anybody: a round later the sender writes here, whether we have looked or not.
        st.taken += 1
        n += 1
    return <int> n


cdef inline uint64_t ahead(State *st) noexcept nogil:
    """The sequence number of a later message that stands where the next one should; 0 if none does."""
    cdef const char *at = slot_of(st, st.taken)
    cdef uint64_t sequence
    # Fewer bytes carry half of the number only, and a check may stand anywhere: neither tells a round.
    if length_of(st.lengths, at) < 12 or magic_of(at) != MAGIC:
        return 0
    sequence = sequence_of(at, length_of(st.lengths, at))
    # whole rounds later, or it is half of one message and half of another
    return sequence if sequence > st.taken and (sequence - st.taken) & (st.slots - 1) == 0 and not st.checks else 0


cdef int look_around(State *st) noexcept nogil:
    """Nothing came: has a send of ours failed, or has the sender gone round all slots before we looked?"""
    # The device's own errors come first: they may be the reason for the silence.
    cdef int status = look_for_errors(st)
    return -EOVERFLOW if status == 0 and ahead(st) and not st.goes_on else status


cdef void catch_up(State *st) noexcept nogil:
    """Pass over what was written over: of the messages that stand, the oldest is one round behind the newest."""
    cdef uint64_t newest = ahead(st)
    if newest:
        # The slot behind the newest holds the oldest that still stands; all between were written over.
        st.overtaken += newest - st.slots + 1 - st.taken
        st.taken = newest - st.slots + 1


cdef int watch(State *st, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef const char *at = slot_of(st, st.taken)
    cdef uint32_t looks = 0
    while not stands(st, at, expected(st)):
        looks += 1
        # The clock only now and then: a reading costs as much as ten looks at memory.
        if looks % LOOKS == 0:
            if st.goes_on:
                catch_up(st)
                at = slot_of(st, st.taken)
            # The limit of one call, not of the message: the loop comes back.
            if now() >= deadline:
                return look_around(st)
        # no PAUSE between two looks: it costs up to 140 cycles, and an emulator leaves its loop for it
        # Waiting by event has no event here. rxe's responder needs a CPU, and that may be this one.
        if st.yields and looks & LOOKS_A_YIELD == 0:
            sched_yield()
    return deliver(st, out, most)


cdef int write_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    cdef State *st = <State *> me
    # A send of ours that failed: the queue pair is in error, and nothing will be written any more.
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    return watch(st, out, most, now() + BEAT_NS)


cdef int write_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil:
    cdef State *st = <State *> me
    if st.has_failed:
        return WC_STATUS - <int> st.failed.status
    return watch(st, out, most, deadline)


cdef int blind_receive(void *me, Delivery *out, uint32_t most) noexcept nogil:
    """Sleep, look, sleep, until the last message stands; then hand out what is left of the stream, oldest first."""
    cdef State *st = <State *> me
    cdef int64_t deadline = now() + BEAT_NS
    cdef timespec nap
    if st.taken == st.total:
        return FINISHED
    nap.tv_sec = 0
    nap.tv_nsec = NAP_NS
    # RC writes messages in the order of posting: when the last one stands, all before it stood before.
    while not stands(st, slot_of(st, st.total - 1), st.total - 1):
        if now() >= deadline:
            return 0
        nanosleep(&nap, NULL)
    # Of messages that differ in size a byte of an older one may have been taken for the trailer: the rest comes now.
    if st.lengths.mask:
        nanosleep(&nap, NULL)
    # Nobody looked meanwhile, so of a longer stream only the last round is there to be verified.
    if st.taken == 0 and st.total > st.slots:
        st.taken = st.total - st.slots   # those before are overwritten
    return deliver(st, out, most)


cdef int write_release(void *me, uint32_t count) noexcept nogil:
    # a slot needs nothing: the next message to come here has another sequence number
    return 0


cdef inline uint64_t number_at(const State *st, uint64_t place) noexcept nogil:
    """The number of the message in that place, counted from 0 with checks, each of which stands before its message."""
    cdef uint64_t block = st.check_every + 1
    if st.check_every == 0:
        return place
    return place // block * st.check_every + (place % block - 1 if place % block else 0)


cdef int write_release_varying(void *me, uint32_t count) noexcept nogil:
    """Of messages that differ in size: where the next trailer in this slot will stand, no byte of an older message may.

    It might be the same byte, and the new message would be taken for whole as soon as its header stands.
    """
    cdef State *st = <State *> me
    cdef uint32_t _
    for _ in range(count):
        slot_of(st, st.released)[length_of_number(st.lengths, number_at(st, st.released + st.slots)) - 1] = 0
        st.released += 1
    return 0


cdef int write_post(void *me, uint32_t count) noexcept nogil:
    cdef State *st = <State *> me
    cdef ibv_send_wr *wr = &st.send_wr[st.slot]
    cdef uint32_t _
    for _ in range(count):
        # In turn, as the receiver looks for them. Set before `submit`, which copies the request into the device's
        # queue.
        wr.wr.rdma.remote_addr = st.remote + <uint64_t> st.remote_slot * st.remote_stride
        st.remote_slot += 1
        if st.remote_slot == st.remote_slots:
            st.remote_slot = 0
        wr = wr.next
    return submit(st, count)


cdef int blind_room(void *me) noexcept nogil:
    """As ring_room, but never without a look: the completions are the only stamps that a stream of WRITEs gets."""
    cdef State *st = <State *> me
    # With a window half empty `ring_room` would not look, and a stamp would come a half window late.
    cdef int status = reap(st)
    cdef uint32_t left = st.window - <uint32_t> (st.posted - st.completed)
    if status < 0:
        return status
    return <int> left if left else ring_room(me)


@cython.no_gc_clear
cdef class RcWriteTransport(VerbsTransport):
    """RC WRITE into the other end's slots, in turn; see the module for how the other end learns of it.

    :param prepare, chosen_port: VerbsTransport's
    """

    def shape(self):
        """No receive requests; a power of two of slots, which is no multiple of the 255 values of a trailer.

        So the next message that falls into a slot has another trailer than the one before it, which is how the
        receiver tells the two apart by looking at memory alone.
        """
        setting = self.prepare.setting
        total = setting.warmup + setting.messages + setting.cooldown
        if setting.receives is not None:
            wanted = ring_slots(self.size, setting.receives)
        elif setting.pattern != "stream":
            wanted = ring_slots(self.size, 2 * setting.window if setting.pattern == "pingpong" else 4096)
        elif self.prepare.role == "client":
            wanted = 1
        elif setting.check_every == 1:
            wanted = max(1, min(1 << (total - 1).bit_length(), CHECKED_LIMIT // (self.size + 63 & ~63)))
        else:
            # nobody reads them before the end: as few as stay in a processor's cache
            wanted = max(1, min(2 * setting.window, UNREAD_LIMIT // (self.size + 63 & ~63)))
        return Shape(
            opcode=IBV_WR_RDMA_WRITE, access=ACCESS_WRITE, slots=1 << (wanted.bit_length() - 1), receives=0
        )

    def __init__(self, prepare, chosen_port):
        VerbsTransport.__init__(self, prepare, chosen_port)
        blind = prepare.setting.pattern == "stream"
        self.st.yields = prepare.setting.wait != "poll"
        if blind and prepare.setting.duration is not None:
            self.st.signal_every = 1  # nobody knows beforehand which is the last, whose completion ends the wait
        self.ops.me = self.st
        self.ops.outgoing = ring_outgoing
        self.ops.room = blind_room if blind else ring_room
        self.ops.post = write_post
        self.ops.receive = blind_receive if blind else write_receive
        self.ops.receive_until = write_receive_until
        self.ops.release = write_release
        self.ops.finish = ring_finish
        self.ops.blind = blind

    def vary(self, sizes):
        """As every transport; and each slot is made ready for the trailer of its next message.

        :param sizes: a table of uint32 bytes
        """
        VerbsTransport.vary(self, sizes)
        setting = self.prepare.setting
        self.st.check_every = setting.check_every if setting.pattern == "pingpong" else 0
        if not self.ops.blind:
            self.ops.release = write_release_varying

    def connect(self, remote):
        """As every verbs transport; and aim at the other end's memory.

        :param remote: has `address`, `rkey`, `slots` and `stride` of the buffer to write to, too
        """
        cdef uint32_t i, rkey
        VerbsTransport.connect(self, remote)
        # One region covers all slots, so one key does for all requests, once.
        rkey = self.remote.rkey
        for i in range(self.st.window):
            self.st.send_wr[i].wr.rdma.rkey = rkey

    def end_at(self, uint64_t total):
        """As every transport: the receiver of a stream sleeps until that message stands."""
        if self.ops.blind:
            self.st.total = total

    def go_on(self):
        """Let a receiver that was overtaken go on with the oldest message that still stands, as `counts` then tells.

        For an open loop: the receiver of a stream looks once, at the end. Messages of less than 12 bytes do not tell.
        """
        self.st.goes_on = True

    def counts(self):
        """As every verbs transport.

        :return: with `overtaken`, if this end was told to go on: messages that were written over before it looked
        """
        result = VerbsTransport.counts(self)
        if self.st.goes_on:
            result["overtaken"] = self.st.overtaken
        return result

    def chosen(self) -> dict:
        """As every verbs transport; the receiver's manner of waiting is its own."""
        result = VerbsTransport.chosen(self)
        if self.ops.blind:
            result["receiver"] = "sleeps until the last message stands in memory"
        else:
            result["receiver"] = "polls memory" + (", offering the CPU to others" if self.st.yields else "")
        return result

    def explain(self, int status):
        """As every verbs transport; and what it means when the slots overflow."""
        if status == -EOVERFLOW:
            return (
                f"the sender went round all {self.st.slots} slots before the receiver looked: messages were overwritten"
                " unseen; a lower rate, or a larger window"
            )
        return VerbsTransport.explain(self, status)
