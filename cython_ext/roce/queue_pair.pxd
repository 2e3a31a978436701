"""RoceQueuePair: a reliable connection with its memory, over a link."""

from cython_ext.frames.link cimport FrameLink
from cython_ext.roce.connection cimport Connection
from cython_ext.roce.memory_region cimport MemoryRegion, ProtectionDomain


cdef class RoceQueuePair:
    cdef Connection connection
    cdef readonly FrameLink link
    cdef readonly ProtectionDomain domain

    cdef int check_postable(self, MemoryRegion region) except -1
