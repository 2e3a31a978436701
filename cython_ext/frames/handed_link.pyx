# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HandedLink: a link without a wire. What stands between two ends is for whoever carries the frames to decide."""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from cython_ext.frames.link cimport Frame, FrameLink, Link


cdef int take(void *me, Frame *out, uint32_t most) noexcept nogil:
    cdef HandedState *s = <HandedState *> me
    cdef uint32_t count = 0, slot
    while count < most and s.taken != s.handed:
        slot = s.taken % s.slots
        out[count].data = s.memory + <size_t> slot * s.slot_size
        out[count].size = s.incoming_sizes[slot]
        out[count].slot = slot
        out[count].flags = 0
        s.taken += 1
        count += 1
    return <int> count


cdef void refuse(void *me, const Frame *frame) noexcept nogil:
    (<HandedState *> me).refused += 1


cdef int give(void *me, uint32_t count) noexcept nogil:
    cdef HandedState *s = <HandedState *> me
    s.given += count + s.refused
    s.refused = 0
    return 0


cdef int wait(void *me, int64_t deadline) noexcept nogil:
    # nobody hands anything in while we sleep
    return (<HandedState *> me).taken != (<HandedState *> me).handed


cdef int room(void *me, uint32_t most) noexcept nogil:
    cdef HandedState *s = <HandedState *> me
    return <int> min(most, s.slots - (s.sent - s.fetched))


cdef char *buffer(void *me, uint32_t k) noexcept nogil:
    cdef HandedState *s = <HandedState *> me
    return s.memory + <size_t> (s.slots + (s.sent + k) % s.slots) * s.slot_size


cdef int send(void *me, uint32_t count, uint32_t size) noexcept nogil:
    cdef HandedState *s = <HandedState *> me
    cdef uint32_t k
    for k in range(count):
        s.outgoing_sizes[(s.sent + k) % s.slots] = size
    s.sent += count
    return 0


cdef class HandedLink(FrameLink):
    """Frames in memory, for tests and for whoever puts something between two ends.

    :param mac: its address, which nothing is filtered by
    :param slots: frames that it holds in either direction, rounded up to a power of two
    :param largest: bytes of a frame
    """

    def __init__(self, str mac="02:00:00:00:00:01", *, uint32_t slots=256, uint32_t largest=4200):
        cdef HandedState *s = &self.state
        if slots < 1 or largest < 64:
            raise ValueError("a link has at least one slot of 64 bytes")
        if s.memory != NULL:
            raise ValueError("a link is made once")
        slots = s.slots = 1 << (slots - 1).bit_length()
        s.slot_size = (largest + 127) // 64 * 64
        s.memory = <char *> calloc(2 * slots, s.slot_size)
        s.incoming_sizes = <uint32_t *> calloc(slots, sizeof(uint32_t))
        s.outgoing_sizes = <uint32_t *> calloc(slots, sizeof(uint32_t))
        if s.memory == NULL or s.incoming_sizes == NULL or s.outgoing_sizes == NULL:
            raise MemoryError
        self.mac, self.frames, self.largest = mac, slots, largest
        self.table = Link(s, take, refuse, give, wait, room, buffer, send)

    def __dealloc__(self):
        free(self.state.memory)
        free(self.state.incoming_sizes)
        free(self.state.outgoing_sizes)

    def hand_in(self, bytes frame not None) -> bool:
        """Let a frame arrive.

        :return: False if the link is full: the frame is lost
        :raises ValueError: if it is longer than `largest`
        """
        cdef HandedState *s = &self.state
        cdef uint32_t slot = s.handed % s.slots
        if len(frame) > self.largest:
            raise ValueError(f"a frame has at most {self.largest} bytes, not {len(frame)}")
        if s.handed - s.given == s.slots:
            return False
        memcpy(s.memory + <size_t> slot * s.slot_size, <const char *> frame, len(frame))
        s.incoming_sizes[slot] = <uint32_t> len(frame)
        s.handed += 1
        return True

    def take_out(self) -> list:
        """The frames that were sent since the last call, as bytes, oldest first."""
        cdef HandedState *s = &self.state
        cdef char *at
        found = []
        while s.fetched != s.sent:
            at = s.memory + <size_t> (s.slots + s.fetched % s.slots) * s.slot_size
            found.append(at[:s.outgoing_sizes[s.fetched % s.slots]])
            s.fetched += 1
        return found
