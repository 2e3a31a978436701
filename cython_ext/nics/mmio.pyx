# cython: language_level=3
"""Bar: a device's registers as mapped memory, for Python; the ring's hot code uses its `base` directly."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer


cdef class Bar:
    """Registers of 32 bits over `memory`, a writable buffer such as an mmap of the device's region.

    The buffer is held until `close()`. Offsets are bytes from the beginning of the region and are checked: ValueError
    for one that is not a multiple of 4 or lies outside. Other widths are not offered because the 82574L forbids them.
    """

    def __cinit__(self, memory):
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.held = True
        self.base = <char *> self.view.buf
        self.size = self.view.len

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    def close(self):
        """Let go of the memory; harmless when called twice."""
        if self.held:
            self.held = False
            self.base = NULL
            self.size = 0
            PyBuffer_Release(&self.view)

    cdef int check(self, size_t offset) except -1:
        if not self.held:
            raise ValueError("the registers are no longer mapped")
        if offset % 4 or offset + 4 > self.size:
            raise ValueError(f"no register at {offset:#x}: registers are 4 bytes wide and end at {self.size:#x}")
        return 0

    def read(self, size_t offset) -> int:
        """One load of 32 bits. A device that is gone or has its memory decoding off reads as 0xFFFFFFFF.

        :param offset: bytes, a multiple of 4
        :raises ValueError: if there is no register at `offset`, or the registers are no longer mapped
        """
        self.check(offset)
        return mmio_read(self.base, <uint32_t> offset)

    def write(self, size_t offset, uint32_t value) -> None:
        """One store of 32 bits; stores to memory before it are seen by the device first.

        :param offset: bytes, a multiple of 4
        :raises ValueError: if there is no register at `offset`, or the registers are no longer mapped
        """
        self.check(offset)
        mmio_write(self.base, <uint32_t> offset, value)
