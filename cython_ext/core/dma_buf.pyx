# cython: language_level=3
"""Memory that is a dma-buf: a device is told of it by a file descriptor instead of an address.

Drivers of GPUs export theirs; this one is made of ordinary memory by the kernel's udmabuf, and so can be had on every
machine whose kernel has that.
"""

import errno
import fcntl
import os

from libc.errno cimport errno as c_errno

from cython_ext.headers.linux_udmabuf cimport UDMABUF_CREATE, UDMABUF_FLAGS_CLOEXEC, udmabuf_create
from cython_ext.headers.sys_ioctl cimport ioctl

from cython_ext.core.pinned import PinnedBuffer, huge_page_size, no_huge_pages
from hwrx.errors import MachineError

DEVICE = "/dev/udmabuf"
PINNED = "leave the kind of memory region out: pinned memory has an address, and every device takes that"


def open_dma_buf(size_t size, *, bint huge=False) -> PinnedBuffer:
    """Return memory of at least `size` bytes, faulted in and locked, whose `dma_buf` is a descriptor of it.

    :param size: bytes; rounded up to whole pages
    :param huge: from the kernel's reserved huge pages
    :return: a PinnedBuffer, which closes the descriptor when it is closed
    :raises MachineError: if the kernel has no udmabuf, gives it to root alone, or refuses so much
    """
    page = huge_page_size() if huge else os.sysconf("SC_PAGE_SIZE")
    whole = (size + page - 1) // page * page
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_device(error) from None
    try:
        memfd = os.memfd_create("hwrx", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge else 0))
        try:
            _fill(memfd, whole, page, huge)
            return PinnedBuffer(whole, huge=huge, memfd=memfd, dma_buf=_export(device, memfd, whole))
        finally:
            os.close(memfd)
    finally:
        os.close(device)


def _fill(memfd, whole, page, huge):
    """Have all pages of it, and never fewer: a dma-buf of a file that can shrink is refused."""
    try:
        os.ftruncate(memfd, whole)
        # now, and with an error: a page of a mapping that cannot be had would be a SIGBUS
        os.posix_fallocate(memfd, 0, whole)
    except OSError as error:
        if huge:
            raise no_huge_pages(whole, page) from None
        raise MachineError(f"cannot get {whole} bytes of memory: memfd: {os.strerror(error.errno)}") from None
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def _export(int device, int memfd, size_t whole) -> int:
    cdef udmabuf_create request
    cdef int made
    request.memfd = memfd
    request.flags = UDMABUF_FLAGS_CLOEXEC
    request.offset = 0
    request.size = whole
    made = ioctl(device, UDMABUF_CREATE, &request)
    if made < 0:
        error = c_errno
        raise MachineError(
            f"{DEVICE} makes no dma-buf of {whole} bytes: {os.strerror(error)} ({errno.errorcode.get(error, error)})",
            remedy="a smaller window or size, or more in /sys/module/udmabuf/parameters/size_limit_mb",
        )
    return made


def _no_device(error) -> MachineError:
    if error.errno == errno.ENOENT:
        return MachineError(
            f"this kernel makes no dma-buf of a program's memory: there is no {DEVICE} (CONFIG_UDMABUF)",
            remedy=f"a kernel that has it (Debian's from 6.12 on: --kernel 6.12); or {PINNED}",
        )
    return MachineError(f"{DEVICE} cannot be opened: {error.strerror}", remedy=f"run as root; or {PINNED}")
