# cython: language_level=3
"""PinnedBuffer: page-aligned memory, faulted in and locked, that sockets, MRs and DMA engines deliver into.

The life of one: map, keep out of children, fault in, lock, use, (deregister,) unmap. Unmapping unlocks.
"""

import errno
import os
import resource
import struct
from pathlib import Path

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EINVAL, ENOMEM
from libc.errno cimport errno as c_errno
from libc.stdint cimport uintptr_t
from posix.mman cimport (
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mlock,
    mmap,
    munmap,
)
from posix.unistd cimport close as close_file

from cython_ext.headers.sys_mman cimport MADV_NOHUGEPAGE, MADV_POPULATE_WRITE

from hwrx.errors import MachineError

# /proc/self/pagemap, 8 bytes a page (Documentation/admin-guide/mm/pagemap.rst)
PRESENT = 1 << 63
PFN_MASK = (1 << 55) - 1


def huge_page_size() -> int:
    """Bytes of the kernel's default huge page, which MAP_HUGETLB without a size gives."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) * 1024
    raise MachineError(
        "this kernel has no huge pages (no Hugepagesize in /proc/meminfo)", remedy="leave huge pages off"
    )


def _huge_pages(state: str) -> int:
    """How many of the default size there are: `Total`, `Free`, or free and promised to others, `Rsvd`."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"HugePages_{state}:"):
            return int(line.split()[1])
    return 0


def _cannot_lock(size: int, error: int) -> MachineError:
    """Why mlock(2) refused: nearly always the limit, which only a privileged user can lift."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if error in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) and limit != resource.RLIM_INFINITY:
        return MachineError(
            f"cannot lock {size} bytes of memory: the limit of locked memory is {limit} bytes"
            f" ({os.strerror(error)}, {errno.errorcode[error]})",
            remedy=f"raise it: 'ulimit -l {-(-size // 1024)}' or more (KiB) as root,"
            " or 'memlock unlimited' in /etc/security/limits.conf; a smaller window needs less",
        )
    return MachineError(f"cannot lock {size} bytes of memory: mlock: {os.strerror(error)} ({errno.errorcode[error]})")


ctypedef volatile char touched


def _failed(call: str, size: int, error: int) -> MachineError:
    return MachineError(
        f"cannot get {size} bytes of memory: {call}: {os.strerror(error)} ({errno.errorcode.get(error, error)})"
    )


def no_huge_pages(size: int, page_size: int) -> MachineError:
    pages = size // page_size
    free = max(0, _huge_pages("Free") - _huge_pages("Rsvd"))
    said = f"{pages} huge pages of {page_size // 1024} KiB are wanted and {free} are free"
    if free >= pages:
        # a smaller number in nr_hugepages would take pages away, and more would not help
        return MachineError(
            f"{said}, but this process may not have them",
            remedy="its control group has a limit for them: hugetlb.*.max (or limit_in_bytes), see /proc/self/cgroup",
        )
    # the number is that of the whole pool, others' pages among them
    total = _huge_pages("Total") + pages - free
    return MachineError(said, remedy=f"reserve them: sysctl -w vm.nr_hugepages={total}")


cdef object _fault_in(char *base, size_t size, size_t page_size, bint huge):
    cdef size_t at
    cdef int error
    if madvise(base, size, MADV_POPULATE_WRITE) == 0:
        return
    error = c_errno
    if error != EINVAL:
        # a huge page that was promised and is not there arrives as EFAULT, where a touch would be a SIGBUS
        raise no_huge_pages(size, page_size) if huge else _failed("madvise(MADV_POPULATE_WRITE)", size, error)
    # a kernel before 5.14: a write to each page
    for at in range(0, size, page_size):
        (<touched *> base)[at] = 0


cdef class PinnedBuffer:
    """Writable, zeroed memory of at least `size` bytes that is in RAM from the start and stays there until `close()`.

    size: bytes; rounded up to whole pages.
    huge: from the kernel's reserved huge pages (MAP_HUGETLB, default huge page size).
    lock: mlock it, so that it is never paged out. Locked memory may still be *moved* by compaction, unless it is huge
        or a device holds it; `physical_pages()` is a snapshot.
    dont_fork: keep it out of forked children (MADV_DONTFORK), because copy-on-write after a fork would give the parent
        another page than the one a device writes to.
    fault_in: have every page now. Without it, whoever locks, registers or first writes to the memory faults it in.
    transparent: whether the kernel may make huge pages of it by itself (MADV_NOHUGEPAGE where it may not).
    memfd: a file of memfd_create(2) with so many bytes, which is mapped instead of anonymous memory; `huge` says that
        it was made with MFD_HUGETLB. It stays the caller's.
    dma_buf: of that file, by which a device is told of the memory (`cython_ext.core.dma_buf`); closed with it.

    It exports the buffer protocol: `np.frombuffer(buffer, np.uint8)` and `memoryview(buffer)` see it in place. Memory
    belongs to this object; views and registrations keep it alive.

    Raises ValueError if `size` is below 1; MachineError if the memory cannot be had or locked.
    """

    def __cinit__(self, size_t size, *, bint huge=False, bint lock=True, bint dont_fork=True, bint fault_in=True,
                  bint transparent=True, int memfd=-1, int dma_buf=-1):
        cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS if memfd < 0 else MAP_SHARED
        cdef void *at
        cdef int error
        self.dma_buf = dma_buf
        if size < 1:
            raise ValueError("a buffer has at least 1 byte")
        self.page_size = huge_page_size() if huge else os.sysconf("SC_PAGE_SIZE")
        if size > <size_t> -1 - self.page_size:
            raise MachineError(f"cannot map {size} bytes of memory")
        self.size = (size + self.page_size - 1) // self.page_size * self.page_size
        if huge and memfd < 0:
            flags |= MAP_HUGETLB
        at = mmap(NULL, self.size, PROT_READ | PROT_WRITE, flags, memfd, 0)
        if at == MAP_FAILED:
            error = c_errno
            if huge and error == ENOMEM:
                raise no_huge_pages(self.size, self.page_size)
            raise _failed("mmap", self.size, error)
        self.base = <char *> at
        # from here on __dealloc__ unmaps, whatever is raised
        if dont_fork and madvise(at, self.size, MADV_DONTFORK) != 0:
            raise _failed("madvise(MADV_DONTFORK)", self.size, c_errno)
        # EINVAL: a kernel that never makes huge pages by itself
        if not transparent and madvise(at, self.size, MADV_NOHUGEPAGE) != 0 and c_errno != EINVAL:
            raise _failed("madvise(MADV_NOHUGEPAGE)", self.size, c_errno)
        if fault_in:
            _fault_in(self.base, self.size, self.page_size, huge)
        if lock:
            if mlock(at, self.size) != 0:
                raise _cannot_lock(self.size, c_errno)
            self.locked = True

    def __dealloc__(self):
        # views and registrations hold references, so none are left here
        if self.base != NULL:
            munmap(self.base, self.size)
        # 0, where arguments were wrong and nothing was made, is somebody's standard input
        if self.dma_buf > 0:
            close_file(self.dma_buf)

    @property
    def address(self) -> int:
        """Virtual address of the first byte, at a page's beginning.

        :raises ValueError: once closed
        """
        if self.base == NULL:
            raise ValueError("the buffer is closed")
        return <uintptr_t> self.base

    @property
    def closed(self) -> bool:
        """Whether `close()` gave the memory back."""
        return self.base == NULL

    def physical_pages(self) -> list[int]:
        """Physical address of each page of `page_size` bytes, in order: what /proc/self/pagemap says now.

        A locked page may still be moved by compaction (vm.compact_unevictable_allowed); a registered one is not.


        :raises MachineError: if the kernel hides page frame numbers (they read as 0 without CAP_SYS_ADMIN) or a page is
            not in memory
        :raises ValueError: once closed
        """
        if self.base == NULL:
            raise ValueError("the buffer is closed")
        base_page = os.sysconf("SC_PAGE_SIZE")
        stride = self.page_size // base_page
        pages = []
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                table = os.pread(pagemap.fileno(), self.size // base_page * 8, <uintptr_t> self.base // base_page * 8)
        except OSError as error:
            raise MachineError(
                f"cannot read /proc/self/pagemap: {error.strerror}", remedy="mount /proc, and run as root"
            ) from error
        if len(table) != self.size // base_page * 8:
            raise MachineError("/proc/self/pagemap ended before the buffer did")
        for (entry,) in list(struct.iter_unpack("=Q", table))[::stride]:
            if not entry & PRESENT:
                raise MachineError("a page of the buffer is not in memory", remedy="lock the buffer (lock=True)")
            if not entry & PFN_MASK:
                raise MachineError(
                    "the kernel hides physical addresses from this process (/proc/self/pagemap gives frame number 0)",
                    remedy="run as root, or with CAP_SYS_ADMIN",
                )
            pages.append((entry & PFN_MASK) * base_page)
        return pages

    def close(self):
        """Give the memory back; harmless when called twice.

        :raises BufferError: while views or registrations of it are alive: release and deregister those first
        """
        if self.base == NULL:
            return
        if self.exports or self.users:
            raise BufferError(
                f"the buffer is still in use: {self.exports} views and {self.users} registrations; give those up first"
            )
        munmap(self.base, self.size)
        self.base = NULL
        self.locked = False
        if self.dma_buf > 0:
            close_file(self.dma_buf)
            self.dma_buf = -1

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.base == NULL:
            raise BufferError("the buffer is closed")
        PyBuffer_FillInfo(view, self, self.base, <Py_ssize_t> self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    def __len__(self):
        return self.size

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self.base == NULL:
            return "<PinnedBuffer closed>"
        kind = "locked" if self.locked else "not locked"
        return f"<PinnedBuffer {self.size} bytes at {<uintptr_t> self.base:#x}, pages of {self.page_size}, {kind}>"
