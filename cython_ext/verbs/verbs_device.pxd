"""A verbs device that is open, and the protection domain over it."""

from libc.stdint cimport uint32_t

from cython_ext.headers.infiniband_verbs cimport ibv_context, ibv_device_attr, ibv_pd


cdef class Context:
    cdef ibv_context *ptr          # NULL once closed
    cdef ibv_device_attr attr
    cdef readonly str name


cdef class ProtectionDomain:
    cdef ibv_pd *ptr               # NULL once closed
    cdef readonly Context context  # outlives this
