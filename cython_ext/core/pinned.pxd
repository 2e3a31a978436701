"""Memory that stays where it is: what an MR, a DMA region and a plain receive buffer have in common."""


cdef class PinnedBuffer:
    cdef char *base               # page-aligned (huge-page-aligned where huge); NULL once closed
    cdef readonly size_t size     # bytes, a whole number of pages
    cdef readonly size_t page_size
    cdef readonly bint locked
    cdef readonly Py_ssize_t exports  # buffer views alive: close() refuses while there are any
    # MRs and DMA mappings over it, counted by those who make them (+= 1 and -= 1 under the GIL): close() refuses while
    # there are any. Each must also hold a reference to the buffer, so that it is not collected under the device.
    cdef readonly int users
    cdef readonly int dma_buf     # a file descriptor, or -1
