"""The rings of an 82574 that hwrx drives, as a link."""

from libc.stdint cimport uint32_t

from cython_ext.frames.link cimport FrameLink
from cython_ext.nics.e1000e_ring cimport Rx, RxRing
from cython_ext.nics.e1000e_tx cimport Tx, TxRing

cdef enum:
    SENT_TOGETHER = 256     # frames


cdef struct RingsState:
    Rx *rx
    Tx *tx
    uint32_t[256] sizes


cdef class RingLink(FrameLink):
    cdef RingsState state
    cdef object nic
    cdef RxRing rx
    cdef TxRing tx
