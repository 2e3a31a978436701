"""The 82574's transmit ring: [oldest, next) is the NIC's, the rest is ours to fill. See e1000e_ring.pxd."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.nics.descriptor_ring cimport Ring, TxDescriptor


cdef struct Tx:
    TxDescriptor *descriptors
    char *bar
    char *buffers
    const uint64_t *iova
    uint32_t mask
    uint32_t stride
    uint32_t next           # the descriptor that is posted next
    uint32_t oldest         # the oldest that the NIC has not reported done
    uint64_t frames


cdef uint32_t tx_room(Tx *tx) noexcept nogil
cdef void tx_post(Tx *tx, uint32_t count, const uint32_t *sizes) noexcept nogil


cdef inline char *tx_buffer(Tx *tx, uint32_t k) noexcept nogil:
    """The buffer of the k-th frame after the last posted one; k < tx_room."""
    return tx.buffers + <size_t> ((tx.next + k) & tx.mask) * tx.stride


cdef class TxRing(Ring):
    cdef Tx tx
