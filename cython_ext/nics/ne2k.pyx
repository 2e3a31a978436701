# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# optional: only x86 has ports
"""Ne2kLink: programmed I/O, a byte, a word or a double word at a time."""

from libc.errno cimport ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.core.clock cimport LOOKS, now
from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.frames.link cimport Frame, FrameLink, Link
from cython_ext.headers.sys_io cimport inb, insb, insl, insw, ioperm, outb, outsb, outsl, outsw
from cython_ext.nics.interrupt cimport Interrupt, alarm_unmask, alarm_wait

import os
import time

from hwrx.errors import MachineError

cdef enum:
    PORTS = 32
    SLOT = 2048
    LOST_AFTER = 50_000_000     # ns: how long an interrupt is waited for before the card is looked at without it
    SENDING_LIMIT = 100_000_000  # ns
    # frames of any size that the card's ring holds: each takes whole pages, with 4 bytes of header and 4 of CRC, and
    # one page stays empty. More are lost in silence: QEMU's card neither reports nor counts that.
    FRAMES_HELD = (LAST_PAGE - FIRST_PAGE - 1) * 256 // 1536


# --- the card's memory ---------------------------------------------------------------------------------------------

cdef inline void aim(Ne2kState *s, uint16_t address, uint32_t size, uint8_t direction) noexcept nogil:
    """Show `size` bytes of the card's memory from `address` on at the data port."""
    outb(<uint8_t> (size & 0xFF), s.port + RBCR0)
    outb(<uint8_t> (size >> 8), s.port + RBCR1)
    outb(<uint8_t> (address & 0xFF), s.port + RSAR0)
    outb(<uint8_t> (address >> 8), s.port + RSAR1)
    outb(CR_STA | direction, s.port + CR)


cdef inline uint32_t rounded(const Ne2kState *s, uint32_t size) noexcept nogil:
    return (size + s.width - 1) & ~(s.width - 1)


cdef void fetch(Ne2kState *s, uint16_t address, char *to, uint32_t size) noexcept nogil:
    """Copy from the card. The card goes from the ring's last page to its first by itself."""
    size = rounded(s, size)
    aim(s, address, size, CR_READ)
    if s.width == 1:
        insb(s.port + DATA, to, size)
    elif s.width == 2:
        insw(s.port + DATA, to, size // 2)
    else:
        insl(s.port + DATA, to, size // 4)
    memory_changed()
    outb(ISR_RDC, s.port + ISR)
    s.bytes += size
    s.accesses += size // s.width


cdef void put(Ne2kState *s, uint16_t address, const char *source, uint32_t size) noexcept nogil:
    """Copy to the card."""
    size = rounded(s, size)
    aim(s, address, size, CR_WRITE)
    memory_changed()
    if s.width == 1:
        outsb(s.port + DATA, source, size)
    elif s.width == 2:
        outsw(s.port + DATA, source, size // 2)
    else:
        outsl(s.port + DATA, source, size // 4)
    outb(ISR_RDC, s.port + ISR)
    s.bytes += size
    s.accesses += size // s.width


# --- receiving -----------------------------------------------------------------------------------------------------

cdef inline uint8_t written_up_to(Ne2kState *s) noexcept nogil:
    """The page behind the last frame in the card's ring. It stands in the other page of registers: three accesses."""
    cdef uint8_t page
    outb(CR_STA | CR_IDLE | CR_PAGE1, s.port + CR)
    page = inb(s.port + CURR)
    outb(CR_STA | CR_IDLE, s.port + CR)
    return page


cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    cdef Ne2kState *s = <Ne2kState *> me
    cdef uint32_t taken = 0, length, slot
    cdef uint8_t[4] header = [0, 0, 0, 0]
    cdef uint8_t end
    if s.fresh - s.oldest == s.slots:
        return 0
    end = written_up_to(s)
    while taken < most and s.page != end and s.fresh - s.oldest < s.slots:
        # frame done? The header that the card put in front: status, next page, length with the header's own 4 bytes
        fetch(s, <uint16_t> (s.page << 8), <char *> header, 4)
        length = <uint32_t> (header[2] | header[3] << 8) - 4
        if header[1] < FIRST_PAGE or header[1] >= LAST_PAGE or length > 1600:
            # the ring is out of step: forget what is in it
            s.damaged += 1
            s.page = end
            outb(end - 1 if end > FIRST_PAGE else LAST_PAGE - 1, s.port + BNRY)
            break
        # word for word into our memory
        slot = s.fresh & (s.slots - 1)
        fetch(s, <uint16_t> ((s.page << 8) + 4), s.received + <size_t> slot * SLOT, length)
        s.page = header[1]
        # the card may use the pages again: the boundary is one page before the next frame
        outb(s.page - 1 if s.page > FIRST_PAGE else LAST_PAGE - 1, s.port + BNRY)
        out[taken].data = s.received + <size_t> slot * SLOT
        out[taken].size = length
        out[taken].slot = slot
        out[taken].flags = header[0]
        s.fresh += 1
        s.frames += 1
        s.received_bytes += length
        taken += 1
    return <int> taken


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    (<Ne2kState *> me).refused[frame.slot] = 1


cdef int give(void *me, uint32_t count) noexcept nogil:
    cdef Ne2kState *s = <Ne2kState *> me
    cdef uint32_t slot
    while s.oldest != s.fresh:
        slot = s.oldest & (s.slots - 1)
        if s.refused[slot]:
            s.refused[slot] = 0
        elif count == 0:
            break
        else:
            count -= 1
        s.oldest += 1
    return 0


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    cdef Ne2kState *s = <Ne2kState *> me
    cdef int64_t at
    cdef uint32_t looks = 0
    cdef int status
    while True:
        if s.alarm != NULL:
            # forget what is known, let the next one come, then look: what comes after the look fires
            s.overflows += inb(s.port + ISR) & ISR_OVW != 0
            outb(ISR_PRX | ISR_RXE | ISR_OVW, s.port + ISR)
            outb(ISR_PRX | ISR_RXE | ISR_OVW, s.port + IMR)
            status = alarm_unmask(s.alarm)
            if status < 0:
                return status
        if written_up_to(s) != s.page:
            return 1
        looks += 1
        if s.alarm == NULL and looks % LOOKS:
            continue
        at = now()
        if at >= deadline:
            return 0
        if s.alarm != NULL:
            status = alarm_wait(s.alarm, at, min(at + LOST_AFTER, deadline))
            outb(0, s.port + IMR)
            if status < 0:
                return status


# --- sending -------------------------------------------------------------------------------------------------------

cdef int room(void *me, uint32_t most) noexcept nogil:
    cdef Ne2kState *s = <Ne2kState *> me
    return 0 if inb(s.port + CR) & CR_TXP else <int> s.slots


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    return (<Ne2kState *> me).built + <size_t> k * SLOT


cdef int send(void *me, uint32_t count, uint32_t size) noexcept nogil:
    """One frame after the other: the card's memory has room for one to send."""
    cdef Ne2kState *s = <Ne2kState *> me
    cdef int64_t since
    cdef uint32_t k, wire = max(size, <uint32_t> SHORTEST_SENT)
    cdef char *frame
    for k in range(count):
        since = 0
        while inb(s.port + CR) & CR_TXP:
            if since == 0:
                since = now()
            elif now() - since > SENDING_LIMIT:
                return -ETIMEDOUT
        frame = s.built + <size_t> k * SLOT
        if size < wire:
            memset(frame + size, 0, wire - size)
        put(s, SEND_PAGE << 8, frame, wire)
        outb(SEND_PAGE, s.port + TPSR)
        outb(<uint8_t> (wire & 0xFF), s.port + TBCR0)
        outb(<uint8_t> (wire >> 8), s.port + TBCR1)
        outb(CR_STA | CR_IDLE | CR_TXP, s.port + CR)
    return 0


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class Ne2kLink(FrameLink):
    """An NE2000 behind its ports, a word at a time.

    Ports belong to the thread that made this object (ioperm(2)): receive and send there.

    :param device: closed with this object
    :param port: the first of its I/O ports
    :param width: bytes of a port access: 1, 2 or 4
    :param interrupt: wait by it; None: look
    :param slots: frames that can be held, a power of two up to 256
    :raises MachineError: if the ports cannot be had, or no NE2000 answers at them
    :raises ValueError: if `width` or `slots` is not such a number
    """

    def __init__(self, device, unsigned short port, *, uint32_t width=2, Interrupt interrupt=None, uint32_t slots=64):
        cdef Ne2kState *s = &self.state
        if width not in (1, 2, 4) or slots < 1 or slots > 256 or slots & (slots - 1):
            raise ValueError("width is 1, 2 or 4, and slots a power of two up to 256")
        self.device = device
        self.interrupt = interrupt
        if ioperm(port, PORTS, 1) < 0:
            raise MachineError(
                f"cannot have the ports {port:#x} to {port + PORTS - 1:#x}: {os.strerror(errno)}",
                remedy="run as root, on x86; a locked-down kernel refuses",
            )
        self.memory = PinnedBuffer(2 * slots * SLOT)
        self.memory.users += 1
        free(self.refused)
        self.refused = <uint8_t *> calloc(slots, 1)
        if self.refused == NULL:
            raise MemoryError
        s.port = port
        s.width = width
        s.data_control = DCR_FT1 | DCR_LS | (DCR_WTS if width > 1 else 0)
        s.alarm = NULL if interrupt is None else &interrupt.alarm
        s.received = self.memory.base
        s.built = self.memory.base + <size_t> slots * SLOT
        s.slots = slots
        s.fresh = s.oldest = 0
        s.refused = self.refused
        try:
            self.start()
        except BaseException:
            ioperm(port, PORTS, 0)
            s.port = 0
            raise
        self.frames = min(slots, <uint32_t> FRAMES_HELD)
        self.largest = 1514
        self.table = Link(s, take, refuse, give, wait, room, buffer, send)

    def __dealloc__(self):
        free(self.refused)

    def start(self):
        """Reset and bring-up in the order that the DP8390's datasheet gives (Initialization Procedure).

        Sets `mac` to the address in the card's PROM. Multicast is not received; broadcasts are, for ARP.

        :raises MachineError: if no card answers the reset within 0.1 s
        """
        cdef Ne2kState *s = &self.state
        cdef uint8_t[32] prom
        cdef int i
        outb(inb(s.port + RESET), s.port + RESET)
        deadline = time.monotonic() + 0.1
        while not inb(s.port + ISR) & ISR_RST:
            if time.monotonic() > deadline:
                raise MachineError(f"no NE2000 answers at port {s.port:#x}")
        outb(0xFF, s.port + ISR)
        outb(CR_STP | CR_IDLE, s.port + CR)                  # 1
        outb(s.data_control, s.port + DCR)                   # 2
        outb(0, s.port + RBCR0)                              # 3
        outb(0, s.port + RBCR1)
        outb(RCR_MON, s.port + RCR)                          # 4: receive nothing yet
        outb(TCR_LOOPBACK, s.port + TCR)                     # 5
        outb(0, s.port + IMR)
        # the station's address is in the card's PROM, each byte twice
        fetch(s, 0, <char *> prom, 32)
        address = bytes(prom[2 * i] for i in range(6))
        self.mac = address.hex(":")
        outb(FIRST_PAGE, s.port + PSTART)                    # 6
        outb(LAST_PAGE, s.port + PSTOP)
        outb(LAST_PAGE - 1, s.port + BNRY)
        outb(0xFF, s.port + ISR)                             # 7
        outb(CR_STP | CR_IDLE | CR_PAGE1, s.port + CR)       # 9
        for i in range(6):
            outb(address[i], s.port + PAR0 + i)
        for i in range(8):
            outb(0, s.port + MAR0 + i)
        s.page = FIRST_PAGE
        outb(FIRST_PAGE, s.port + CURR)
        outb(CR_STA | CR_IDLE, s.port + CR)                  # 10
        outb(0, s.port + TCR)                                # 11
        outb(RCR_AB, s.port + RCR)

    def statistics(self) -> dict:
        """Frames received, bytes that the CPU carried both ways, with how many accesses of the data port; losses.

        :return: a dict of whole numbers since `start`. `out_of_step`: frames whose header on the card made no sense;
            `overflows`: times that the card's ring was full; `interrupts`: if it has one that can be waited for
        """
        cdef Ne2kState *s = &self.state
        return {
            "frames": s.frames, "bytes_carried": s.bytes, "port_accesses": s.accesses, "out_of_step": s.damaged,
            "overflows": s.overflows, "cpu_copied_bytes": s.received_bytes,
            "cpu_sent_bytes": s.bytes - s.received_bytes,
            **({} if self.interrupt is None else {"interrupts": self.interrupt.fired}),
        }

    def close(self):
        """Stop the card and give it back; harmless when called twice.

        Frames in the card's own memory are lost. The right to its ports (ioperm(2)) goes with it.
        """
        FrameLink.close(self)
        if self.state.port:
            outb(0, self.state.port + IMR)
            outb(CR_STP | CR_IDLE, self.state.port + CR)
            ioperm(self.state.port, PORTS, 0)
            self.state.port = 0
            self.memory.users -= 1
            if not self.memory.exports:
                self.memory.close()
            self.device.close()
