"""<linux/udmabuf.h>: a dma-buf of pages that user space has, as a file of memfd_create(2)."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "linux/udmabuf.h" nogil:
    struct udmabuf_create:
        uint32_t memfd
        uint32_t flags
        uint64_t offset        # whole pages, as is the size
        uint64_t size

    enum: UDMABUF_CREATE
    enum: UDMABUF_FLAGS_CLOEXEC
