# cython: language_level=3
"""What the 82574's two descriptor rings have in common; none of it runs while messages pass."""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cython_ext.nics.dma cimport DmaRegion
from cython_ext.nics.mmio cimport Bar


cdef class Ring:
    """What both rings have: registers, descriptors and one buffer for each of them, in memory that the NIC reaches.

    :param bar: the NIC's registers
    :param descriptors, buffers: regions that are mapped for the NIC, at least `count * 16` and `count * stride` bytes
        large; they belong to the caller and must outlive the NIC's use of the ring
    :param count: descriptors, a power of two from 64 to 4096
    :param stride: bytes of a buffer, a power of two from 256 to 16384
    :raises ValueError: if a number or a region does not fit
    """

    def __init__(self, Bar bar not None, DmaRegion descriptors not None, DmaRegion buffers not None,
                 uint32_t count, uint32_t stride):
        cdef uint32_t i
        if count < 64 or count > 4096 or count & (count - 1):
            raise ValueError(f"a ring has 64, 128, … 4096 descriptors, not {count}")
        if stride < 256 or stride > 16384 or stride & (stride - 1):
            raise ValueError(f"a buffer has 256, 512, … 16384 bytes, not {stride}")
        if descriptors.page_iova == NULL or buffers.page_iova == NULL:
            raise ValueError("the regions must be mapped for the device first")
        if descriptors.size < count * 16 or buffers.size < <size_t> count * stride:
            raise ValueError("the regions are too small for the ring")
        if descriptors.granule < count * 16 or buffers.granule % stride:
            raise ValueError("the device does not see the ring, or a buffer, in one piece")
        if bar.size < TDT + 4:
            raise ValueError("these are not the registers of an 82574")
        self.bar = bar
        self.descriptors = descriptors
        self.buffers = buffers
        self.count = count
        self.stride = stride
        free(self.iova)
        self.iova = <uint64_t *> malloc(count * sizeof(uint64_t))
        if self.iova == NULL:
            raise MemoryError
        for i in range(count):
            self.iova[i] = buffers.iova_at(<size_t> i * stride)

    def __dealloc__(self):
        free(self.iova)

    cdef int check(self) except -1:
        if self.closed:
            raise ValueError("the ring is closed: its NIC was given back")
        return 0

    def close(self):
        """The registers and regions are about to go: nothing of the ring can be used any more, views stay readable."""
        self.closed = True

    @property
    def table(self):
        """The descriptors in place, as a NumPy array of 64-bit words, shape (count, 2): address, and what it says."""
        return np.frombuffer(self.descriptors, np.uint64, self.count * 2).reshape(self.count, 2)

    def address(self, uint32_t index) -> int:
        """Where the NIC sees buffer `index`.

        :return: an IOVA; without an IOMMU a physical address
        :raises IndexError: if there is no such buffer
        """
        if index >= self.count:
            raise IndexError(index)
        return self.iova[index]
