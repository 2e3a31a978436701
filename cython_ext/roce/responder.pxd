"""The responder: executes requests in the order of their numbers, and answers (9.7.4, 9.7.5)."""

from cython_ext.roce.connection cimport Connection
from cython_ext.roce.packet cimport Packet

# A request that has come, whole and with the right ICRC.
cdef void take_request(Connection *c, const Packet *p) noexcept nogil
# What is owed, as far as the link has room. Called once a batch of packets, so one ACK answers for all of them.
cdef void send_responses(Connection *c) noexcept nogil
