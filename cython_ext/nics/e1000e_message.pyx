# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""MessageLink: what `Link` and `Gather` ask for, and receiving into a Landing. Hot part first.

Section numbers are those of the 82574's datasheet, as in e1000e_ring.pxd.
"""

from libc.errno cimport EINVAL
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.frames.landing cimport LANDING_PAGE, Landing, foretold, has_come, next_position
from cython_ext.frames.link cimport Frame, Gather, Link, Piece, SharedHeaders
from cython_ext.nics.dma cimport DmaRegion
from cython_ext.nics.descriptor_ring cimport (
    FRAME_ERRORS_SHIFT,
    RDT,
    RXD_ERR_FRAME,
    RXD_STATUS_SHIFT,
    RXD_STAT_DD,
    RXD_STAT_EOP,
    SHORTEST,
    TDT,
    TXD_CMD_EOP,
    TXD_CMD_IFCS,
    TXD_CMD_RS,
    TXD_CMD_SHIFT,
    TXD_STA_DD,
    TXD_STA_SHIFT,
    TxDescriptor,
)
from cython_ext.nics.e1000e_ring cimport Rx, rx_receive, rx_refuse, rx_release, rx_wait
from cython_ext.nics.e1000e_tx cimport Tx
from cython_ext.nics.interleaved cimport InterleavedRegion
from cython_ext.nics.mmio cimport dma_read64, mmio_write

from cython_ext.nics.interleaved import interleaved_pages
from hwrx.errors import UsageError

cdef enum:
    FRAME_BITS = RXD_STAT_EOP | RXD_ERR_FRAME << FRAME_ERRORS_SHIFT
    PIECE = TXD_CMD_IFCS                                # a descriptor in the middle of a frame
    LAST = TXD_CMD_EOP | TXD_CMD_IFCS | TXD_CMD_RS      # and its last one, which reports DD for all
    BUFFER = 8192           # RCTL's: what a frame of RoCE's largest MTU needs (2,048 would do for none above 1,024)
    AHEAD = 64              # armed and not filled: a real 82574 fetches descriptors early, and those are final


# --- receiving -----------------------------------------------------------------------------------------------------

cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    return <int> rx_receive((<MessageState *> me).rx, out, most)


cdef int give(void *me, uint32_t count) noexcept nogil:
    rx_release((<MessageState *> me).rx, count)
    return 0


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    rx_refuse((<MessageState *> me).rx, frame)


# --- receiving into a landing --------------------------------------------------------------------------------------

cdef int take_landed(void *me, Frame *out, uint32_t most) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef Rx *rx = s.rx
    cdef uint32_t taken = 0, slot
    cdef uint64_t report
    while taken < most and rx.fresh != s.armed:
        slot = rx.fresh & rx.mask
        # `dma_read64` keeps the loads of the frame behind this one, as in rx_receive
        report = dma_read64(&rx.descriptors[slot].report)
        if not report & (<uint64_t> RXD_STAT_DD << RXD_STATUS_SHIFT):
            break
        rx.fresh += 1
        out[taken].data = s.where[slot]
        out[taken].size = report & 0xFFFF
        out[taken].slot = slot
        out[taken].flags = <uint32_t> (report >> 32)
        if out[taken].flags & FRAME_BITS != RXD_STAT_EOP or out[taken].size < SHORTEST:
            # damaged, or longer than its buffer, which this wire's MTU rules out: passed over
            rx.tally.damaged += 1
            rx.skipped[slot] = 1
            rx.refused += 1
            continue
        rx.tally.bytes += out[taken].size
        taken += 1
    rx.tally.frames += taken
    if taken == 0 and rx.fresh != rx.oldest:
        give_landed(me, 0)
    return <int> taken


cdef int give_landed(void *me, uint32_t count) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef Rx *rx = s.rx
    cdef uint32_t slot
    while rx.oldest != rx.fresh:
        slot = rx.oldest & rx.mask
        if rx.skipped[slot]:
            has_come(&s.landing, s.where[slot])
            rx.skipped[slot] = 0
            rx.refused -= 1
        elif count == 0:
            break
        else:
            count -= 1
        rx.oldest += 1
    arm(s)
    return 0


cdef void arm(MessageState *s) noexcept nogil:
    """Give the NIC buffers for the frames that are expected next, as far ahead as it may have them."""
    cdef Rx *rx = s.rx
    cdef uint32_t slot, begun = s.armed
    # Where each armed descriptor stands in the sequence follows from the next frame alone: a surprise moves those that
    # are armed from now on, and the others are found to be wrong when they come.
    cdef uint64_t position = next_position(&s.landing) + (s.armed - rx.fresh)
    cdef uint64_t iova
    cdef char *at
    while s.armed - rx.fresh < s.landing.ahead and s.armed - rx.oldest < rx.mask:
        slot = s.armed & rx.mask
        at = foretold(&s.landing, position, &iova)
        if at == NULL:
            at = rx.buffers + (<size_t> slot << rx.shift)
            iova = rx.iova[slot]
        s.where[slot] = at
        rx.descriptors[slot].address = iova
        rx.descriptors[slot].report = 0
        s.armed += 1
        position += 1
    # `mmio_write` keeps the descriptors' stores before its own: the tail is the hand-over (10.2.5.9)
    if s.armed != begun:
        mmio_write(rx.bar, RDT, s.armed & rx.mask)


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    return rx_wait((<MessageState *> me).rx, deadline)


# --- sending -------------------------------------------------------------------------------------------------------

cdef inline bint is_sent(const Tx *tx, uint32_t at) noexcept nogil:
    return dma_read64(&tx.descriptors[at & tx.mask].command) >> TXD_STA_SHIFT & TXD_STA_DD


cdef void reclaim(MessageState *s) noexcept nogil:
    """Take back the descriptors of frames that the NIC has sent, which the last one of each says."""
    cdef Tx *tx = s.tx
    cdef uint32_t span
    # In order: where the newest is sent, all are, and no other descriptor need be looked at.
    if tx.oldest != tx.next and is_sent(tx, tx.next - 1):
        tx.oldest = tx.next
        s.oldest_frame = s.handed
    while tx.oldest != tx.next:
        span = <uint8_t> s.marks[s.oldest_frame & tx.mask]
        if not is_sent(tx, tx.oldest + span - 1):
            break
        tx.oldest += span
        s.oldest_frame += 1


cdef int room(void *me, uint32_t most) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef uint32_t frames = (s.tx.mask - (s.filled - s.tx.oldest)) // PIECES
    # a look at descriptors only where the room that is known does not do
    if frames < most:
        reclaim(s)
        frames = (s.tx.mask - (s.filled - s.tx.oldest)) // PIECES
    return <int> min(frames, most)


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    return s.tx.buffers + <size_t> ((s.frames + k) & s.tx.mask) * s.tx.stride


cdef inline bint holds(const Reach *piece, const char *at, uint32_t size) noexcept nogil:
    # below `base` the difference has become a very large number
    cdef size_t offset = at - piece.base
    return offset < piece.size and size <= piece.size - offset


cdef uint64_t reach(MessageState *s, const char *at, uint32_t size) noexcept nogil:
    """Where the NIC sees memory of ours; 0 if it does not."""
    cdef uint32_t k
    for k in range(s.known):
        if holds(&s.reaches[k], at, size):
            s.last = k
            return s.reaches[k].iova + (at - s.reaches[k].base)
    return 0


cdef inline void describe(Tx *tx, uint32_t at, uint64_t iova, uint32_t size, uint64_t command) noexcept nogil:
    cdef TxDescriptor *descriptor = &tx.descriptors[at & tx.mask]
    descriptor.address = iova
    descriptor.command = size | command << TXD_CMD_SHIFT


cdef inline uint32_t describe_piece(Tx *tx, uint32_t at, uint64_t iova, uint32_t size, uint64_t command) noexcept nogil:
    """A piece of a frame, of a page at most: how many descriptors it takes.

    Two if it crosses the end of a page. A real 82574 would not ask for that. QEMU maps what a descriptor says in one
    piece, and drops the frame where an IOMMU has pages behind each other that are not neighbours in memory.
    """
    cdef uint32_t left = LANDING_PAGE - <uint32_t> (iova & (LANDING_PAGE - 1))
    if size <= left:
        describe(tx, at, iova, size, command)
        return 1
    describe(tx, at, iova, left, PIECE)
    describe(tx, at + 1, iova + left, size - left, command)
    return 2


cdef int append(void *me, uint32_t head, const char *payload, uint32_t size, uint64_t end,
                uint32_t tail) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef Tx *tx = s.tx
    cdef uint32_t slot = s.frames & tx.mask
    cdef char *frame = tx.buffers + <size_t> slot * tx.stride
    cdef uint64_t iova = reach(s, payload, size) if size else 0
    cdef uint32_t span
    if iova == 0:
        if head + size + tail > tx.stride:
            return -EINVAL
        # nothing of it where all was built in the frame, as an ACK is
        if size + tail:
            memcpy(frame + head, payload, size)
            memcpy(frame + head + size, &end, tail)
        span = describe_piece(tx, s.filled, tx.iova[slot], head + size + tail, LAST)
        s.marks[slot] = span
        s.filled += span
        s.frames += 1
        s.carried += size
        return 0
    # padding and ICRC stand behind the headers in the frame's buffer, and go out behind the payload
    memcpy(frame + head, &end, 8)   # a constant size is one store; `tail` says how much of it goes out
    describe(tx, s.filled, tx.iova[slot], head, PIECE)
    span = 1 + describe_piece(tx, s.filled + 1, iova, size, PIECE)
    describe(tx, s.filled + span, tx.iova[slot] + head, tail, LAST)
    s.marks[slot] = span + 1
    s.filled += span + 1
    s.frames += 1
    s.gathered += size
    return 1


cdef uint32_t append_all(void *me, const SharedHeaders *shared, const Piece *pieces, uint32_t count,
                         uint32_t size) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef Tx *tx = s.tx
    # Copies in registers: a store through a pointer would have the compiler read them again for each frame.
    cdef Reach memory = s.reaches[s.last]
    cdef TxDescriptor *three = &tx.descriptors[s.filled & tx.mask]
    cdef const TxDescriptor *behind = &tx.descriptors[tx.mask - 1]
    cdef const uint64_t *addresses = tx.iova
    cdef char *buffers = tx.buffers
    cdef char *frame
    cdef uint64_t *marks = s.marks
    cdef uint64_t mark = shared.version << 8 | 3, built
    cdef uint64_t command = <uint64_t> PIECE << TXD_CMD_SHIFT
    cdef uint32_t head = shared.head, tail = shared.tail
    # of the three descriptors of a frame, which differ in their addresses alone
    cdef uint64_t begin = head | command, middle = size | command, end = tail | <uint64_t> LAST << TXD_CMD_SHIFT
    cdef uint32_t mask = tx.mask, stride = tx.stride, number = s.frames, n = 0, slot
    cdef uint64_t iova
    cdef size_t offset, furthest = memory.size - size
    if s.known == 0 or size > memory.size:
        return 0
    while n < count and three < behind:
        offset = pieces[n].payload - memory.base
        iova = memory.iova + offset
        # as `describe_piece` has it: no descriptor crosses the end of a page
        if offset > furthest or (iova & (LANDING_PAGE - 1)) + size > LANDING_PAGE:
            # perhaps another piece of memory: from the next call on it is the first to be looked at
            reach(s, pieces[n].payload, size)
            break
        slot = number & mask
        frame = buffers + <size_t> slot * stride
        # a buffer keeps its headers while no other frame is built in it
        if marks[slot] != mark:
            marks[slot] = mark
            memcpy(frame, shared.headers, 64)
        memcpy(frame + head - 4, &pieces[n].psn, 4)
        memcpy(frame + head, &pieces[n].end, 8)
        built = addresses[slot]
        three[0].address = built
        three[0].command = begin
        three[1].address = iova
        three[1].command = middle
        three[2].address = built + head
        three[2].command = end
        # never over the ring's end: where the three would cross it, `append` has to do it
        three += 3
        number += 1
        n += 1
    s.filled += 3 * n
    s.frames = number
    s.gathered += <uint64_t> n * size
    return n


cdef bint append_one(void *me, const SharedHeaders *shared, const char *payload, uint32_t size, uint32_t psn,
                     uint64_t end) noexcept nogil:
    cdef MessageState *s = <MessageState *> me
    cdef Tx *tx = s.tx
    cdef uint32_t at = s.filled & tx.mask
    # as for `append_all`: never over the ring's end, nor where room is only found by a look
    if tx.mask - (s.filled - tx.oldest) < PIECES or at + 2 > tx.mask:
        return False
    if size:
        return append_piece(s, shared, payload, size, psn, end, &tx.descriptors[at])
    tx.descriptors[at].address = build_head(s, shared, psn, end, 1)
    tx.descriptors[at].command = (shared.head + shared.tail) | <uint64_t> LAST << TXD_CMD_SHIFT
    s.filled += 1
    return True


cdef inline uint64_t build_head(MessageState *s, const SharedHeaders *shared, uint32_t psn, uint64_t end,
                                uint32_t span) noexcept nogil:
    """The next frame's headers and what follows the payload, in its buffer: where the NIC sees that."""
    cdef Tx *tx = s.tx
    cdef uint32_t slot = s.frames & tx.mask
    cdef char *frame = tx.buffers + <size_t> slot * tx.stride
    s.frames += 1
    # a buffer keeps its headers while no other frame is built in it
    if s.marks[slot] != (shared.version << 8 | span):
        s.marks[slot] = shared.version << 8 | span
        memcpy(frame, shared.headers, 64)
    frame += shared.head
    memcpy(frame - 4, &psn, 4)
    memcpy(frame, &end, 8)
    return tx.iova[slot]


cdef inline bint append_piece(MessageState *s, const SharedHeaders *shared, const char *payload, uint32_t size,
                              uint32_t psn, uint64_t end, TxDescriptor *three) noexcept nogil:
    cdef const Reach *memory = &s.reaches[s.last]
    cdef size_t offset = payload - memory.base
    cdef uint64_t iova = memory.iova + offset, built
    if not holds(memory, payload, size) or (iova & (LANDING_PAGE - 1)) + size > LANDING_PAGE:
        return False
    built = build_head(s, shared, psn, end, 3)
    three[0].address = built
    three[0].command = shared.head | <uint64_t> PIECE << TXD_CMD_SHIFT
    three[1].address = iova
    three[1].command = size | <uint64_t> PIECE << TXD_CMD_SHIFT
    three[2].address = built + shared.head
    three[2].command = shared.tail | <uint64_t> LAST << TXD_CMD_SHIFT
    s.filled += 3
    s.gathered += size
    return True


cdef int flush(void *me) noexcept nogil:
    """The tail: the NIC may fetch all that was appended (10.2.6.8)."""
    cdef MessageState *s = <MessageState *> me
    if s.filled != s.tx.next:
        s.tx.next, s.handed = s.filled, s.frames
        mmio_write(s.tx.bar, TDT, s.filled & s.tx.mask)
    return 0


cdef int send(void *me, uint32_t count, uint32_t size) noexcept nogil:
    """Frames that were built whole, one after the other."""
    cdef MessageState *s = <MessageState *> me
    cdef uint32_t slot, _
    for _ in range(count):
        slot = s.frames & s.tx.mask
        s.marks[slot] = describe_piece(s.tx, s.filled, s.tx.iova[slot], size, LAST)
        s.filled += <uint32_t> s.marks[slot]
        s.frames += 1
    s.carried += <uint64_t> count * size
    return flush(me)


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class MessageLink(RingLink):
    """The rings of a NIC that hwrx drives, as a link for messages: see the module's .pxd.

    What is sent out of `sending_memory()` is fetched by the NIC from there; all else is copied into the ring, and
    counted. With `prepare_landing` a message is received into the user's own pages.

    :param nic: a `hwrx.nic.e1000e.E1000e`, which belongs to this object from now on
    """

    def __init__(self, nic):
        cdef MessageState *s = &self.messages
        RingLink.__init__(self, nic)
        s.rx, s.tx = self.state.rx, self.state.tx
        s.filled = s.tx.next
        self.largest = min(self.rx.stride, self.tx.stride)
        self.table = Link(s, take, refuse, give, wait, room, buffer, send)
        self.gather = Gather(s, append, append_all, append_one, flush, &s.versions)

    def sending_memory(self, size_t size):
        """Return memory of which the NIC fetches what is sent. It is closed with the NIC.

        Behind an IOMMU all of it is one piece for the NIC. Without one it is in as many as it has huge pages, and only
        the first `REACHES` of a link's are fetched.

        :param size: bytes, at least 1
        :raises MachineError: if the memory cannot be had
        """
        cdef MessageState *s = &self.messages
        cdef DmaRegion region = self.nic.device.dma(size)
        cdef size_t at
        for at in range(0, region.size, region.granule):
            if s.known < REACHES:
                s.reaches[s.known].base = region.base + at
                s.reaches[s.known].size = min(region.granule, region.size - at)
                s.reaches[s.known].iova = region.iova_at(at)
                s.known += 1
        return region

    def prepare_landing(self, *, uint32_t slots, uint32_t size, uint32_t mtu, uint32_t first, uint32_t middle,
                        uint32_t last, uint32_t asides=0, bint asides_first=False):
        """Receive messages into pages of the user's from now on. No frame that came before is kept.

        :param slots: messages that have pages of their own
        :param size: bytes of each
        :param mtu: bytes of payload of a whole packet: 4,096, or at least `size`
        :param first, middle, last: bytes of headers of a message's first packet, of those behind it, and of its last
            one; a packet that is alone is a first one
        :param asides: frames that are expected with each message and are none of its packets
        :param asides_first: they come before it, not after it
        :return: the user's view, whose message k begins at page k times the pages of a message
        :raises UsageError: if messages of that size do not land in one piece, or it was prepared before
        :raises MachineError: if no IOMMU translates for the NIC, or the memory cannot be had
        """
        cdef Landing *landing = &self.messages.landing
        cdef InterleavedRegion region
        packets = max(1, (<object> size + mtu - 1) // mtu)
        if packets > 1 and mtu != LANDING_PAGE:
            raise UsageError(
                f"of {packets} packets of {mtu} bytes none but the first would begin with a page",
                remedy=f"an MTU of {LANDING_PAGE}",
            )
        if landing.frames != NULL:
            raise UsageError("this link's messages land in place already", remedy="make another link")
        if self.rx.stride < BUFFER and min(size, mtu) + first > self.rx.stride - 8:
            raise UsageError(
                f"this NIC's buffers of {self.rx.stride} bytes are too short", remedy=f"buffers of {BUFFER} bytes"
            )
        region = interleaved_pages(slots * packets)
        self.nic.device.share(region)
        self.region = region
        landing.size, landing.user, landing.iova = region.size, region.user.base, region.iova_at(0)
        landing.slots, landing.pages, landing.packets = slots, packets, packets
        landing.first, landing.middle, landing.last = first, middle, last
        landing.asides, landing.asides_first = asides, asides_first
        # nothing is awaited behind a message that has not come
        landing.aside = 0 if asides_first else asides
        # no further than to messages whose pages are free while the user has those of half of all
        self.armed_pages = bytearray(slots * packets)
        landing.armed = <uint8_t *> <char *> self.armed_pages
        landing.ahead = max(2, min(AHEAD, self.rx.count // 2, (slots // 2) * (packets + asides)))
        landing.frames = region.base
        self.landing = landing
        self.table.take, self.table.give = take_landed, give_landed
        self.messages.armed = 0
        self.nic.restart_receiver(lambda: self.first_arm())
        return region.user

    def release_messages(self, uint64_t count):
        """The pages of the oldest `count` messages may be written again.

        :param count: messages that have landed and were not released
        """
        self.messages.landing.released += count

    def first_arm(self):
        """Give the NIC its first buffers. For the driver, once its receiver is enabled."""
        arm(&self.messages)

    def statistics(self) -> dict:
        """As RingLink's, and what was gathered: `fetched_bytes` of payload, fetched by the NIC from the user's memory.

        :return: a dict of whole numbers; {} once the NIC was given back
        """
        counted = RingLink.statistics(self)
        if counted:
            counted.update(fetched_bytes=self.messages.gathered, cpu_sent_bytes=self.messages.carried)
        return counted

    def device_memory(self) -> tuple:
        """Where messages land: the user's pages if that was prepared, else the ring's buffers."""
        if self.region is not None:
            return self.region.user.address, len(self.region.user)
        return RingLink.device_memory(self)
