"""An io_uring of one thread's own, with one socket: its two rings, the requests to send, and how it is waited on.

What is asked for is written into the submission ring and costs nothing until `enter_ring` hands all of it over in one
system call, which may wait for completions as well. The ring is made with IORING_SETUP_DEFER_TASKRUN: what completes
later than its submission is finished in the waiting thread's own calls, never behind its back (io_uring_setup(2)).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from cython_ext.core.lengths cimport Lengths
from cython_ext.headers.linux_io_uring cimport (
    IORING_SQ_CQ_OVERFLOW,
    IORING_SQ_TASKRUN,
    io_uring_buf_ring,
    io_uring_cqe,
    io_uring_sqe,
)

cdef extern from *:
    """
    #ifndef HWRX_URING_WORDS
    #define HWRX_URING_WORDS
    static inline uint32_t hwrx_uring_load(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void hwrx_uring_store(uint32_t *word, uint32_t value)
    { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    static inline void hwrx_uring_store_half(uint16_t *word, uint16_t value)
    { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    #endif
    """
    uint32_t load_word "hwrx_uring_load"(const uint32_t *word) noexcept nogil
    void store_word "hwrx_uring_store"(uint32_t *word, uint32_t value) noexcept nogil
    void store_half "hwrx_uring_store_half"(uint16_t *word, uint16_t value) noexcept nogil

cdef enum:
    RECEIVE = 1               # user_data of requests to receive;
    SEND = 2                  # of those to send: this, above the first slot and the number of slots
    MOST_SENDS = 256          # slots to build messages in


cdef struct Ring:
    int fd                    # -1: not made, or closed
    bint enabled              # the loop's thread has made it its own
    bint spins                # waiting is looking, over and over
    uint32_t pending          # requests that are written and not submitted
    uint32_t tail             # of the submission ring: ours
    uint32_t *sq_tail
    uint32_t *sq_flags
    uint32_t sq_mask
    io_uring_sqe *requests
    uint32_t head             # of the completion ring: ours
    uint32_t *cq_head
    uint32_t *cq_tail
    uint32_t cq_mask
    io_uring_cqe *completions
    char *mapped              # both rings
    size_t mapped_length
    size_t requests_length
    # multishot receive: the ring of buffers that it fills
    io_uring_buf_ring *buffers
    uint32_t buffer_mask
    uint16_t buffer_tail
    size_t buffers_length


cdef struct Sends:
    char *base                # first slot
    size_t stride             # from slot to slot
    uint32_t size             # bytes of a message, or of the longest
    const Lengths *lengths    # of each message
    bint varies               # they differ
    uint32_t slots
    uint32_t next             # slot that the next message is built in
    uint32_t open             # requests without a result yet
    uint32_t unsent           # of these, not even submitted
    uint32_t held             # requests whose memory the kernel still reads: their notification is owed
    uint8_t[MOST_SENDS] busy  # by slot: requests that are open or held
    uint32_t[MOST_SENDS] took  # by first slot: bytes that the request sent without copying
    # SEND_ZC
    bint zerocopy
    uint16_t how              # ioprio of such a request
    uint64_t asked            # bytes that were sent so
    uint64_t copied           # of these, bytes that the kernel says it copied after all


cdef inline io_uring_cqe *completion(Ring *r) noexcept nogil:
    """The oldest completion that has not been looked at, or NULL."""
    # The acquire pairs with the release of io_commit_cqring: no entry is read before the tail that covers it.
    if r.head == load_word(r.cq_tail):
        return NULL
    return &r.completions[r.head & r.cq_mask]


cdef inline void looked_at(Ring *r) noexcept nogil:
    """The completion has been read: its place is the kernel's again."""
    r.head += 1
    store_word(r.cq_head, r.head)


cdef inline bint wants_entry(const Ring *r) noexcept nogil:
    """Whether something waits to be finished by a call of ours: deferred work, or completions that found no place."""
    return (load_word(r.sq_flags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0


cdef inline uint32_t free_slots(Sends *s, uint32_t most) noexcept nogil:
    """Slots that are free one behind the other, without going around, from the one that is next."""
    cdef uint32_t count = 0
    # With nothing on its way the slots are used from the first on: whole batches fit, and the cache is warm.
    if s.open == 0 and s.held == 0 or s.next == s.slots:
        s.next = 0
    while count < most and s.next + count < s.slots and s.busy[s.next + count] == 0:
        count += 1
    return count


cdef int open_ring(Ring *r, uint32_t requests, uint32_t completions, int fd, bint spins) except -1
cdef int lend_buffers(Ring *r, char *base, size_t stride, uint32_t count) except -1
cdef int register_memory(Ring *r, char *base, size_t length) except -1
cdef void close_ring(Ring *r) noexcept
cdef int enter_ring(Ring *r, uint32_t least, int64_t timeout_ns) noexcept nogil
cdef int look_at_ring(Ring *r) noexcept nogil
cdef int wait_ring(Ring *r, uint32_t least, int64_t timeout_ns) noexcept nogil
cdef io_uring_sqe *next_request(Ring *r) noexcept nogil
cdef void lend(Ring *r, char *at, uint32_t length, uint16_t number) noexcept nogil
cdef uint32_t piece_of(const Sends *s, uint32_t first, uint32_t count) noexcept nogil
cdef int request_send(Ring *r, Sends *s, uint32_t first, uint32_t count, uint32_t skip) noexcept nogil
cdef int sent(Sends *s, const io_uring_cqe *done, uint32_t *first, uint32_t *count) noexcept nogil
cdef dict sent_counts(const Sends *s)
cdef str send_without_copying(Sends *s, Ring *r, char *base, size_t length)
