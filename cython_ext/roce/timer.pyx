# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The two times of a connection as the specification codes them, and whether one of them has come."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.roce.connection cimport Connection

# The RNR NAK timer field, in units of 10 µs (9.7.5.2.8, table 45): 0 is the longest
cdef uint32_t[32] RNR_WAITS = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 49152,
]


cdef int64_t timeout_of_code(uint32_t code) noexcept nogil:
    """4.096 µs times 2 to the code; 0: for ever (9.7.6.1.3)."""
    return <int64_t> 4096 << (code & 31) if code & 31 else 0


cdef int64_t rnr_wait_of_code(uint32_t code) noexcept nogil:
    return <int64_t> RNR_WAITS[code & 31] * 10_000


cdef int64_t next_event(const Connection *c) noexcept nogil:
    """When something has to be done although nothing comes; 0: never."""
    if c.rnr_until and (c.deadline == 0 or c.rnr_until < c.deadline):
        return c.rnr_until
    return c.deadline


# --- for Python ----------------------------------------------------------------------------------------------------

def timeout_ns(uint32_t code) -> int:
    """Nanoseconds of a local ACK timeout's code, 0 to 31; 0: it never expires."""
    return timeout_of_code(code)


def rnr_wait_ns(uint32_t code) -> int:
    """Nanoseconds of an RNR NAK's timer code, 0 to 31."""
    return rnr_wait_of_code(code)
