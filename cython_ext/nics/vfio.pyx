# cython: language_level=3, boundscheck=False, wraparound=False
"""The ioctls of VFIO, one function each, over file descriptors that the caller owns.

Numbers and structures come from <linux/vfio.h>. Each function raises OSError that names its ioctl;
`hwrx.nic.vfio` turns these into sentences. Order of use: a container and its API version; the device's group, viable,
into the container; the container's IOMMU type; the device's descriptor; then regions, mappings and interrupts.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.headers.linux_vfio cimport *
from cython_ext.headers.sys_ioctl cimport ioctl

CONFIG = VFIO_PCI_CONFIG_REGION_INDEX
INTX = VFIO_PCI_INTX_IRQ_INDEX
MSI = VFIO_PCI_MSI_IRQ_INDEX
MSIX = VFIO_PCI_MSIX_IRQ_INDEX


cdef object failed(str call):
    return OSError(errno, f"{call}: {os.strerror(errno)}")


def check_container(int container) -> None:
    """See whether a container can be used.

    :param container: descriptor of /dev/vfio/vfio
    :raises OSError: unless it speaks the API of our header and has a type 1 IOMMU (v2: unmap is exact)
    """
    if ioctl(container, VFIO_GET_API_VERSION) != VFIO_API_VERSION:
        raise OSError(0, f"VFIO_GET_API_VERSION: not {VFIO_API_VERSION}")
    if ioctl(container, VFIO_CHECK_EXTENSION, <unsigned long> VFIO_TYPE1v2_IOMMU) != 1:
        raise OSError(0, "VFIO_CHECK_EXTENSION: no VFIO_TYPE1v2_IOMMU")


def group_is_viable(int group) -> bool:
    """Whether every device of the group is bound to VFIO or to nothing.

    :param group: descriptor of /dev/vfio/NUMBER
    """
    cdef vfio_group_status status
    memset(&status, 0, sizeof(status))
    status.argsz = sizeof(status)
    if ioctl(group, VFIO_GROUP_GET_STATUS, &status) < 0:
        raise failed("VFIO_GROUP_GET_STATUS")
    return bool(status.flags & VFIO_GROUP_FLAGS_VIABLE)


def join(int group, int container) -> None:
    """Put the group into the container, and give the container its IOMMU type, which needs a group first."""
    if ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) < 0:
        raise failed("VFIO_GROUP_SET_CONTAINER")
    if ioctl(container, VFIO_SET_IOMMU, <unsigned long> VFIO_TYPE1v2_IOMMU) < 0:
        raise failed("VFIO_SET_IOMMU")


def device(int group, str address) -> int:
    """Open a device of the group. The kernel resets it first.

    :param address: of PCI, like 0000:00:04.0
    :return: a descriptor, which belongs to the caller
    """
    encoded = address.encode()
    cdef char *name = encoded
    cdef int fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name)
    if fd < 0:
        raise failed("VFIO_GROUP_GET_DEVICE_FD")
    os.set_inheritable(fd, False)
    return fd


def iommu(int container):
    """What the IOMMU can map.

    :return: `(page_sizes, ranges, mappings)`: a bit for each size in bytes; a list of (first, last) usable IOVAs,
        ascending; how many more mappings the container takes, or None if the kernel does not say
    """
    cdef vfio_iommu_type1_info probe
    cdef vfio_iommu_type1_info *info
    cdef vfio_info_cap_header *header
    cdef vfio_iommu_type1_info_cap_iova_range *ranges
    cdef uint32_t at, i
    memset(&probe, 0, sizeof(probe))
    probe.argsz = sizeof(probe)
    if ioctl(container, VFIO_IOMMU_GET_INFO, &probe) < 0:
        raise failed("VFIO_IOMMU_GET_INFO")
    # the kernel has put into argsz what it would need to tell it all
    info = <vfio_iommu_type1_info *> calloc(1, probe.argsz)
    if info == NULL:
        raise MemoryError
    try:
        info.argsz = probe.argsz
        if ioctl(container, VFIO_IOMMU_GET_INFO, info) < 0:
            raise failed("VFIO_IOMMU_GET_INFO")
        page_sizes = info.iova_pgsizes if info.flags & VFIO_IOMMU_INFO_PGSIZES else os.sysconf("SC_PAGE_SIZE")
        found = []
        mappings = None
        at = info.cap_offset if info.flags & VFIO_IOMMU_INFO_CAPS else 0
        while at and at + sizeof(vfio_info_cap_header) <= probe.argsz:
            header = <vfio_info_cap_header *> (<char *> info + at)
            if header.id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE:
                ranges = <vfio_iommu_type1_info_cap_iova_range *> header
                for i in range(ranges.nr_iovas):
                    found.append((ranges.iova_ranges[i].start, ranges.iova_ranges[i].end))
            elif header.id == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL:
                mappings = (<vfio_iommu_type1_info_dma_avail *> header).avail
            at = header.next
        return page_sizes, sorted(found), mappings
    finally:
        free(info)


def map_dma(int container, PinnedBuffer buffer not None, uint64_t iova) -> None:
    """Let devices of the container reach the whole buffer, for reading and writing.

    The kernel pins its pages until `unmap_dma`; the caller keeps the buffer alive as long.

    :param iova: where they see its first byte
    :raises ValueError: if the buffer is closed
    """
    cdef vfio_iommu_type1_dma_map request
    if buffer.base == NULL:
        raise ValueError("the buffer is closed")
    memset(&request, 0, sizeof(request))
    request.argsz = sizeof(request)
    request.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
    request.vaddr = <uintptr_t> buffer.base
    request.iova = iova
    request.size = buffer.size
    if ioctl(container, VFIO_IOMMU_MAP_DMA, &request) < 0:
        raise failed("VFIO_IOMMU_MAP_DMA")


def unmap_dma(int container, uint64_t iova, uint64_t size) -> None:
    """Take a mapping back; a device that still writes there gets an IOMMU fault, not memory.

    :param iova, size: those of the whole mapping, in bytes
    :raises OSError: also if another number of bytes was unmapped
    """
    cdef vfio_iommu_type1_dma_unmap request
    memset(&request, 0, sizeof(request))
    request.argsz = sizeof(request)
    request.iova = iova
    request.size = size
    if ioctl(container, VFIO_IOMMU_UNMAP_DMA, &request) < 0:
        raise failed("VFIO_IOMMU_UNMAP_DMA")
    if request.size != size:
        raise OSError(0, f"VFIO_IOMMU_UNMAP_DMA: {request.size} bytes were unmapped, not {size}")


def can_reset(int device) -> bool:
    """Whether VFIO_DEVICE_RESET is offered."""
    cdef vfio_device_info info
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    if ioctl(device, VFIO_DEVICE_GET_INFO, &info) < 0:
        raise failed("VFIO_DEVICE_GET_INFO")
    return bool(info.flags & VFIO_DEVICE_FLAGS_RESET)


def reset(int device) -> None:
    """Reset the device the way PCI offers (function level reset, power state, bus)."""
    if ioctl(device, VFIO_DEVICE_RESET) < 0:
        raise failed("VFIO_DEVICE_RESET")


def region(int device, uint32_t index):
    """Where a region of the device lies.

    :param index: VFIO_PCI_*_REGION_INDEX
    :return: `(size, offset, mappable)`: bytes, where it begins in the device's descriptor, whether mmap works
    """
    cdef vfio_region_info info
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    info.index = index
    if ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0:
        raise failed("VFIO_DEVICE_GET_REGION_INFO")
    return info.size, info.offset, bool(info.flags & VFIO_REGION_INFO_FLAG_MMAP)


def interrupts(int device, uint32_t index) -> int:
    """How many interrupts of a kind the device has.

    :param index: VFIO_PCI_INTX_, MSI_ or MSIX_IRQ_INDEX
    """
    cdef vfio_irq_info info
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    info.index = index
    if ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &info) < 0:
        raise failed("VFIO_DEVICE_GET_IRQ_INFO")
    return info.count


cdef int set_interrupt(int device, uint32_t index, uint32_t flags, int fd, uint32_t count) noexcept nogil:
    """VFIO_DEVICE_SET_IRQS for vector 0: 0, or -errno. `fd` is looked at where the flags say DATA_EVENTFD."""
    cdef uint64_t[8] room  # the structure and one descriptor behind it
    cdef vfio_irq_set *request = <vfio_irq_set *> room
    cdef int32_t descriptor = fd
    memset(room, 0, sizeof(room))
    request.argsz = sizeof(vfio_irq_set)
    request.flags = flags
    request.index = index
    request.count = count
    if flags & VFIO_IRQ_SET_DATA_EVENTFD:
        request.argsz = sizeof(vfio_irq_set) + sizeof(descriptor)
        memcpy(request.data, &descriptor, sizeof(descriptor))
    return -errno if ioctl(device, VFIO_DEVICE_SET_IRQS, request) < 0 else 0


def enable(int device, uint32_t index, int eventfd) -> None:
    """Have vector 0 of a kind write to an eventfd. Another kind must be disabled before.

    :param index: as `interrupts` has it
    :param eventfd: stays the caller's
    """
    if set_interrupt(device, index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, eventfd, 1) < 0:
        raise failed("VFIO_DEVICE_SET_IRQS (trigger)")


def unmask_by(int device, uint32_t index, int eventfd) -> None:
    """Have the kernel unmask a level interrupt whenever `eventfd` is written (INTx: it masks itself when it fires)."""
    if set_interrupt(device, index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK, eventfd, 1) < 0:
        raise failed("VFIO_DEVICE_SET_IRQS (unmask)")


def disable(int device, uint32_t index) -> None:
    """Take all interrupts of a kind away."""
    if set_interrupt(device, index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, -1, 0) < 0:
        raise failed("VFIO_DEVICE_SET_IRQS (disable)")
