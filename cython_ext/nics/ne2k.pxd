"""An NE2000 as a link: the old way, in which the CPU carries every word between the card's memory and ours.

The card (National Semiconductor DP8390 and 32 KiB of memory; QEMU's ne2k_pci) keeps received frames in a ring of
256-byte pages of its own. "Remote DMA" is its name for showing that memory, address by address, at one I/O port.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.frames.link cimport FrameLink
from cython_ext.nics.interrupt cimport Alarm, Interrupt

cdef extern from *:
    """
    /* glibc's ins and outs do not tell the compiler that they read and write memory */
    #define hwrx_memory_changed() __asm__ volatile("" ::: "memory")
    """
    void memory_changed "hwrx_memory_changed"() noexcept nogil

cdef enum:
    # registers, as offsets of the first port (DP8390 datasheet, 10.0 Internal Registers); some read as another
    CR = 0x00
    PSTART = 0x01     # page 0, written
    PSTOP = 0x02
    BNRY = 0x03
    TPSR = 0x04
    TBCR0 = 0x05
    TBCR1 = 0x06
    ISR = 0x07
    RSAR0 = 0x08
    RSAR1 = 0x09
    RBCR0 = 0x0A
    RBCR1 = 0x0B
    RCR = 0x0C
    TCR = 0x0D
    CNTR0 = 0x0D      # read: frame alignment errors; the two behind it CRC errors and missed packets
    DCR = 0x0E
    IMR = 0x0F
    PAR0 = 0x01       # page 1: the station's address
    CURR = 0x07
    MAR0 = 0x08
    # beyond the DP8390, on the card
    DATA = 0x10
    RESET = 0x1F

    CR_STP = 0x01
    CR_STA = 0x02
    CR_TXP = 0x04
    CR_READ = 0x08    # remote read
    CR_WRITE = 0x10   # remote write
    CR_IDLE = 0x20    # no remote DMA
    CR_PAGE1 = 0x40
    ISR_PRX = 0x01
    ISR_RXE = 0x04
    ISR_OVW = 0x10
    ISR_RDC = 0x40
    ISR_RST = 0x80
    RCR_AB = 0x04     # broadcasts
    RCR_PRO = 0x10    # promiscuous
    RCR_MON = 0x20    # look, and keep nothing
    TCR_LOOPBACK = 0x02
    DCR_WTS = 0x01    # words, not bytes
    DCR_LS = 0x08     # no loopback
    DCR_FT1 = 0x40    # FIFO threshold: 8 bytes

    # the card's memory, in pages of 256 bytes: one frame to send, then the ring
    SEND_PAGE = 0x40
    FIRST_PAGE = 0x46
    LAST_PAGE = 0xC0
    SHORTEST_SENT = 60


cdef struct Ne2kState:
    unsigned short port
    uint32_t width          # bytes a port access: 1, 2 or 4
    uint8_t data_control
    Alarm *alarm            # NULL: poll
    char *received          # slot i at received + i * 2048
    char *built
    uint32_t slots          # of each, a power of two
    uint32_t fresh          # slot that is filled next (free-running)
    uint32_t oldest         # the oldest not given back
    uint8_t *refused
    uint8_t page            # of the card's ring: where the next frame begins
    uint64_t frames
    uint64_t received_bytes  # of frames
    uint64_t bytes          # carried by the CPU, both ways, with the ring's headers
    uint64_t accesses       # to the data port
    uint64_t damaged        # frames whose ring header cannot be
    uint64_t overflows


cdef class Ne2kLink(FrameLink):
    cdef Ne2kState state
    cdef object device
    cdef readonly Interrupt interrupt
    cdef readonly PinnedBuffer memory
    cdef uint8_t *refused
