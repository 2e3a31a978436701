"""The counter of the atomics: 8 bytes of the other end's memory, which are a message."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.core.payload cimport MAGIC


cdef inline uint64_t counted(uint64_t k) noexcept nogil:
    """The 8 bytes of the counter after k operations, which are message k: its magic, and its number above that."""
    return <uint64_t> MAGIC | (<uint64_t> <uint32_t> k) << 32
