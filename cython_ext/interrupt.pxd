"""An interrupt as a file descriptor: wait for it without the GIL, and let the next one come."""

from libc.stdint cimport int64_t, uint64_t


cdef class Interrupt:
    cdef readonly str kind        # msix, msi or intx
    cdef readonly int fd          # readable once it has fired
    cdef size_t report            # bytes that one read of it takes
    cdef int unmask_fd            # INTx is masked when it fires: what to write, and where, to unmask it; -1: nothing
    cdef int64_t unmask_at        # -1: at no offset
    cdef char[8] unmask_data
    cdef size_t unmask_size
    cdef readonly uint64_t fired
    cdef object on_close

    cdef int wait(self, int64_t deadline) noexcept nogil
    cdef int unmask(self) noexcept nogil
