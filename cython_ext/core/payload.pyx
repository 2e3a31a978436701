# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The pattern that fills a message, and the check of a whole message; the layout stands in payload.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from cython_ext.core.marker cimport mark_fill, mark_filled, mark_source, mark_verified, mark_verify


cdef inline uint64_t word(uint64_t sequence, uint64_t k) noexcept nogil:
    # one multiplication a word: cheap enough to fill 64 KiB, and no two sequence numbers share a word at one place
    cdef uint64_t x = (sequence + 1) * <uint64_t> 0x9E3779B97F4A7C15 + k * <uint64_t> 0xD1B54A32D192ED03
    return x ^ (x >> 29)


cdef inline uint64_t first_word(uint32_t size, uint64_t sequence) noexcept nogil:
    # below 12 bytes the receiver knows only the low half of the number
    cdef uint64_t w = word(sequence if size >= 12 else <uint32_t> sequence, 0)
    if size < 16:
        # of these no more than 3 bytes are used, and a multiplication carries nothing from high bits to low ones
        w ^= w >> 32
        w ^= w >> 16
        w ^= w >> 8
    return w


cdef inline uint32_t pattern_at(uint32_t size) noexcept nogil:
    """Where the pattern begins: behind the last field that a message of this size has; `size` or more if nowhere."""
    if size >= 32:
        return AT_PATTERN
    if size >= 16:
        return 16
    return AT_TRIAL if size >= 12 else 8


cdef inline uint32_t pattern_end(uint32_t size) noexcept nogil:
    return size - 1 if size >= 17 else size  # only the trailer stands behind it


cdef void fill(char *message, uint32_t size, uint64_t sequence) noexcept nogil:
    """Write the pattern of `sequence` between header and trailer; `stamp`, then `seal` write the rest."""
    cdef uint32_t at = pattern_at(size), end = pattern_end(size)
    cdef uint64_t k = 0, w = first_word(size, sequence)
    if at >= end:
        return
    while at + 8 <= end:
        memcpy(message + at, &w, 8)
        at += 8
        k += 1
        w = word(sequence, k)
    memcpy(message + at, &w, end - at)


cdef inline uint64_t seal_of(const char *message, uint64_t sequence) noexcept nogil:
    # any one bit of the send time changes the upper 7 bytes of the product
    cdef uint64_t send_ns
    memcpy(&send_ns, message + AT_SEND_NS, 8)
    return (send_ns * <uint64_t> 0x9E3779B97F4A7C15 >> 8) ^ word(sequence, 0)


cdef void seal(char *message, uint32_t size, uint64_t sequence) noexcept nogil:
    """After `fill` and `stamp`: guard the send time of a message that will be checked in full."""
    cdef uint64_t s
    if size >= 32:
        s = seal_of(message, sequence)
        memcpy(message + AT_PATTERN, &s, SEAL)


cdef void build_check(char *message, uint32_t size, uint64_t sequence, uint32_t trial, int64_t send_ns) noexcept nogil:
    """A whole message of MAGIC_CHECK."""
    cdef uint32_t magic = MAGIC_CHECK
    mark_fill(message)
    fill(message, size, sequence)
    stamp(message, size, sequence, trial, send_ns)
    seal(message, size, sequence)
    memcpy(message, &magic, 4)
    mark_filled()


cdef void build_source(char *message, uint32_t size, uint64_t sequence, uint32_t trial) noexcept nogil:
    """A whole message that the other end will fetch: it lies there before anything is timed."""
    mark_source(message)
    fill(message, size, sequence)
    stamp(message, size, sequence, trial, 0)
    seal(message, size, sequence)
    mark_filled()


cdef int verify(uint32_t magic, const char *message, uint32_t size, uint32_t trial) noexcept nogil:
    """Every byte of a message with that magic: GOOD, or the first thing found wrong."""
    cdef int status
    mark_verify(message)
    status = compare(magic, message, size, trial)
    mark_verified()
    return status


cdef inline int compare(uint32_t magic, const char *message, uint32_t size, uint32_t trial) noexcept nogil:
    cdef int status = glance_as(magic, message, size, trial)
    cdef uint32_t at = pattern_at(size), end = pattern_end(size)
    cdef uint64_t sequence, k = 0, w
    if status != GOOD or at >= end:
        return status
    sequence = sequence_of(message, size)
    w = first_word(size, sequence)
    if size >= 32:
        w = (w & ~((<uint64_t> 1 << 8 * SEAL) - 1)) | (seal_of(message, sequence) & ((<uint64_t> 1 << 8 * SEAL) - 1))
    while at + 8 <= end:
        if memcmp(message + at, &w, 8) != 0:
            return BAD_PATTERN
        at += 8
        k += 1
        w = word(sequence, k)
    return GOOD if memcmp(message + at, &w, end - at) == 0 else BAD_PATTERN


VERDICTS = ("good", "bad magic", "other trial", "bad trailer", "bad pattern")


def make(uint32_t size, uint64_t sequence, uint32_t trial=0, int64_t send_ns=0, *, bint to_check=False):
    """The bytes of one whole message, pattern included; for tests and for peers that are not ours.

    :param size: bytes of the message, at least 8
    :param sequence, trial, send_ns: fields of the header; those for which `size` has no room are left out
    :param to_check: a message of the exchange before that of `sequence` in a ping-pong, which is checked and not timed
    :raises ValueError: if `size` is below 8, which cannot hold magic and sequence
    """
    if size < SMALLEST:
        raise ValueError(f"a message has at least {SMALLEST} bytes, not {size}")
    message = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(message)
    if to_check:
        build_check(at, size, sequence, trial, send_ns)
        return message
    fill(at, size, sequence)
    stamp(at, size, sequence, trial, send_ns)
    seal(at, size, sequence)
    return message


def check(const unsigned char[::1] message not None, uint32_t trial=0, *, bint to_check=False):
    """Judge a whole message to its last byte.

    :param message: a buffer of any length
    :param trial: the number that it should carry, if it is long enough to carry one
    :param to_check: as for `make`
    :return: one of VERDICTS
    """
    if message.shape[0] < SMALLEST:
        return "bad magic"
    cdef uint32_t magic = MAGIC_CHECK if to_check else MAGIC
    return VERDICTS[verify(magic, <const char *> &message[0], <uint32_t> message.shape[0], trial)]


def sequence(const unsigned char[::1] message not None) -> int:
    """The sequence number that a message carries, its low 32 bits if it has fewer than 12 bytes.

    :raises ValueError: if it has fewer than 8 bytes
    """
    if message.shape[0] < SMALLEST:
        raise ValueError(f"a message has at least {SMALLEST} bytes, not {message.shape[0]}")
    return sequence_of(<const char *> &message[0], <uint32_t> message.shape[0])
