"""What an endpoint of whole frames sees of a message before it has it: for timelines and the copy ledger."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef struct Stamps:
    # CLOCK_MONOTONIC nanoseconds by message, from sequence number `first` on; 0: did not come
    int64_t *seen
    int64_t *parsed
    int64_t *looked_up
    int64_t *verified          # of RoCE: the ICRC was computed
    uint64_t first
    uint64_t count
    const char *low            # memory that the device writes to by itself, up to `high`
    const char *high
    # payload bytes of all messages, warm-up included
    uint64_t delivered_bytes
    uint64_t in_place_bytes    # those that stand where the device wrote them
    uint64_t checked_bytes     # those that the CPU read to verify a checksum, UDP's or the ICRC
    uint64_t summed_bytes      # those that it read to compute it, of what was sent
    uint64_t sent_bytes


cdef inline uint32_t written_by_device(const Stamps *s, const char *data, uint32_t size) noexcept nogil:
    """As many bytes as the message has, if it stands in the device's memory; else 0."""
    return size if s.low <= data < s.high else 0


# A frame of ours: when it was seen, parsed, looked up and (RoCE) verified, and how many of its bytes stand where the
# device wrote them. What is no whole message of the trial is left out.
cdef void keep(Stamps *s, const char *data, uint32_t size, uint32_t trial, bint checked, uint32_t in_place,
               int64_t seen, int64_t parsed, int64_t looked_up, int64_t verified=*) noexcept nogil


cdef class StageStamps:
    cdef Stamps state
    cdef readonly object seen
    cdef readonly object parsed
    cdef readonly object looked_up
    cdef readonly object verified
