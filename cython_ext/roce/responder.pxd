"""The responder: executes requests in the order of their numbers, and answers (9.7.4, 9.7.5)."""

from libc.stdint cimport uint32_t

from cython_ext.roce.connection cimport Connection
from cython_ext.roce.packet cimport SYNDROME_ACK, Packet

# A request that has come, whole and with the right ICRC.
cdef void take_request(Connection *c, const Packet *p) noexcept nogil
# What is owed, as far as the link has room. Called once a batch of packets, so one ACK answers for all of them.
cdef void send_responses(Connection *c) noexcept nogil

# Build what all ACKs have in common; once the other end is known.
cdef void learn_ack(Connection *c) noexcept nogil


cdef inline void owe_ack(Connection *c, uint32_t psn) noexcept nogil:
    """Acknowledge everything up to `psn`: one ACK for a whole batch (9.7.5.1.2)."""
    # a NAK that has not gone yet says more, and acknowledges the packets before it too
    if c.ack_due and c.ack_syndrome != SYNDROME_ACK:
        return
    # the later number replaces the earlier: an ACK is for everything up to its own
    c.counters.acks_coalesced += c.ack_due
    c.ack_due = True
    c.ack_syndrome = SYNDROME_ACK
    c.ack_psn = psn
