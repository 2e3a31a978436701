"""The kernel's packet ring (AF_PACKET, TPACKET_V3), as a link.

The kernel's driver receives, and its stack copies each frame into a block of the ring, which is ours when the block is
full or its timer has run out. What is sent is not copied: tpacket_fill_skb hangs the slot's pages into the skb.
"""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.frames.link cimport FrameLink
from cython_ext.headers.linux_if_packet cimport tpacket3_hdr


cdef struct PacketRingState:
    int fd
    bint poll                 # look instead of sleeping
    char *blocks              # block i at blocks + i * block_size
    uint32_t *left            # of each block: frames handed out or to come, not given back
    uint32_t block_size
    uint32_t count            # blocks
    uint32_t reading          # block that frames are taken from (free-running)
    uint32_t oldest           # block that is given back next (free-running)
    uint32_t unread           # frames of the block being read that were not taken
    tpacket3_hdr *next        # the first of them
    char *slots               # of the transmit ring
    uint32_t slot_size
    uint32_t slot_count
    uint32_t slot_offset      # where the frame begins in its slot
    uint32_t slot             # to be filled next
    uint64_t copied           # bytes of frames: tpacket_rcv copied each into its block
    uint64_t rejected         # frames that the kernel would not send


cdef class PacketRing(FrameLink):
    cdef PacketRingState state
    cdef object sock
    cdef object memory        # the mmap
    cdef object view
    cdef uint32_t *left
    cdef dict totals
