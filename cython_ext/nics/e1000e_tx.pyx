# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The transmit ring of the 82574, hot part first; the layout of descriptors stands in descriptor_ring.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.nics.dma cimport DmaRegion
from cython_ext.nics.descriptor_ring cimport (
    SHORTEST,
    TDT,
    TXD_CMD_EOP,
    TXD_CMD_IFCS,
    TXD_CMD_RS,
    TXD_CMD_SHIFT,
    TXD_STA_DD,
    TXD_STA_SHIFT,
    Ring,
    TxDescriptor,
)
from cython_ext.nics.mmio cimport Bar, dma_read64, mmio_write

cdef enum:
    BATCH = 256  # most frames that Python posts at once


cdef uint32_t tx_room(Tx *tx) noexcept nogil:
    """How many frames can be posted now. Takes back the buffers of those that the NIC reports sent."""
    cdef uint64_t command
    while tx.oldest != tx.next:
        command = dma_read64(&tx.descriptors[tx.oldest & tx.mask].command)
        if not command & (<uint64_t> TXD_STA_DD << TXD_STA_SHIFT):
            break
        tx.oldest += 1
    return tx.mask - (tx.next - tx.oldest)


cdef void tx_post(Tx *tx, uint32_t count, const uint32_t *sizes) noexcept nogil:
    """Send the next `count` buffers, of `sizes` bytes each; one register write for all. At most `tx_room`."""
    cdef uint32_t i, slot
    for i in range(count):
        slot = (tx.next + i) & tx.mask
        tx.descriptors[slot].address = tx.iova[slot]
        tx.descriptors[slot].command = sizes[i] | (
            <uint64_t> (TXD_CMD_EOP | TXD_CMD_IFCS | TXD_CMD_RS) << TXD_CMD_SHIFT)
    tx.next += count
    tx.frames += count
    mmio_write(tx.bar, TDT, tx.next & tx.mask)


# --- for Python ----------------------------------------------------------------------------------------------------

cdef class TxRing(Ring):
    """The transmit ring: one buffer a descriptor, in which frames are built.

    :param bar, descriptors, buffers, count, stride: as Ring has them
    """

    def __init__(self, Bar bar not None, DmaRegion descriptors not None, DmaRegion buffers not None,
                 uint32_t count, uint32_t stride):
        Ring.__init__(self, bar, descriptors, buffers, count, stride)
        self.tx.descriptors = <TxDescriptor *> descriptors.base
        self.tx.bar = bar.base
        self.tx.buffers = buffers.base
        self.tx.iova = self.iova
        self.tx.mask = count - 1
        self.tx.stride = stride
        self.start()

    def start(self):
        """Nothing is posted. The NIC must be stopped."""
        self.tx.next = self.tx.oldest = 0
        memset(self.tx.descriptors, 0, self.count * sizeof(TxDescriptor))

    @property
    def room(self) -> int:
        """How many frames can be posted now."""
        self.check()
        return tx_room(&self.tx)

    @property
    def pending(self) -> int:
        """How many frames are posted and not reported sent."""
        self.check()
        tx_room(&self.tx)
        return self.tx.next - self.tx.oldest

    @property
    def frames(self) -> int:
        """How many frames were posted since the ring was made."""
        return self.tx.frames

    def send(self, frames) -> int:
        """Copy `frames` into the ring and post them in one batch.

        :param frames: buffers of whole Ethernet frames without CRC
        :return: how many were posted, which is fewer than given if the ring is full
        :raises ValueError: for a frame that is shorter than a header or longer than a buffer, nothing being posted
            then; or if the ring is closed
        """
        cdef uint32_t[BATCH] sizes
        self.check()
        cdef uint32_t room = min(tx_room(&self.tx), <uint32_t> BATCH), count = 0
        cdef const unsigned char[::1] frame
        for frame in frames:
            if count == room:
                break
            if frame.shape[0] < SHORTEST or frame.shape[0] > self.stride:
                raise ValueError(f"a frame has {SHORTEST} to {self.stride} bytes, not {frame.shape[0]}")
            memcpy(tx_buffer(&self.tx, count), &frame[0], frame.shape[0])
            sizes[count] = <uint32_t> frame.shape[0]
            count += 1
        if count:
            tx_post(&self.tx, count, sizes)
        return count
