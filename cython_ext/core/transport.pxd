"""What every path offers the loops: a table of C functions over a C state, and the class that owns both.

The loops (loop.pyx) know nothing of sockets, verbs or rings, and call a path only through `Ops`; that is what makes one
loop serve them all. A path's module defines `cdef struct SomeState`, the functions below over it, and a subclass of
`Transport` whose __init__ fills `self.ops` (with `me` pointing to the state inside the object).
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.lengths cimport Lengths

cdef enum:
    # What an operation may return besides a count and -errno.
    FINISHED = -9001      # the other end has said that nothing more comes (or closed the connection in order)
    WC_STATUS = -10000    # a completion with error: WC_STATUS - ibv_wc_status
    EVENT_STATUS = -11000  # an asynchronous event of the device: EVENT_STATUS - ibv_event_type


cdef struct Delivery:
    char *data        # the message where it was delivered: in the path's own buffer, valid until released
    uint32_t size     # bytes delivered; not the plan's size where the message was cut or grew


cdef struct Ops:
    void *me
    # The buffer in which the k-th message after the last posted one is to be built. k < room.
    char *(*outgoing)(void *me, uint32_t k) noexcept nogil
    # How many messages may be posted now. Waits for at least one, as long as the path's patience lasts: 0 then.
    int (*room)(void *me) noexcept nogil
    # Hand the next `count` built messages to the path, in one batch where it has batches. `count` or an error;
    # it takes all of them: `count` <= what `room` said.
    int (*post)(void *me, uint32_t count) noexcept nogil
    # Wait for messages as the path was told to wait, as long as its patience lasts: how many of `most` were delivered,
    # oldest first; 0 when patience ended; FINISHED; or an error.
    int (*receive)(void *me, Delivery *out, uint32_t most) noexcept nogil
    # The same, but until an exact CLOCK_MONOTONIC time; a time that has passed means one look without waiting.
    int (*receive_until)(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
    # Give the `count` oldest delivered buffers back to the path.
    int (*release)(void *me, uint32_t count) noexcept nogil
    # After the last post: wait until the path has no more use for our buffers, and where messages can get lost,
    # tell the other end that nothing more comes.
    int (*finish)(void *me) noexcept nogil
    # Where not 0: the k-th delivery carries the payload of sequence k % modulo (READ from buffers filled beforehand).
    uint64_t modulo
    # READ: this end alone posts and receives; the other end's memory is passive.
    bint pull
    # Messages may get lost on the way, so a missing one is counted and the loop goes on.
    bint lossy
    # When the receiving call returned that brought what `receive` has just handed out; NULL: a call brings no more than
    # that, so it was just now.
    const int64_t *brought_at
    # The receiver of a stream sees nothing until the end (WRITE without immediate): the sender stamps completions.
    bint blind


cdef class Transport:
    cdef Ops ops
    cdef readonly uint32_t size      # bytes of each message; of the longest where they differ
    cdef Lengths lengths             # of each; the paths' states point to it
    cdef object sizes                # the table that it points into, if they differ
    cdef readonly uint32_t window    # messages that may be outstanding
