"""Memory that a device reaches: a PinnedBuffer that knows the address at which the device sees each of its pages."""

from libc.stdint cimport uint64_t

from cython_ext.core.pinned cimport PinnedBuffer


cdef class DmaRegion(PinnedBuffer):
    cdef uint64_t *page_iova      # one address a granule; NULL until `mapped`
    cdef readonly size_t granule  # bytes that are contiguous for the device
    cdef object unmap             # called once, by detach(), with this region; None where nothing is to be undone

    cdef uint64_t iova_at(self, size_t offset) noexcept nogil
