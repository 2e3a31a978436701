"""Memory that stays where it is: what an MR, a DMA region and a plain receive buffer have in common."""

from libc.stdint cimport uint64_t


cdef class PinnedBuffer:
    cdef char *base               # page-aligned (huge-page-aligned where huge)
    cdef readonly size_t size     # bytes, a whole number of pages
    cdef readonly size_t page_size
    cdef readonly bint locked
    cdef Py_ssize_t exports       # buffer views alive: close() refuses while there are any
    cdef int users                # MRs and DMA mappings over it: close() refuses while there are any
