# cython: language_level=3
"""MemoryRegion: a part of a buffer, registered with a device by its address or as a dma-buf, pinned or on demand."""

import errno

cimport cython
from libc.errno cimport errno as c_errno
from libc.stdint cimport SIZE_MAX, uintptr_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_ON_DEMAND,
    ibv_dereg_mr,
    ibv_reg_dmabuf_mr,
    ibv_reg_mr,
)
from cython_ext.verbs.verbs_device cimport ProtectionDomain

from cython_ext.verbs.verbs_device import verbs_error
from hwrx.errors import MachineError


@cython.no_gc_clear
cdef class MemoryRegion:
    """A part of a PinnedBuffer, registered in place: the device works on these very pages.

    It keeps its buffer alive, which cannot be closed before it.

    :param offset, length: bytes of the buffer
    :param access: IBV_ACCESS_*: what device and other end may do beyond the device's own reading
    :param kind: `pinned`: the kernel pins the pages now; `odp`: the device faults them in when it comes to them;
        `implicit-odp`: likewise, and its keys are good for all memory of this process; `dmabuf`: the buffer is one
    :raises ValueError: if the buffer is closed, or too short, or is to be a dma-buf and is none
    :raises MachineError: if the device has no regions of this kind, or no room
    """

    def __cinit__(self, ProtectionDomain pd not None, PinnedBuffer buffer not None, size_t offset, size_t length,
                  int access, *, str kind="pinned"):
        if buffer.base == NULL:
            raise ValueError("the buffer is closed")
        if length > buffer.size or offset > buffer.size - length:
            raise ValueError(f"{length} bytes from {offset} on are not within a buffer of {buffer.size} bytes")
        self.pd = pd
        self.buffer = buffer
        self.offset = offset
        self.length = length
        verb = "ibv_reg_mr"
        if kind == "pinned":
            self.ptr = ibv_reg_mr(pd.ptr, buffer.base + offset, length, access)
        elif kind == "odp":
            self.ptr = ibv_reg_mr(pd.ptr, buffer.base + offset, length, access | IBV_ACCESS_ON_DEMAND)
        elif kind == "implicit-odp":
            # all of the address space, which is said so (ibv_reg_mr(3))
            self.ptr = ibv_reg_mr(pd.ptr, NULL, SIZE_MAX, access | IBV_ACCESS_ON_DEMAND)
        elif kind == "dmabuf" and buffer.dma_buf > 0:
            verb = "ibv_reg_dmabuf_mr"
            # work requests name the same addresses as of any other region: the IOVA is the virtual address
            self.ptr = ibv_reg_dmabuf_mr(
                pd.ptr, offset, length, <uintptr_t> buffer.base + offset, buffer.dma_buf, access
            )
        else:
            raise ValueError(f"a buffer that is no dma-buf cannot be a region of the kind '{kind}'")
        if self.ptr == NULL and kind == "dmabuf" and c_errno == errno.EOPNOTSUPP:
            raise MachineError(
                f"{pd.context.name} was given a dma-buf of {length} bytes and takes none (ibv_reg_dmabuf_mr(3):"
                " EOPNOTSUPP); SoftRoCE's provider has no such verb",
                remedy="leave mr out: pinned memory, which every device takes",
            )
        if self.ptr == NULL:
            said = f"{verb} of {length} bytes" if kind in ("pinned", "dmabuf") else f"{verb} of {length} bytes ({kind})"
            raise verbs_error(said, pd.context.name, c_errno)
        buffer.users += 1

    def __dealloc__(self):
        if self.ptr != NULL:
            ibv_dereg_mr(self.ptr)
            self.buffer.users -= 1

    @property
    def lkey(self) -> int:
        """The key by which own work requests name the region (ibv_sge.lkey); ValueError once it is closed."""
        if self.ptr == NULL:
            raise ValueError("the memory region is closed")
        return self.ptr.lkey

    @property
    def rkey(self) -> int:
        """The key by which the other end names the region."""
        if self.ptr == NULL:
            raise ValueError("the memory region is closed")
        return self.ptr.rkey

    def close(self):
        """Deregister; harmless when called twice.

        No work request that names it may be under way. The buffer can be closed after it.
        """
        cdef int error
        if self.ptr != NULL:
            error = ibv_dereg_mr(self.ptr)
            if error:
                raise verbs_error("ibv_dereg_mr", self.pd.context.name, error)
            self.ptr = NULL
            self.buffer.users -= 1
