"""Memory of which a device sees a header's page before each page of the user's: see cython_ext/frames/landing.pxd."""

from cython_ext.nics.dma cimport DmaRegion


cdef class InterleavedRegion(DmaRegion):
    cdef readonly UserPages user
    cdef size_t pages


cdef class UserPages:
    cdef char *base
    cdef readonly size_t size
    cdef object region      # whose pages they are: kept as long as these are
