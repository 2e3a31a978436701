"""Frames that are not a queue pair's own, but whoever has its address must answer: neighbour discovery, management."""

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from cython_ext.frames.link cimport Frame
from cython_ext.frames.packet cimport big16
from cython_ext.roce.connection cimport ASIDE, Connection


cdef inline bint is_neighbours(const Frame *frame) noexcept nogil:
    """Whether it is ARP, or ICMPv6, of which neighbour discovery is a part."""
    cdef uint32_t kind = big16(frame.data + 12)
    return frame.size >= 42 and (kind == 0x0806 or kind == 0x86DD and frame.data[20] == 58)


cdef inline void keep_frame(char *kept, uint32_t *size, const Frame *frame) noexcept nogil:
    """Keep a frame, of at most ASIDE bytes. One at a time: whoever asks and is not heard asks again."""
    if size[0] == 0 and frame.size <= ASIDE:
        memcpy(kept, frame.data, frame.size)
        size[0] = frame.size


cdef inline void set_aside(Connection *c, const Frame *frame) noexcept nogil:
    """Keep a frame for `take_aside`."""
    keep_frame(c.aside, &c.aside_size, frame)
