"""Registration for one message at a time: what stands in front of a path's own post, and behind its end."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport Ops
from cython_ext.verbs.verbs_device cimport ProtectionDomain
from cython_ext.verbs.verbs_ring cimport Registering, State


cdef class MessageRegions:
    cdef Registering shared
    cdef State *st
    cdef readonly ProtectionDomain pd
    cdef readonly PinnedBuffer buffer
    cdef int begin(self, State *st, int access, bint looks) except -1
    cdef void stand_before(self, Ops *ops) noexcept


cdef int register_outgoing(State *st, uint32_t count) noexcept nogil
cdef int deregister_to(State *st, uint64_t upto) noexcept nogil
