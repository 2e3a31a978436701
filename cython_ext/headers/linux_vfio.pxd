"""<linux/vfio.h>: user-space access to devices behind an IOMMU."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef extern from "linux/vfio.h" nogil:
    enum:
        VFIO_API_VERSION
        VFIO_TYPE1_IOMMU
        VFIO_TYPE1v2_IOMMU

    # requests, on the container
    unsigned long VFIO_GET_API_VERSION
    unsigned long VFIO_CHECK_EXTENSION
    unsigned long VFIO_SET_IOMMU
    unsigned long VFIO_IOMMU_GET_INFO
    unsigned long VFIO_IOMMU_MAP_DMA
    unsigned long VFIO_IOMMU_UNMAP_DMA
    # on a group
    unsigned long VFIO_GROUP_GET_STATUS
    unsigned long VFIO_GROUP_SET_CONTAINER
    unsigned long VFIO_GROUP_UNSET_CONTAINER
    unsigned long VFIO_GROUP_GET_DEVICE_FD
    # on a device
    unsigned long VFIO_DEVICE_GET_INFO
    unsigned long VFIO_DEVICE_GET_REGION_INFO
    unsigned long VFIO_DEVICE_GET_IRQ_INFO
    unsigned long VFIO_DEVICE_SET_IRQS
    unsigned long VFIO_DEVICE_RESET

    enum:
        VFIO_GROUP_FLAGS_VIABLE
        VFIO_DEVICE_FLAGS_RESET
        VFIO_DEVICE_FLAGS_PCI
        VFIO_REGION_INFO_FLAG_MMAP
        VFIO_PCI_BAR0_REGION_INDEX
        VFIO_PCI_CONFIG_REGION_INDEX
        VFIO_PCI_INTX_IRQ_INDEX
        VFIO_PCI_MSI_IRQ_INDEX
        VFIO_PCI_MSIX_IRQ_INDEX
        VFIO_IRQ_SET_DATA_NONE
        VFIO_IRQ_SET_DATA_EVENTFD
        VFIO_IRQ_SET_ACTION_MASK
        VFIO_IRQ_SET_ACTION_UNMASK
        VFIO_IRQ_SET_ACTION_TRIGGER
        VFIO_IOMMU_INFO_PGSIZES
        VFIO_IOMMU_INFO_CAPS
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL
        VFIO_DMA_MAP_FLAG_READ
        VFIO_DMA_MAP_FLAG_WRITE

    struct vfio_group_status:
        uint32_t argsz
        uint32_t flags

    struct vfio_device_info:
        uint32_t argsz
        uint32_t flags
        uint32_t num_regions
        uint32_t num_irqs

    struct vfio_region_info:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint64_t size
        uint64_t offset

    struct vfio_irq_info:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint32_t count

    struct vfio_irq_set:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint32_t start
        uint32_t count
        unsigned char data[]

    struct vfio_info_cap_header:
        uint16_t id
        uint16_t version
        uint32_t next

    struct vfio_iommu_type1_info:
        uint32_t argsz
        uint32_t flags
        uint64_t iova_pgsizes
        uint32_t cap_offset

    struct vfio_iova_range:
        uint64_t start
        uint64_t end  # the last address of the range, not one past it

    struct vfio_iommu_type1_info_cap_iova_range:
        vfio_info_cap_header header
        uint32_t nr_iovas
        vfio_iova_range iova_ranges[]

    struct vfio_iommu_type1_info_dma_avail:
        vfio_info_cap_header header
        uint32_t avail

    struct vfio_iommu_type1_dma_map:
        uint32_t argsz
        uint32_t flags
        uint64_t vaddr
        uint64_t iova
        uint64_t size

    struct vfio_iommu_type1_dma_unmap:
        uint32_t argsz
        uint32_t flags
        uint64_t iova
        uint64_t size
