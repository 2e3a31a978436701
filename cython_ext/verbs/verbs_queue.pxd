"""Completion channels and queues, address handles, queue pairs."""

from libc.stdint cimport uint32_t

from cython_ext.headers.infiniband_verbs cimport ibv_ah, ibv_comp_channel, ibv_cq, ibv_qp, ibv_srq
from cython_ext.verbs.verbs_device cimport Context, ProtectionDomain


cdef class CompletionChannel:
    cdef ibv_comp_channel *ptr
    cdef readonly Context context


cdef class CompletionQueue:
    cdef ibv_cq *ptr
    cdef readonly Context context
    cdef readonly CompletionChannel channel   # None: it is only polled


cdef class AddressHandle:
    cdef ibv_ah *ptr
    cdef readonly ProtectionDomain pd


cdef class SharedReceiveQueue:
    cdef ibv_srq *ptr
    cdef readonly ProtectionDomain pd


cdef class QueuePair:
    cdef ibv_qp *ptr
    cdef readonly ProtectionDomain pd
    cdef readonly CompletionQueue send_cq
    cdef readonly CompletionQueue recv_cq
    cdef readonly SharedReceiveQueue shared   # None: it has receive requests of its own
    cdef readonly bint datagram               # UD; otherwise RC
    cdef readonly uint32_t max_inline         # bytes
    cdef readonly object port                 # a Port
    cdef int modify(self, void *attr, int mask, str step) except -1
