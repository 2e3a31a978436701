# cython: language_level=3
"""DmaRegion: pinned memory and where the device sees it."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc


cdef class DmaRegion(PinnedBuffer):
    """A PinnedBuffer that devices reach, from `mapped` until `close`.

    Behind an IOMMU the whole region is contiguous for the device. Without one (UIO) it is contiguous within a huge page
    only, so `iova(offset)` answers for each byte, and no buffer may cross a multiple of `granule`.
    """

    def __dealloc__(self):
        free(self.page_iova)

    def mapped(self, list addresses not None, size_t granule, unmap=None):
        """The device now sees the region: `addresses` are those of its pieces of `granule` bytes, in order.

        `unmap(region)` is called by `detach()` and `close()`. Raises ValueError if the addresses do not cover the
        region, or it is mapped.
        """
        cdef size_t i
        if self.page_iova != NULL:
            raise ValueError("the region is mapped already")
        if granule == 0 or len(addresses) * granule < self.size:
            raise ValueError(f"{len(addresses)} pieces of {granule} bytes do not cover {self.size} bytes")
        self.page_iova = <uint64_t *> malloc(len(addresses) * sizeof(uint64_t))
        if self.page_iova == NULL:
            raise MemoryError
        for i in range(<size_t> len(addresses)):
            self.page_iova[i] = addresses[i]
        self.granule = granule
        self.unmap = unmap
        self.users += 1

    cdef uint64_t iova_at(self, size_t offset) noexcept nogil:
        return self.page_iova[offset // self.granule] + offset % self.granule

    def iova(self, size_t offset=0) -> int:
        """Address at which the device sees the byte at `offset`.

        :param offset: bytes from the region's beginning
        :raises ValueError: if the region is not mapped, or ends before `offset`
        """
        if self.page_iova == NULL:
            raise ValueError("the region is not mapped")
        if offset >= self.size:
            raise ValueError(f"the region ends at {self.size} bytes")
        return self.iova_at(offset)

    def detach(self):
        """Undo the mapping and keep the memory: the device no longer sees the region. Harmless when called twice.

        The device must have been stopped before: what it still writes afterwards is refused by the IOMMU, or without
        one lands in memory that may be somebody else's by then.
        """
        if self.page_iova == NULL:
            return
        if self.unmap is not None:
            unmap, self.unmap = self.unmap, None
            unmap(self)
        free(self.page_iova)
        self.page_iova = NULL
        self.users -= 1

    def close(self):
        """Detach, then give the memory back; harmless when called twice.

        :raises BufferError: while views of the region are alive; it stays attached then
        """
        if self.exports:
            raise BufferError(f"{self.exports} views of the region are still in use: give those up first")
        self.detach()
        PinnedBuffer.close(self)
