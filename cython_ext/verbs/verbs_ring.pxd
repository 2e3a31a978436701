"""The state of a verbs transport, which its C functions work on, and those that all of them have in common."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.beat cimport Beat
from cython_ext.core.lengths cimport Lengths
from cython_ext.core.transport cimport Delivery
from cython_ext.headers.infiniband_verbs cimport ibv_mr, ibv_pd, ibv_qp, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wc
from cython_ext.verbs.verbs_event cimport Watch
from cython_ext.verbs.verbs_wait cimport Side

cdef enum:
    BATCH = 256                     # completions taken by one look


# Registration of each message's buffer alone: see verbs_registering.
cdef struct Registering:
    ibv_pd *pd
    int access
    bint looks                      # completions of sends are nobody else's, so a look at them is ours to take
    ibv_mr **regions                # of each buffer, `window` of them; NULL while it is not registered
    uint64_t registered
    uint64_t deregistered
    int (*post)(void *me, uint32_t count) noexcept nogil    # the path's own, behind the registration
    int (*finish)(void *me) noexcept nogil


cdef struct State:
    ibv_qp *qp
    Side sends
    Side receives
    Beat beat                       # interrupts the thread that waits for an event
    Watch watch                     # of the device's asynchronous events
    bint yields                     # WRITE: offer the CPU to others between looks at memory
    bint goes_on                    # WRITE: a receiver that was overtaken takes what still stands
    uint64_t overtaken              # messages that it passed over
    int64_t limit_ns
    int64_t patience_ns             # UD: without anything before a message is taken for lost
    uint32_t trial
    uint64_t total                  # messages to be posted: the last one is signalled

    # Sending: a ring of `window` buffers, each with its work request; they are linked in a circle.
    char *out
    uint32_t size                   # bytes of a message, or of the longest
    const Lengths *lengths          # of each
    int (*post_one_size)(void *me, uint32_t count) noexcept nogil  # what `post_varying` goes on with
    uint32_t stride
    uint32_t window
    uint32_t flags                  # IBV_SEND_INLINE or 0
    uint32_t signal_every
    uint32_t since_signal
    uint32_t slot                   # of the next message
    uint64_t posted
    uint64_t signalled              # messages up to the last one whose completion will be reported
    uint64_t completed
    uint32_t asides                 # work requests under way that are no messages (UD: credits, the end)
    ibv_send_wr *send_wr
    ibv_sge *send_sge

    # The other end's memory, where WRITE and READ go.
    uint64_t remote
    uint32_t remote_slots
    uint32_t remote_stride
    uint32_t remote_slot

    # Receiving: a ring of `slots` buffers, a message at `head` bytes into each.
    char *landing
    uint32_t slots
    uint32_t landing_stride
    uint32_t head
    uint32_t take_slot              # of the next message
    uint32_t free_slot              # of the oldest message not given back
    uint64_t taken
    uint64_t checks                 # WRITE: of these, messages that were only to be checked
    uint64_t released               # WRITE, of messages that differ in size: of these, those that were given back
    uint32_t check_every            # ping-pong: a check stands before each so many-th message; 0: none
    bint checked                    # WRITE: the last one was
    ibv_recv_wr *recv_wr
    ibv_sge *recv_sge

    bint swaps                      # atomics: compare and swap, not fetch and add
    uint64_t counter                # and what the counter said at the end

    Registering *registering        # NULL: the rings were registered once
    ibv_wc failed                   # the completion with error that tells most
    bint has_failed
    ibv_wc[BATCH] wc


# The parts of `Ops` that transports have in common; `me` is a State.
cdef char *ring_outgoing(void *me, uint32_t k) noexcept nogil
cdef int ring_room(void *me) noexcept nogil
cdef int ring_finish(void *me) noexcept nogil
cdef int queue_receive(void *me, Delivery *out, uint32_t most) noexcept nogil
cdef int queue_receive_until(void *me, Delivery *out, uint32_t most, int64_t deadline) noexcept nogil
cdef int queue_release(void *me, uint32_t count) noexcept nogil
cdef int post_varying(void *me, uint32_t count) noexcept nogil
# And their pieces.
cdef void measure(State *st, uint32_t count) noexcept nogil
cdef int submit(State *st, uint32_t count) noexcept nogil
cdef int reap(State *st) noexcept nogil
cdef int fail(State *st, const ibv_wc *wc) noexcept nogil
cdef int look_for_errors(State *st) noexcept nogil
