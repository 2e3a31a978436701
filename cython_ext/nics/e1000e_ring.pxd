"""The 82574's descriptor rings: what the NIC and the driver share in memory, and who owns which part of it.

Section numbers are those of the Intel 82574 GbE Controller Family Datasheet (317694); the layout of descriptors stands
in descriptor_ring.pxd.

A receive ring of `count` descriptors, each with its own buffer for ever, is divided by two free-running counters:

    oldest ......... fresh ......... oldest + count - 1
       held by us      the NIC's        the gap

The NIC owns [RDH, RDT). `receive` hands out the buffers of done descriptors where they are (fresh moves up), `release`
gives the oldest back (oldest moves up, and RDT to one before it). RDH = RDT would mean an empty ring, so one
descriptor, the gap, is always left over (7.1.8). The transmit ring (e1000e_tx.pxd) is the mirror
image: [oldest, next) is the NIC's.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cython_ext.frames.link cimport Frame
from cython_ext.nics.descriptor_ring cimport RXD_STAT_DD, RXD_STATUS_SHIFT, Ring, RxDescriptor
from cython_ext.nics.interrupt cimport Alarm, Interrupt
from cython_ext.nics.mmio cimport Bar, dma_read64


cdef struct RxTally:
    uint64_t frames
    uint64_t bytes
    uint64_t damaged       # an error bit of RXD_ERR_FRAME
    uint64_t oversize      # went over more than one buffer
    uint64_t runt          # no Ethernet header's worth
    uint64_t unwritten     # DD over a buffer that the NIC did not write (only with `guard`)


cdef struct Rx:
    RxDescriptor *descriptors
    char *bar
    char *buffers           # buffer i at buffers + i * stride
    const uint64_t *iova    # where the NIC sees buffer i
    uint8_t *skipped        # descriptor i was not handed out, and goes back together with its neighbours
    uint32_t refused        # how many of those there are
    uint32_t mask           # count - 1; count is a power of two
    uint32_t stride         # bytes of a buffer: 2 to the `shift`
    uint32_t shift
    uint32_t fresh
    uint32_t oldest
    bint splitting          # in the middle of a frame that is longer than a buffer
    bint guard
    Alarm *alarm            # NULL: poll
    uint32_t causes         # that interrupt's, in IMS
    bint by_cause           # not MSI-X, where what fires is masked by itself: we mask the causes
    uint64_t spurious       # interrupts that brought nothing
    uint64_t lost           # frames that no interrupt told of
    uint32_t plain          # frames of SHORTEST to SHORTEST + plain - 1 bytes need no look; 0: examine each
    RxTally tally


cdef uint32_t rx_receive(Rx *rx, Frame *out, uint32_t most) noexcept nogil
cdef void rx_release(Rx *rx, uint32_t count) noexcept nogil
cdef int rx_wait(Rx *rx, int64_t deadline) noexcept nogil


cdef inline bint rx_ready(const Rx *rx) noexcept nogil:
    """Whether the next descriptor is done."""
    return dma_read64(&rx.descriptors[rx.fresh & rx.mask].report) >> RXD_STATUS_SHIFT & RXD_STAT_DD


cdef inline void rx_refuse(Rx *rx, const Frame *frame) noexcept nogil:
    """A frame just handed out is not wanted: `rx_release` gives it back with its neighbours and does not count it."""
    rx.refused += not rx.skipped[frame.slot]
    rx.skipped[frame.slot] = 1


cdef class RxRing(Ring):
    cdef Rx rx
    cdef uint8_t *skipped
    cdef Frame *frames              # room for one batch
    cdef list views                 # each buffer as a NumPy array
    cdef readonly Interrupt interrupt

    cdef list prepare_views(self)


cdef class Packet:
    cdef readonly RxRing ring
    cdef object view
    cdef readonly uint32_t size
    cdef readonly uint32_t number   # free-running number of its descriptor
    cdef readonly uint8_t status
    cdef readonly uint8_t errors
