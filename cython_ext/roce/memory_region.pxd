"""Memory that a queue pair may touch: regions with keys, bounds and rights (InfiniBand volume 1, 10.6)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    REGIONS = 256       # of a protection domain


cdef struct Region:
    uint32_t key        # the region's place in its upper 24 bits, a number of its own in the lower 8; 0: none is there
    uint32_t access     # IBV_ACCESS_…
    uint64_t address    # of its first byte, as the other end names it
    uint64_t size       # bytes
    char *base          # the same byte, as we reach it


cdef struct Regions:
    Region[REGIONS] all


cdef inline const Region *region_of(const Regions *regions, uint32_t key) noexcept nogil:
    """The place where a region with this key would stand."""
    return &regions.all[(key >> 8) % REGIONS]


cdef inline char *find_memory(const Regions *regions, uint32_t key, uint64_t address, uint64_t size,
                              uint32_t access) noexcept nogil:
    """Where `size` bytes at `address` are, or NULL if the key, the bounds or one of the rights does not fit."""
    cdef const Region *region = region_of(regions, key)
    # in this order no sum overflows, whatever the packet says
    if (key == 0 or region.key != key or region.access & access != access or address < region.address
            or size > region.size or address - region.address > region.size - size):
        return NULL
    return region.base + (address - region.address)


cdef class ProtectionDomain:
    cdef Regions regions
    cdef uint32_t made      # regions so far, by which a key tells a region from those before it in its place
    cdef dict held          # by place: what keeps the memory, also where nobody keeps the MemoryRegion


cdef class MemoryRegion:
    cdef readonly ProtectionDomain domain   # held: the region stands in it
    cdef object view                        # of the memory; None once closed
    cdef uint32_t place
    cdef readonly uint32_t key
    cdef readonly uint64_t address
    cdef readonly size_t size
