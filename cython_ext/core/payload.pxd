"""The one payload: the same bytes cross every path.

    offset  bytes  field     present when size is at least
    0       4      magic     8
    4       8      sequence  12 (in 8 to 11 bytes only its low 32 bits)
    12      4      trial     16
    16      8      send_ns   32
    24      7      seal      32
    24      -      pattern   33 (behind the seal; from offset 16 if 17 <= size < 32; from 8 in 9 to 11 bytes, from 12 in
                             13 to 15)
    last    1      trailer   17

All little-endian. The trailer depends on the sequence number and stands in every message, so that a reader who polls
memory (RDMA WRITE) sees the last byte arrive. Pattern and seal stand only in messages that will be checked in full. The
seal depends on the send time, which the receiver cannot know: it is what makes a damaged one show.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    MAGIC = 0x78727768        # "hwrx"
    MAGIC_FINISH = 0x46727768  # "hwrF": the sender has nothing more (paths that can lose)
    MAGIC_CREDIT = 0x43727768  # "hwrC": the receiver has taken so many (datagram streams)
    MAGIC_CHECK = 0x4B727768   # "hwrK": a message between two timed ones, to be checked in full (ping-pong)
    SMALLEST = 8
    AT_SEQUENCE = 4
    AT_TRIAL = 12
    AT_SEND_NS = 16
    AT_PATTERN = 24
    SEAL = 7                  # bytes

cdef enum:
    GOOD = 0
    BAD_MAGIC = 1
    OTHER_TRIAL = 2
    BAD_TRAILER = 3
    BAD_PATTERN = 4


cdef inline uint8_t trailer(uint64_t sequence) noexcept nogil:
    # never 0, so that a zeroed buffer holds no finished message
    return <uint8_t> (1 + sequence % 255)


cdef inline void stamp(char *message, uint32_t size, uint64_t sequence, uint32_t trial, int64_t send_ns) noexcept nogil:
    """Write header and trailer. The pattern, if any, must be there already (`fill`)."""
    cdef uint32_t magic = MAGIC
    memcpy(message, &magic, 4)
    if size >= 12:
        memcpy(message + AT_SEQUENCE, &sequence, 8)
    else:
        memcpy(message + AT_SEQUENCE, &sequence, 4)
    if size >= 16:
        memcpy(message + AT_TRIAL, &trial, 4)
    if size >= 32:
        memcpy(message + AT_SEND_NS, &send_ns, 8)
    if size >= 17:
        message[size - 1] = <char> trailer(sequence)


cdef inline void stamp_send_time(char *message, uint32_t size, int64_t send_ns) noexcept nogil:
    """Of a message that is stamped already, only the send time: all that is left to do once the clock is read."""
    if size >= 32:
        memcpy(message + AT_SEND_NS, &send_ns, 8)


cdef inline uint32_t magic_of(const char *message) noexcept nogil:
    cdef uint32_t magic
    memcpy(&magic, message, 4)
    return magic


cdef inline uint64_t sequence_of(const char *message, uint32_t size) noexcept nogil:
    cdef uint64_t sequence = 0
    memcpy(&sequence, message + AT_SEQUENCE, 8 if size >= 12 else 4)
    return sequence


cdef inline uint32_t trial_of(const char *message) noexcept nogil:
    """Only where size is at least 16."""
    cdef uint32_t trial
    memcpy(&trial, message + AT_TRIAL, 4)
    return trial


cdef inline int glance_as(uint32_t magic, const char *message, uint32_t size, uint32_t trial) noexcept nogil:
    if magic_of(message) != magic:
        return BAD_MAGIC
    if size >= 16 and trial_of(message) != trial:
        return OTHER_TRIAL
    if size >= 17 and <uint8_t> message[size - 1] != trailer(sequence_of(message, size)):
        return BAD_TRAILER
    return GOOD


cdef inline int glance(const char *message, uint32_t size, uint32_t trial) noexcept nogil:
    """Header and trailer only: GOOD, BAD_MAGIC, OTHER_TRIAL or BAD_TRAILER. What every message gets, checked or not."""
    return glance_as(MAGIC, message, size, trial)


cdef void fill(char *message, uint32_t size, uint64_t sequence) noexcept nogil
cdef void seal(char *message, uint32_t size, uint64_t sequence) noexcept nogil
cdef void build_check(char *message, uint32_t size, uint64_t sequence, uint32_t trial, int64_t send_ns) noexcept nogil
cdef void build_source(char *message, uint32_t size, uint64_t sequence, uint32_t trial) noexcept nogil
cdef int verify(uint32_t magic, const char *message, uint32_t size, uint32_t trial) noexcept nogil
