"""Memory that is registered with a verbs device."""

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.headers.infiniband_verbs cimport ibv_mr
from cython_ext.verbs.verbs_device cimport ProtectionDomain


cdef class MemoryRegion:
    cdef ibv_mr *ptr
    cdef readonly ProtectionDomain pd
    cdef readonly PinnedBuffer buffer
    cdef readonly size_t offset               # of its first byte in the buffer
    cdef readonly size_t length
