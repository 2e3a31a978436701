# cython: language_level=3, cdivision=True
"""The base of every link: see link.pxd for the contract."""

import os

from libc.errno cimport EBADF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.core.clock cimport now
from cython_ext.core.pinned cimport PinnedBuffer


cdef char[65536] nowhere  # what is built for a link that is closed


cdef int no_take(void *me, Frame *out, uint32_t most) noexcept nogil:
    return -EBADF


cdef void no_refuse(void *me, const Frame *frame) noexcept nogil:
    return


cdef int no_give(void *me, uint32_t count) noexcept nogil:
    return -EBADF


cdef int no_wait(void *me, int64_t deadline) noexcept nogil:
    return -EBADF


cdef int no_room(void *me, uint32_t most) noexcept nogil:
    return -EBADF


cdef char *no_buffer(void *me, uint32_t k) noexcept nogil:
    return nowhere


cdef int no_send(void *me, uint32_t count, uint32_t size) noexcept nogil:
    return -EBADF


cdef int no_append(void *me, uint32_t head, const char *payload, uint32_t size, uint64_t end,
                   uint32_t tail) noexcept nogil:
    return -EBADF


cdef uint32_t no_append_all(void *me, const SharedHeaders *shared, const Piece *pieces, uint32_t count,
                            uint32_t size) noexcept nogil:
    return 0


cdef bint no_append_one(void *me, const SharedHeaders *shared, const char *payload, uint32_t size, uint32_t psn,
                        uint64_t end) noexcept nogil:
    return False


cdef int no_flush(void *me) noexcept nogil:
    return -EBADF


cdef class FrameLink:
    """Whole Ethernet frames in and out.

    Attributes: `mac`, the address whose frames arrive; `frames` that can wait to be taken; `largest`, bytes of a frame.

    The methods here are for Python and copy; a path uses the table of C functions and does not.
    """

    def __cinit__(self):
        self.checksum_mask, self.checksum_good = 0, 1  # nobody vouches

    def receive(self, double seconds=0.0, uint32_t most=64) -> list:
        """Frames as bytes, copied; their buffers are given back at once.

        :param seconds: how long the first one is waited for if none is there
        :param most: how many at most; 64 in any case
        :return: [] if nothing came
        :raises OSError: if an operation of the link failed; EBADF once it is closed
        """
        cdef Frame[64] frames
        cdef int64_t deadline = now() + <int64_t> (seconds * 1e9)
        cdef int count, status
        count = checked(self.table.take(self.table.me, frames, min(most, <uint32_t> 64)))
        if count == 0 and seconds > 0:
            with nogil:
                status = self.table.wait(self.table.me, deadline)
            checked(status)
            count = checked(self.table.take(self.table.me, frames, min(most, <uint32_t> 64)))
        out = [frames[i].data[:frames[i].size] for i in range(count)]
        checked(self.table.give(self.table.me, <uint32_t> count))
        return out

    def send(self, bytes frame not None) -> bool:
        """Copy one frame into the link and send it.

        :param frame: from the Ethernet header on, without CRC
        :return: False if there is no room for it now
        :raises ValueError: if it is shorter than a header or longer than `largest`
        :raises OSError: if an operation of the link failed; EBADF once it is closed
        """
        if len(frame) > self.largest or len(frame) < 14:
            raise ValueError(f"a frame has 14 to {self.largest} bytes, not {len(frame)}")
        if checked(self.table.room(self.table.me, 1)) == 0:
            return False
        memcpy(self.table.buffer(self.table.me, 0), <const char *> frame, len(frame))
        checked(self.table.send(self.table.me, 1, <uint32_t> len(frame)))
        return True

    def statistics(self) -> dict:
        """What the link counted, by names of its own.

        All have `cpu_copied_bytes`: of received frames, headers included, as many as a CPU wrote to memory on their way
        to us, be it the kernel's or ours; what a kernel's driver copies before it hands a frame on is seen by the
        ledger alone. And `cpu_sent_bytes`: of sent frames, as many as our own CPU carried to the device.
        """
        return {"cpu_copied_bytes": 0, "cpu_sent_bytes": 0}

    def device_memory(self) -> tuple:
        """Address and bytes of the memory that a device writes frames to by itself; 0 bytes where a CPU does."""
        return 0, 0

    def diagnose(self) -> list:
        """What keeps frames from coming or going, in sentences."""
        return []

    def sending_memory(self, size_t size) -> PinnedBuffer:
        """Return pinned memory to send from, which the link's device fetches by itself if it fetches at all.

        :param size: bytes, at least 1
        :return: zeroed, of whole pages; the caller's, but where a device reaches it the link's to close
        :raises MachineError: if the memory cannot be had
        """
        return PinnedBuffer(size)

    cdef int close_table(self) except -1:
        """From now on every operation answers EBADF."""
        self.table = Link(NULL, no_take, no_refuse, no_give, no_wait, no_room, no_buffer, no_send)
        if self.gather.append != NULL:
            self.gather = Gather(NULL, no_append, no_append_all, no_append_one, no_flush, self.gather.versions)
        return 0

    def abandon(self):
        """For another thread: every operation answers EBADF from now on, so that a loop on this link ends.

        The state stays: an operation that is under way, or about to begin, still finds it.
        """
        self.table.take, self.table.refuse, self.table.give, self.table.wait = no_take, no_refuse, no_give, no_wait
        self.table.room, self.table.buffer, self.table.send = no_room, no_buffer, no_send
        if self.gather.append != NULL:
            self.gather.append, self.gather.append_all = no_append, no_append_all
            self.gather.append_one, self.gather.flush = no_append_one, no_flush

    def close(self):
        """Give everything back. Subclasses override; harmless when called twice."""
        self.close_table()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


cdef int checked(int status) except -1:
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return status
