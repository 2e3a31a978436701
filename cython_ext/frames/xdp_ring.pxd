"""AF_XDP, as a link: the kernel's driver, or the NIC itself, writes frames into our memory, before the stack sees them.

The UMEM is a PinnedBuffer of chunks. Four rings say whose a chunk is: fill (ours to the kernel, to be received into),
receive, transmit, completion (sent). In copy mode the kernel copies each frame from its own buffer into the chunk; in
zero-copy mode, where the driver has it, the NIC writes there.
"""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.frames.link cimport FrameLink


cdef struct Ring32:
    uint32_t *producer
    uint32_t *consumer
    uint32_t *flags
    char *entries
    uint32_t mask


cdef struct XdpState:
    int fd
    bint poll
    char *umem
    Ring32 fill
    Ring32 received
    Ring32 transmit
    Ring32 completed
    uint32_t chunk            # bytes, a power of two
    uint32_t fresh            # entry of `received` that is taken next (free-running)
    uint32_t oldest           # the oldest that is not given back
    unsigned char *refused    # of each entry of `received`
    uint64_t *spare           # chunks to build frames in: a queue of `slots`, a power of two
    uint32_t slots
    uint64_t bytes            # of frames received
    uint32_t next             # the spare one that is filled next (free-running)
    uint32_t free             # one past the last spare one (free-running)


cdef class XdpRing(FrameLink):
    cdef XdpState state
    cdef readonly PinnedBuffer umem
    cdef readonly bint zero_copy
    cdef readonly str why_copy    # what the kernel said to zero-copy; empty where it was had, or not asked for
    cdef readonly str mode        # driver or skb: where the program runs
    cdef object sock
    cdef list maps                # mmaps
    cdef list views
    cdef list descriptors         # of map, program and link
    cdef bytearray refused
    cdef uint64_t *spare

    cdef object ring(self, Ring32 *ring, object offsets, uint32_t entries, size_t width, unsigned long long page)
