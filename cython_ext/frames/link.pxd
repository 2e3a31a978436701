"""A link: whole Ethernet frames in and out, whoever carries them.

The rings of a NIC that hwrx drives, the kernel's packet ring and AF_XDP, an NE2000's port: each offers the table `Link`
over a state of its own. `datagram.pyx` does on top of it what a socket does, and is the same for all of them.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport timespec

from cython_ext.core.clock cimport now
from cython_ext.frames.landing cimport Landing
from cython_ext.headers.sys_poll cimport POLLIN, pollfd, ppoll


cdef struct Frame:
    char *data         # where it was delivered: in the link's own memory, valid until it is given back
    uint32_t size      # bytes, without the CRC
    uint32_t slot      # the link's own number for it
    uint32_t flags     # the link's own; an 82574's: status 7:0, errors 15:8, VLAN tag 31:16


cdef struct Link:
    void *me
    # Up to `most` frames that have come, oldest first. Never waits. Or -errno.
    int (*take)(void *me, Frame *out, uint32_t most) noexcept nogil
    # A frame that was just taken is not wanted: it goes back with its neighbours, and `give` does not count it.
    void (*refuse)(void *me, const Frame *frame) noexcept nogil
    # Give the `count` oldest frames taken back. 0 or -errno.
    int (*give)(void *me, uint32_t count) noexcept nogil
    # Until a frame is there: 1; until CLOCK_MONOTONIC reaches `deadline`: 0; or -errno.
    int (*wait)(void *me, int64_t deadline) noexcept nogil
    # How many frames can be sent now; more than `most` are not looked for. Never waits. Or -errno.
    int (*room)(void *me, uint32_t most) noexcept nogil
    # Where the k-th frame after the last sent one is to be built. k < room.
    char *(*buffer)(void *me, uint32_t k) noexcept nogil
    # Send the next `count` frames, of `size` bytes each. 0 or -errno.
    int (*send)(void *me, uint32_t count, uint32_t size) noexcept nogil


cdef extern from *:
    """
    #include <stdint.h>
    /* Of frames that have the same headers but for the PSN: what follows the payload, and the PSN's word as it goes. */
    #ifndef HWRX_PIECE
    #define HWRX_PIECE
    typedef struct { const char *payload; uint64_t end; uint32_t psn; } hwrx_piece;
    #endif
    """
    ctypedef struct Piece "hwrx_piece":
        const char *payload
        uint64_t end
        uint32_t psn


cdef struct SharedHeaders:
    # What frames have in common that differ in their PSN, their payload and what follows it
    char[64] headers        # with a PSN of 0 in the word that ends them
    uint64_t version        # a number of `Gather.versions`; 0: there are none
    uint32_t head           # bytes of them that go out
    uint32_t tail           # bytes of what follows the payload


cdef struct Gather:
    # Of a link whose device fetches payloads from where they are; `append` is NULL if it cannot. Beside `Link.room`,
    # which counts frames, and `Link.buffer(0)`, in which the next frame's headers are built. Frames may differ in size.
    void *me
    # The frame is whole: `head` bytes that were built, `size` bytes of payload, the lowest `tail` bytes of
    # `end`, at most 8. 1: the device will fetch the payload, which stays as it is until the other end has it; 0: it was
    # copied; or -errno.
    int (*append)(void *me, uint32_t head, const char *payload, uint32_t size, uint64_t end,
                  uint32_t tail) noexcept nogil
    # Frames with shared headers and payloads of one size, not empty. How many were appended: the next one `append` has
    # to do, which also knows memory that the device does not reach. No more are asked for than there is room for.
    uint32_t (*append_all)(void *me, const SharedHeaders *shared, const Piece *pieces, uint32_t count,
                           uint32_t size) noexcept nogil
    # One such frame, with payload or without: a Piece by its parts. False: nothing was done, as no room is known
    # without a look, or it is for `append`.
    bint (*append_one)(void *me, const SharedHeaders *shared, const char *payload, uint32_t size, uint32_t psn,
                       uint64_t end) noexcept nogil
    # Hand over what was appended. 0 or -errno.
    int (*flush)(void *me) noexcept nogil
    uint64_t *versions      # of shared headers that were given out so far


# Sleep until the kernel's ring behind fd has something: 1, also where a signal came; at the deadline 0; or -errno
cdef inline int sleep_until(int fd, int64_t deadline) noexcept nogil:
    cdef pollfd watched
    cdef timespec pause
    cdef int64_t left = deadline - now()
    if left <= 0:
        return 0
    watched.fd = fd
    watched.events = POLLIN
    pause.tv_sec = left // 1_000_000_000
    pause.tv_nsec = left % 1_000_000_000
    return -errno if ppoll(&watched, 1, &pause, NULL) < 0 and errno != EINTR else 1


cdef class FrameLink:
    cdef Link table
    cdef Gather gather
    cdef Landing *landing           # where messages are foretold to land; NULL: nowhere
    cdef readonly str mac           # frames to this address arrive
    cdef readonly uint32_t frames   # that can wait to be taken
    cdef readonly uint32_t largest  # bytes of a frame
    # Somebody has vouched for the checksum of UDP where flags & checksum_mask == checksum_good
    cdef readonly uint32_t checksum_mask
    cdef readonly uint32_t checksum_good

    cdef int close_table(self) except -1
