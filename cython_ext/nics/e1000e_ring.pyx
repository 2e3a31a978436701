# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The receive ring of the 82574, hot part first; who owns what: e1000e_ring.pxd, the layout: descriptor_ring.pxd.

The hot functions touch no Python object, allocate nothing and copy no payload. They are called by one thread at a time.
"""

import os

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.frames.link cimport Frame
from cython_ext.nics.descriptor_ring cimport (
    FRAME_ERRORS_SHIFT,
    ICR,
    IMC,
    IMS,
    RDT,
    RXD_ERR_FRAME,
    RXD_STAT_DD,
    RXD_STAT_EOP,
    RXD_STATUS_SHIFT,
    SHORTEST,
    Ring,
)
from cython_ext.nics.dma cimport DmaRegion
from cython_ext.nics.interrupt cimport Interrupt, alarm_unmask, alarm_wait
from cython_ext.nics.mmio cimport Bar, dma_read64, mmio_write

cdef enum:
    BATCH = 256  # most frames that Python takes at once
    LOST_AFTER = 50_000_000  # ns: how long an interrupt is waited for before the ring is looked at without it
    FRAME_BITS = RXD_STAT_EOP | RXD_ERR_FRAME << FRAME_ERRORS_SHIFT
    FRAME_GOOD = RXD_STAT_EOP
    # An address that no station has: the group bit is set in the source. No NIC writes it to a buffer.
    UNWRITTEN = 0x5AA55AA5FFFF5AA5


# --- receive -------------------------------------------------------------------------------------------------------

cdef uint32_t rx_receive(Rx *rx, Frame *out, uint32_t most) noexcept nogil:
    """Hand out up to `most` frames that the NIC has finished, oldest first, in the buffers to which it wrote them.

    They stay ours until `rx_release`. Damaged ones are counted and passed over. Never waits.
    """
    # Copies in registers: behind the barrier of `dma_read64` the compiler would read them again for each frame.
    cdef const RxDescriptor *descriptors = rx.descriptors
    cdef char *buffers = rx.buffers
    cdef uint32_t taken = 0, fresh = rx.fresh, mask = rx.mask, shift = rx.shift, slot, size
    cdef uint64_t report
    cdef Frame *frame = out
    while taken < most:
        # descriptor done? All of the second word is read at once, and the NIC wrote it at once: length and status agree
        slot = fresh & mask
        report = dma_read64(&descriptors[slot].report)
        # Software finds done descriptors by reading memory, not registers (7.1.8). DD set: the descriptor and its
        # buffer are ours. `dma_read64` keeps every later load behind this one, so the frame is not read before its
        # status.
        if not report & (<uint64_t> RXD_STAT_DD << RXD_STATUS_SHIFT):
            break
        fresh += 1

        # length and errors
        # Bytes in this buffer; with RCTL.SECRC the CRC is stripped and not counted.
        size = report & 0xFFFF
        frame.data = buffers + (<size_t> slot << shift)
        frame.size = size
        frame.slot = slot
        frame.flags = <uint32_t> (report >> 32)
        # One comparison for the common case. `size - SHORTEST` wraps for a runt, so it is examined as well.
        if (frame.flags & FRAME_BITS != FRAME_GOOD or size - SHORTEST >= rx.plain) and not examine(rx, frame):
            # Refused, and still ours: only `rx_release` may move the tail, and it goes in order.
            rx.skipped[slot] = 1
            rx.refused += 1
            continue

        # the buffer, in place
        rx.tally.bytes += size
        frame += 1
        taken += 1
    # once a batch: nobody else looks at it meanwhile
    rx.fresh = fresh
    rx.tally.frames += taken
    if taken == 0 and fresh != rx.oldest:
        rx_release(rx, 0)  # nothing but refused ones, perhaps: they go back at once
    return taken


cdef inline uint32_t plain(const Rx *rx) noexcept nogil:
    # The largest excess over SHORTEST that fits into one buffer, plus one; 0 sends every frame to `examine`.
    return 0 if rx.guard else rx.stride - SHORTEST + 1


cdef bint examine(Rx *rx, const Frame *frame) noexcept nogil:
    """Whether a frame is one, whole, in one buffer and undamaged; counts what is wrong with it."""
    cdef uint64_t first
    if not frame.flags & RXD_STAT_EOP or frame.size > rx.stride:
        # 7.1.3.3: without EOP the frame goes on in the next buffer. It is counted once, where it ends.
        # While it lasts `plain` is 0, so the next part is examined even if it looks like a frame of its own.
        rx.splitting = True
        rx.plain = 0
        return False
    if rx.splitting:
        rx.splitting = False
        rx.plain = plain(rx)
        rx.tally.oversize += 1
        return False
    # Valid with EOP and DD only (7.1.3.4). The NIC hands damaged frames over only if RCTL.SBP is set.
    if frame.flags >> FRAME_ERRORS_SHIFT & RXD_ERR_FRAME:
        rx.tally.damaged += 1
        return False
    if frame.size < SHORTEST:
        rx.tally.runt += 1
        return False
    if rx.guard:
        # By memcpy, because a buffer of bytes may not be read through a pointer to words.
        memcpy(&first, frame.data, 8)
        if first == UNWRITTEN:
            # The NIC says that it wrote the frame, and the memory says no: an IOMMU refused the address
            rx.tally.unwritten += 1
            return False
    return True


cdef void rx_release(Rx *rx, uint32_t count) noexcept nogil:
    """Give the `count` oldest frames handed out back to the NIC, and the refused ones among and right behind them."""
    cdef uint32_t slot, oldest = rx.oldest, until = oldest + min(count, rx.fresh - oldest)
    # None refused, as on a ring that one sender fills: nobody need ask of each.
    if rx.guard or rx.refused:
        release_refused(rx, count)
        return
    # nothing to give back: no register is written
    if oldest == until:
        return
    while oldest != until:
        slot = oldest & rx.mask
        # the address is written anew although legacy write-back leaves it alone: what a device did to it must not last
        rx.descriptors[slot].address = rx.iova[slot]
        # Status to zero, or the in-memory scan would find this descriptor done a round later (7.1.8, the note there).
        rx.descriptors[slot].report = 0
        oldest += 1
    move_tail(rx, oldest)


cdef inline void move_tail(Rx *rx, uint32_t oldest) noexcept nogil:
    """One before the oldest that we hold. One register write for all that were given back."""
    # All descriptors are written by now, and `mmio_write` keeps those stores before its own: RDT is the hand-over
    # (10.2.5.9). One before `oldest`, as RDH = RDT would mean that the NIC has none (7.1.8).
    rx.oldest = oldest
    mmio_write(rx.bar, RDT, (oldest - 1) & rx.mask)


cdef void release_refused(Rx *rx, uint32_t count) noexcept nogil:
    """As `rx_release`, where some were refused, or each buffer is marked."""
    cdef uint32_t slot, oldest = rx.oldest
    while oldest != rx.fresh:
        slot = oldest & rx.mask
        # The refused go back with their neighbours: RDT can only say "up to here".
        if rx.skipped[slot]:
            rx.skipped[slot] = 0
            rx.refused -= 1
        elif count == 0:
            break
        else:
            count -= 1
        # Before the tail moves: afterwards the NIC may write this buffer at any time.
        if rx.guard:
            mark(rx, slot)
        # both words, as `rx_release` has it
        rx.descriptors[slot].address = rx.iova[slot]
        rx.descriptors[slot].report = 0
        oldest += 1
    if oldest != rx.oldest:
        move_tail(rx, oldest)


cdef void mark(Rx *rx, uint32_t slot) noexcept nogil:
    cdef uint64_t unwritten = UNWRITTEN
    memcpy(rx.buffers + (<size_t> slot << rx.shift), &unwritten, 8)


cdef int rx_wait(Rx *rx, int64_t deadline) noexcept nogil:
    """Until a descriptor is done: 1; until CLOCK_MONOTONIC reaches `deadline`: 0; or -errno. Polls or sleeps.

    An interrupt that never came is survived: each sleep is short, and the ring is looked at after it (`lost`). One that
    brought nothing (`spurious`) is slept over.
    """
    cdef int64_t at
    cdef int status
    cdef uint32_t looks = 0
    if rx.alarm == NULL:
        # Polls memory that the NIC writes by DMA; a register would cost a round trip over the bus at each look.
        while not rx_ready(rx):
            looks += 1
            if looks % LOOKS == 0 and now() >= deadline:
                return 0
        return 1
    while True:
        # First forget what is known (write one to clear, 10.2.4.1: it would fire at once), then arm, then look, then
        # sleep: what comes after the look fires.
        mmio_write(rx.bar, ICR, rx.causes)
        mmio_write(rx.bar, IMS, rx.causes)
        # After IMS: VFIO masks INTx when it fires, and what came in between fires as soon as it is unmasked.
        status = alarm_unmask(rx.alarm)
        # The look that closes the gap: a frame that came before ICR was cleared raises nothing any more.
        if status < 0 or rx_ready(rx):
            return status if status < 0 else 1
        # Short, because an interrupt can be lost: the ring is looked at again in any case.
        at = now()
        status = alarm_wait(rx.alarm, at, min(at + LOST_AFTER, deadline))
        if status < 0:
            return status
        # INTx and MSI leave the cause enabled in IMS: without this each further frame would fire while we poll.
        if rx.by_cause:
            mmio_write(rx.bar, IMC, rx.causes)
        if rx_ready(rx):
            # status 0: the time was over, nothing had fired, and yet a frame is there.
            rx.lost += status == 0
            return 1
        rx.spurious += status == 1
        if now() >= deadline:
            return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class RxRing(Ring):
    """The receive ring. `start()` before the NIC's receiver is enabled, the tail after (`arm()`).

    :param guard: mark each buffer before the NIC gets it, and refuse one that comes back with the mark (`unwritten`):
        that finds a NIC that reports frames which an IOMMU kept from memory. It costs a touch of each buffer
    """

    def __init__(self, Bar bar not None, DmaRegion descriptors not None, DmaRegion buffers not None,
                 uint32_t count, uint32_t stride, *, bint guard=False):
        Ring.__init__(self, bar, descriptors, buffers, count, stride)
        free(self.skipped)
        free(self.frames)
        self.skipped = <uint8_t *> calloc(count, 1)
        self.frames = <Frame *> calloc(BATCH, sizeof(Frame))
        if self.skipped == NULL or self.frames == NULL:
            raise MemoryError
        self.rx.guard = guard
        self.rx.descriptors = <RxDescriptor *> descriptors.base
        self.rx.bar = bar.base
        self.rx.buffers = buffers.base
        self.rx.iova = self.iova
        self.rx.skipped = self.skipped
        self.rx.mask = count - 1
        self.rx.stride = stride
        self.rx.shift = (<object> stride).bit_length() - 1
        self.views = None
        self.start()

    def __dealloc__(self):
        free(self.skipped)
        free(self.frames)

    def start(self):
        """All descriptors point to their buffers and none is done; nothing is held. The NIC must be stopped."""
        cdef uint32_t i
        self.rx.fresh = self.rx.oldest = 0
        self.rx.splitting = False
        self.rx.plain = plain(&self.rx)
        memset(self.skipped, 0, self.count)
        self.rx.refused = 0
        # The NIC is stopped and owns nothing, so plain stores do: `arm` is the barrier that publishes them.
        for i in range(self.count):
            self.rx.descriptors[i].address = self.iova[i]
            self.rx.descriptors[i].report = 0
            if self.rx.guard:
                mark(&self.rx, i)

    def arm(self):
        """Give the NIC all buffers but one: the tail register, which counts only once the receiver is enabled.

        :raises ValueError: if the ring is closed
        """
        self.check()
        # Behind RCTL.EN: the tail counts once the receiver is enabled (4.6.5).
        mmio_write(self.rx.bar, RDT, (self.rx.oldest - 1) & self.rx.mask)

    @property
    def held(self) -> int:
        """Descriptors that are handed out, or refused and not yet given back."""
        return self.rx.fresh - self.rx.oldest

    @property
    def fresh(self) -> int:
        """Index of the descriptor that is looked at next."""
        return self.rx.fresh & self.rx.mask

    @property
    def counts(self) -> dict:
        """frames, bytes, damaged, oversize, runt, unwritten since the ring was made."""
        return self.rx.tally

    cdef list prepare_views(self):
        whole = np.frombuffer(self.buffers, np.uint8, <size_t> self.count * self.stride)
        self.views = list(whole.reshape(self.count, self.stride))
        return self.views

    def peek(self, uint32_t most=64) -> list:
        """Up to `most` finished frames as NumPy arrays over the buffers to which the NIC wrote them: no copy.

        :param most: how many at most; 256 in any case
        :return: uint8 arrays of the frames' lengths, oldest first; [] if nothing came, without a wait. They are valid
            until `release`; after that the NIC writes to them again
        :raises ValueError: if the ring is closed
        """
        cdef uint32_t i, taken
        self.check()
        cdef list views = self.views if self.views is not None else self.prepare_views()
        # The frames are held from here on; who called gives them back with `release`.
        taken = rx_receive(&self.rx, self.frames, min(most, <uint32_t> BATCH))
        return [views[self.frames[i].slot][:self.frames[i].size] for i in range(taken)]

    def receive(self, uint32_t most=64) -> list:
        """Up to `most` finished frames as Packets, which know what the NIC said of them and when they are released.

        :param most: how many at most; 256 in any case
        :return: [] if nothing came; never waits
        :raises ValueError: if the ring is closed
        """
        cdef uint32_t i, taken, slot
        cdef Packet packet
        self.check()
        cdef list views = self.views if self.views is not None else self.prepare_views()
        cdef list out = []
        taken = rx_receive(&self.rx, self.frames, min(most, <uint32_t> BATCH))
        for i in range(taken):
            packet = Packet.__new__(Packet)
            slot = self.frames[i].slot
            packet.ring = self
            packet.view = views[slot]
            packet.size = self.frames[i].size
            packet.status = self.frames[i].flags & 0xFF
            packet.errors = self.frames[i].flags >> FRAME_ERRORS_SHIFT & 0xFF
            # Free-running, so that `released` can tell a frame of this round from one of the next in the same slot.
            packet.number = self.rx.oldest + ((slot - self.rx.oldest) & self.rx.mask)
            out.append(packet)
        return out

    def release(self, uint32_t count):
        """Give the `count` oldest frames handed out back to the NIC.

        :raises ValueError: if fewer are out, or the ring is closed
        """
        cdef uint32_t at, out = 0
        self.check()
        # Checked here, once a call: `rx_release` itself trusts its count.
        for at in range(self.rx.fresh - self.rx.oldest):
            out += not self.skipped[(self.rx.oldest + at) & self.rx.mask]
        if count > out:
            raise ValueError(f"{count} frames to release, and {out} are handed out")
        rx_release(&self.rx, count)

    def drain(self, uint32_t batch=64) -> int:
        """Take all that has come, in batches, look at none of it, and give it back.

        :param batch: frames of one batch, 256 at most
        :return: how many frames
        :raises ValueError: if the ring is closed
        """
        self.check()
        cdef uint32_t taken, wanted = max(1, min(batch, <uint32_t> BATCH))
        cdef uint64_t total = 0
        with nogil:
            while True:
                taken = rx_receive(&self.rx, self.frames, wanted)
                if taken == 0:
                    break
                # Given back before the next batch is taken, so the NIC never runs out for want of us.
                rx_release(&self.rx, taken)
                total += taken
        return total

    def use(self, Interrupt interrupt, uint32_t causes):
        """Wait by an interrupt from now on, or poll.

        :param interrupt: it belongs to the caller and is kept alive here; None: poll
        :param causes: bits of IMS that raise it
        """
        self.interrupt = interrupt
        self.rx.alarm = NULL if interrupt is None else &interrupt.alarm
        self.rx.causes = causes
        self.rx.by_cause = interrupt is not None and interrupt.kind != "msix"

    @property
    def spurious(self) -> int:
        """Interrupts that brought nothing."""
        return self.rx.spurious

    @property
    def lost(self) -> int:
        """How often a frame was there that no interrupt told of."""
        return self.rx.lost

    def wait_for(self, double seconds) -> bool:
        """Wait for a frame; releases the GIL.

        :param seconds: how long
        :return: whether a frame is there
        :raises OSError: if the interrupt's descriptor fails
        :raises ValueError: if the ring is closed
        """
        cdef int64_t deadline = now() + <int64_t> (seconds * 1e9)
        cdef int status
        self.check()
        with nogil:
            status = rx_wait(&self.rx, deadline)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        return status == 1

    def drop_views(self):
        """Let go of the arrays over the buffers, so that the region can be closed; who has one keeps it."""
        self.views = None


cdef class Packet:
    """A frame in the buffer to which the NIC wrote it.

    `size`: bytes, without CRC. `status` and `errors` are the descriptor's (7.1.3). `number`: free-running, of its
    descriptor.
    """

    @property
    def released(self) -> bool:
        """Whether the buffer has gone back to the NIC."""
        # free-running 32-bit numbers: the difference is what counts
        return <uint32_t> (self.number - self.ring.rx.oldest) >= <uint32_t> (self.ring.rx.fresh - self.ring.rx.oldest)

    @property
    def data(self):
        """The frame as a NumPy array of uint8, shape (size,), over that buffer: no copy.

        :raises ValueError: once it is released
        """
        if self.released:
            raise ValueError("the packet was released: its buffer belongs to the NIC again")
        return self.view[:self.size]

    def __len__(self):
        return self.size

    def __bytes__(self):
        return self.data.tobytes()

    def __repr__(self):
        return f"<Packet of {self.size} bytes{', released' if self.released else ''}>"
