# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The pattern that fills a message, and the check of a whole message; the layout stands in payload.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset


cdef inline uint64_t word(uint64_t sequence, uint64_t k) noexcept nogil:
    # one multiplication a word: cheap enough to fill 64 KiB, and no two sequence numbers share a word at one place
    cdef uint64_t x = (sequence + 1) * <uint64_t> 0x9E3779B97F4A7C15 + k * <uint64_t> 0xD1B54A32D192ED03
    return x ^ (x >> 29)


cdef inline uint32_t pattern_at(uint32_t size) noexcept nogil:
    return AT_PATTERN if size >= 32 else 16


cdef void fill(char *message, uint32_t size, uint64_t sequence) noexcept nogil:
    """Write the pattern of `sequence` between header and trailer; `stamp` writes the rest."""
    cdef uint32_t at = pattern_at(size)
    cdef uint32_t end
    cdef uint64_t k = 0, w
    if size <= at + 1:
        return
    end = size - 1
    while at + 8 <= end:
        w = word(sequence, k)
        memcpy(message + at, &w, 8)
        at += 8
        k += 1
    w = word(sequence, k)
    memcpy(message + at, &w, end - at)


cdef int verify(const char *message, uint32_t size, uint32_t trial) noexcept nogil:
    """The whole message: GOOD, or the first thing found wrong."""
    cdef int status = glance(message, size, trial)
    cdef uint32_t at = pattern_at(size)
    cdef uint32_t end
    cdef uint64_t sequence, k = 0, w
    if status != GOOD or size <= at + 1:
        return status
    sequence = sequence_of(message, size)
    end = size - 1
    while at + 8 <= end:
        w = word(sequence, k)
        if memcmp(message + at, &w, 8) != 0:
            return BAD_PATTERN
        at += 8
        k += 1
    w = word(sequence, k)
    return GOOD if memcmp(message + at, &w, end - at) == 0 else BAD_PATTERN


VERDICTS = ("good", "bad magic", "other trial", "bad trailer", "bad pattern")


def make(uint32_t size, uint64_t sequence, uint32_t trial=0, int64_t send_ns=0):
    """The bytes of one whole message, pattern included; for tests and for peers that are not ours.

    Raises ValueError where `size` is below 8, which cannot hold magic and sequence.
    """
    if size < SMALLEST:
        raise ValueError(f"a message has at least {SMALLEST} bytes, not {size}")
    message = PyBytes_FromStringAndSize(NULL, size)
    cdef char *at = PyBytes_AS_STRING(message)
    memset(at, 0, min(size, <uint32_t> 16))  # 9 to 11 and 13 to 15 bytes have a rest that belongs to no field
    fill(at, size, sequence)
    stamp(at, size, sequence, trial, send_ns)
    return message


def check(const unsigned char[::1] message not None, uint32_t trial=0):
    """One of VERDICTS for a whole message."""
    if message.shape[0] < SMALLEST:
        return "bad magic"
    return VERDICTS[verify(<const char *> &message[0], <uint32_t> message.shape[0], trial)]


def sequence(const unsigned char[::1] message not None) -> int:
    """The sequence number that a message carries (its low 32 bits where it has fewer than 12 bytes)."""
    if message.shape[0] < SMALLEST:
        raise ValueError(f"a message has at least {SMALLEST} bytes, not {message.shape[0]}")
    return sequence_of(<const char *> &message[0], <uint32_t> message.shape[0])
