# cython: language_level=3
"""InterleavedRegion: one piece of memory in two views, the device's with headers' pages and the user's without.

Both are mappings of one file in memory (memfd_create(2)). In the device's view the file's pages stand as they are,
which is one mapping for the kernel and for the IOMMU; in the user's view every second one, each mapped by itself.
"""

import errno
import os

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno as c_errno
from libc.stdint cimport uintptr_t
from posix.mman cimport (
    MADV_DONTFORK,
    MAP_FAILED,
    MAP_FIXED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mlock,
    mmap,
    munmap,
)

from cython_ext.frames.landing cimport LANDING_PAGE

from hwrx.errors import MachineError


cdef class UserPages:
    """The user's view: pages that follow one another. Made by InterleavedRegion; it exports the buffer protocol."""

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)

    @property
    def address(self) -> int:
        """Virtual address of the first byte."""
        return <uintptr_t> self.base

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, <Py_ssize_t> self.size, 0, flags)

    def __len__(self):
        return self.size


cdef class InterleavedRegion(DmaRegion):
    """The device's view, of 2n + 1 pages: header, user, header, user, …, header; `user` is that of the n user's pages.

    Made by `interleaved_pages`. The user's view outlives `close()` for who holds it; no device writes there any more.

    :raises MachineError: if the memory cannot be had or locked
    """

    def __cinit__(self, size_t size, **_):
        cdef size_t k
        cdef void *at
        cdef int file
        self.pages = (self.size // LANDING_PAGE - 1) // 2
        self.user = UserPages.__new__(UserPages)
        file = os.memfd_create("hwrx", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, self.size)
            # in the place of what PinnedBuffer has mapped, of which nothing is left but the address
            if mmap(self.base, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED:
                raise refused("mmap", self.size)
            at = mmap(NULL, self.pages * LANDING_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            if at == MAP_FAILED:
                raise refused("mmap", self.size)
            self.user.base, self.user.size, self.user.region = <char *> at, self.pages * LANDING_PAGE, None
            for k in range(self.pages):
                if mmap(self.user.base + k * LANDING_PAGE, LANDING_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                        file, (2 * k + 1) * LANDING_PAGE) == MAP_FAILED:
                    raise refused("mmap", self.size)
        finally:
            os.close(file)
        # Locking faults both views in, so that no message pays for that.
        if mlock(self.base, self.size) != 0 or mlock(self.user.base, self.user.size) != 0:
            raise refused("mlock", self.size)
        if madvise(self.base, self.size, MADV_DONTFORK) != 0 or madvise(self.user.base, self.user.size, MADV_DONTFORK):
            raise refused("madvise(MADV_DONTFORK)", self.size)


cdef object refused(call, size):
    words = f"cannot get {size} bytes of memory in two views: {call}: {os.strerror(c_errno)}"
    if c_errno == errno.ENOMEM:
        return MachineError(words, remedy="use a smaller window or smaller messages; or raise vm.max_map_count")
    return MachineError(words, remedy="raise the limit of locked memory (ulimit -l)")


def interleaved_pages(size_t pages) -> InterleavedRegion:
    """Make a region with so many pages for the user.

    :param pages: of 4096 bytes, at least 1
    :raises MachineError: if the memory cannot be had or locked, or this machine has pages of another size
    """
    if os.sysconf("SC_PAGE_SIZE") != LANDING_PAGE:
        raise MachineError("messages land in pages of 4096 bytes, and this machine has others")
    return InterleavedRegion((2 * max(pages, <size_t> 1) + 1) * LANDING_PAGE)
