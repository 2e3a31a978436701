"""The requester: numbers packets, sends them, and sees them acknowledged (9.7.3, 9.7.6)."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.roce.connection cimport Connection, SendRequest, psn_after
from cython_ext.roce.packet cimport Packet

# Give the request at `posted` its numbers, and post it.
cdef void post_request(Connection *c) noexcept nogil
# Say what the request at `posted`, which is filled, has in common with the one before it.
cdef void liken(Connection *c, SendRequest *request) noexcept nogil
# A response that has come, whole and with the right ICRC; `at` is the time, in nanoseconds.
cdef void take_response(Connection *c, const Packet *p, int64_t at) noexcept nogil
# The same of an ACK with this BTH and AETH, if nothing but plain requests is under way; else nothing is done: False.
cdef bint take_plain_ack(Connection *c, const char *bth, int64_t at) noexcept nogil
# Look at the timer, and send what may be sent.
cdef void send_requests(Connection *c, int64_t at) noexcept nogil


cdef inline void number_request(Connection *c, SendRequest *request, bint answered, uint32_t packets) noexcept nogil:
    """The request at `posted` is whole. Numbered when it is posted, so that sending, and sending again, is the same."""
    request.answered = answered
    request.first = c.new_psn
    request.packets = packets
    c.new_psn = psn_after(c.new_psn, packets)
    c.posted += 1
