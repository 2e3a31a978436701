"""The rings of an 82574 as a link for messages: frames gathered from where their payload is, and received into place.

Beside RingLink, whose frames are built in the ring's buffers and arrive in them. Here a frame that is sent has several
descriptors (headers, payload, padding and ICRC), so the ring is counted in descriptors: [oldest, tx.next) is the NIC's,
[tx.next, filled) is appended and not handed over. And a buffer is given to a descriptor when it is armed, not for ever.
"""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.frames.landing cimport Landing
from cython_ext.nics.e1000e_link cimport RingLink
from cython_ext.nics.e1000e_ring cimport Rx
from cython_ext.nics.e1000e_tx cimport Tx

cdef enum:
    REACHES = 8             # pieces of memory that are sent from
    PIECES = 4              # descriptors of a gathered frame, at most: the payload may be in two pages
    RING_MOST = 4096        # descriptors of a ring


cdef struct Reach:
    const char *base
    uint64_t size           # bytes
    uint64_t iova           # all of it is one piece for the device


cdef struct MessageState:
    Rx *rx
    Tx *tx
    uint32_t filled         # free-running: behind the last descriptor that is appended
    # Free-running: frames that are appended, those that are handed over, and the oldest that the NIC may still have. A
    # frame's headers stand in the buffer of its number, whatever its descriptors are.
    uint32_t frames
    uint32_t handed
    uint32_t oldest_frame
    # Of a frame: how many descriptors it has, in the lowest 8 bits; above, the version of its buffer's headers, or 0.
    uint64_t[4096] marks
    uint64_t versions
    Reach[8] reaches
    uint32_t known          # of them
    uint32_t last           # the one that was found last
    Landing landing
    char *where[4096]       # of each receive descriptor: where we see the buffer that it was armed with
    uint32_t armed          # free-running: behind the last descriptor that the NIC was given
    uint64_t gathered       # bytes that the NIC fetches where they are
    uint64_t carried        # bytes that we copied into the ring, as the NIC does not reach them


cdef class MessageLink(RingLink):
    cdef MessageState messages
    cdef object region      # the InterleavedRegion, where messages land
    cdef bytearray armed_pages
