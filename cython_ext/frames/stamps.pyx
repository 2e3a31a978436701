# cython: language_level=3, boundscheck=False, wraparound=False
"""StageStamps: the stages inside of an endpoint that no kernel probe sees, stamped by the endpoint itself.

Only the traced twin of a trial has them: each stamp reads the clock.
"""

import numpy as np

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.core.payload cimport GOOD, glance, sequence_of

from cython_ext.core.trial import touched


cdef void keep(Stamps *s, const char *data, uint32_t size, uint32_t trial, bint checked, uint32_t in_place,
               int64_t seen, int64_t parsed, int64_t looked_up, int64_t verified=0) noexcept nogil:
    cdef uint64_t at
    if glance(data, size, trial) != GOOD:
        return
    s.delivered_bytes += size
    s.in_place_bytes += in_place
    if checked:
        s.checked_bytes += size
    at = sequence_of(data, size) - s.first
    if at < s.count:  # what was before `first` has become a very large number
        s.seen[at] = seen
        s.parsed[at] = parsed
        s.looked_up[at] = looked_up
        s.verified[at] = verified


cdef class StageStamps:
    """The stamps of messages `first` to `first + count - 1` of a trial, and how its payloads were handled.

    `seen` (the descriptor was found done), `parsed`, `looked_up` (of RoCE: it is the packet that is expected) and
    `verified` (RoCE's ICRC): int64 arrays of `count` CLOCK_MONOTONIC nanoseconds, 0 if the message did not come. They
    belong to this object.

    :param first: sequence number
    :param count: how many messages
    """

    def __init__(self, uint64_t first, uint64_t count):
        cdef int64_t[::1] view
        self.seen, self.parsed, self.looked_up, self.verified = (
            touched(max(count, <uint64_t> 1), np.int64) for _ in range(4))
        view = self.seen
        self.state.seen = &view[0]
        view = self.parsed
        self.state.parsed = &view[0]
        view = self.looked_up
        self.state.looked_up = &view[0]
        view = self.verified
        self.state.verified = &view[0]
        self.state.first = first
        self.state.count = count

    def counts(self) -> dict:
        """Payload bytes, warm-up included.

        :return: `payload_bytes` delivered; `in_place_bytes` of them, which lie where the device wrote them;
            `checked_bytes`, read to verify a checksum; `summed_bytes`, read to compute it for what was sent;
            `sent_bytes`
        """
        return {
            "payload_bytes": self.state.delivered_bytes, "in_place_bytes": self.state.in_place_bytes,
            "checked_bytes": self.state.checked_bytes, "summed_bytes": self.state.summed_bytes,
            "sent_bytes": self.state.sent_bytes,
        }
