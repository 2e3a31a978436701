# cython: language_level=3
"""Registration: what turns memory of the process into memory that the other end may name."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from cython_ext.headers.infiniband_verbs cimport (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_ATOMIC,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_REMOTE_WRITE,
)

from hwrx.errors import UsageError

# by name, as the verbs interface has them
ACCESS = {
    "local write": IBV_ACCESS_LOCAL_WRITE,
    "remote write": IBV_ACCESS_REMOTE_WRITE,
    "remote read": IBV_ACCESS_REMOTE_READ,
    "remote atomic": IBV_ACCESS_REMOTE_ATOMIC,
}
EVERY_ACCESS = tuple(ACCESS)


def access_flags(names) -> int:
    """Rights by their names, as IBV_ACCESS_… flags.

    :param names: some of ACCESS
    :raises UsageError: for another name, or a right to change memory that "local write" does not go with
    """
    flags = 0
    for name in names:
        if name not in ACCESS:
            raise UsageError(f"there is no right '{name}'", remedy=f"choose of: {', '.join(ACCESS)}")
        flags |= ACCESS[name]
    # 10.6.3 of the specification: who lets others change memory must be allowed to change it
    if flags & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC) and not flags & IBV_ACCESS_LOCAL_WRITE:
        raise UsageError("remote write and remote atomic need local write", remedy="add 'local write'")
    return flags


cdef class ProtectionDomain:
    """The regions that a queue pair may use. A key of another domain opens nothing here."""

    def __cinit__(self):
        memset(&self.regions, 0, sizeof(Regions))
        self.held = {}

    def register(self, memory, *, access=EVERY_ACCESS) -> MemoryRegion:
        """Let queue pairs of this domain use a buffer.

        :param memory: a writable, contiguous buffer: a PinnedBuffer, a bytearray, a NumPy array
        :param access: rights, some of ACCESS; reading for one's own sends needs none
        :return: the region. Until it is closed the domain holds the buffer, whatever becomes of this object
        :raises UsageError: if the buffer is empty or cannot be written, a right does not exist, or REGIONS are in use
        """
        cdef uint32_t place
        flags = access_flags(access)
        for place in range(REGIONS):
            if self.regions.all[place].key == 0:
                return MemoryRegion(self, memory, place, flags)
        raise UsageError(
            f"a protection domain has at most {REGIONS} regions", remedy="close some, or register more at once"
        )


cdef class MemoryRegion:
    """A registered buffer. Made by `ProtectionDomain.register`.

    Attributes: `key`, for the other end and for one's own requests; `address` of its first byte, by which the other end
    names it; `size` in bytes.
    """

    def __init__(self, ProtectionDomain domain not None, memory, uint32_t place, uint32_t access):
        cdef Py_buffer view
        cdef Region *region = &domain.regions.all[place]
        try:
            self.view = memoryview(memory).cast("B")
            PyObject_GetBuffer(self.view, &view, PyBUF_WRITABLE)
        except (TypeError, BufferError, ValueError) as error:
            raise UsageError(f"this memory cannot be registered: {error}", remedy="give a writable buffer") from error
        region.base = <char *> view.buf
        size = view.len
        PyBuffer_Release(&view)  # self.view keeps the memory where it is
        if size == 0:
            raise UsageError("there are no bytes to register", remedy="give a buffer that is not empty")
        self.domain = domain
        self.place = place
        domain.held[place] = self.view
        domain.made += 1
        self.size = region.size = <uint64_t> size
        self.address = region.address = <uint64_t> <uintptr_t> region.base
        region.access = access
        # never 0, and another one than that of the region before it in this place
        self.key = region.key = place << 8 | (domain.made % 255 + 1)

    def close(self):
        """Make the key invalid: whoever names it from now on is refused. Harmless when called twice.

        Not while another thread is inside `progress` of a queue pair that uses it.
        """
        if self.view is not None:
            # the key before the memory
            self.domain.regions.all[self.place].key = 0
            del self.domain.held[self.place]
            self.view.release()
            self.view = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
