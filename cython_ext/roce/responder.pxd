"""The responder: executes requests in the order of their numbers, and answers (9.7.4, 9.7.5)."""

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.frames.link cimport Frame
from cython_ext.frames.packet cimport IPV4, UDP_HEADER, load32
from cython_ext.headers.infiniband_verbs cimport IBV_WC_RECV, IBV_WC_SUCCESS
from cython_ext.roce.connection cimport IN_FRAME, Connection, PlainHeaders, ReceiveRequest, complete_receive, psn_after
from cython_ext.roce.icrc cimport ICRC, icrc_end
from cython_ext.roce.packet cimport (
    ACK_REQUEST,
    AETH,
    BTH,
    ETHERNET,
    PSN_MASK,
    SYNDROME_ACK,
    Packet,
    big32,
    swap32,
)

cdef enum:
    PLAIN = ETHERNET + IPV4 + UDP_HEADER    # bytes in front of the BTH

# A request that has come, whole and with the right ICRC.
cdef void take_request(Connection *c, const Packet *p) noexcept nogil
# What is owed, as far as the link has room. Called once a batch of packets, so one ACK answers for all of them.
cdef void send_responses(Connection *c) noexcept nogil

# Build what all ACKs have in common; once the other end is known.
cdef void learn_ack(Connection *c) noexcept nogil


cdef inline void owe_ack(Connection *c, uint32_t psn) noexcept nogil:
    """Acknowledge everything up to `psn`: one ACK for a whole batch (9.7.5.1.2)."""
    if not c.ack_due:
        c.ack_due = True
        c.ack_syndrome = SYNDROME_ACK
        c.ack_psn = psn
    # the later number replaces the earlier: an ACK is for everything up to its own; a NAK that has not gone yet says
    # more, and acknowledges the packets before it too
    elif c.ack_syndrome == SYNDROME_ACK:
        c.counters.acks_coalesced += 1
        c.ack_psn = psn


# --- the quick ways, of a SEND ONLY that is delivered where it lies, and of an ACK ----------------------------------

cdef inline bint take_plain_send(Connection *c, const Frame *frame) noexcept nogil:
    """A frame that has the headers of `c.plain`. False: nothing was done, and `take_request` says what it is."""
    cdef char *at = frame.data + PLAIN
    cdef const PlainHeaders *plain = &c.plain
    cdef const ReceiveRequest *request = &c.receives[c.receive_oldest & c.receive_mask]
    cdef uint32_t psn = load32(at + 8), word = swap32(psn)
    # whole, with the number that is expected, within no message, and a receive request that is long enough
    if (frame.size < PLAIN + BTH + ICRC + plain.covered or word & PSN_MASK != c.expected_psn or c.message
            or c.receive_oldest == c.receive_posted or plain.size > request.length):
        return False
    if c.quick.one(plain.sum, psn, at + BTH, plain.covered) != load32(at + BTH + plain.covered):
        return False
    # executed, as take_send does it
    complete_receive(c, IBV_WC_SUCCESS, IBV_WC_RECV, plain.size, 0, IN_FRAME, at + BTH)
    if word & ACK_REQUEST:
        owe_ack(c, c.expected_psn)
    c.expected_psn = psn_after(c.expected_psn, 1)
    c.messages += 1
    c.msn = psn_after(c.msn, 1)
    c.nak_sent = False
    c.counters.packets += 1
    c.counters.in_frames += plain.size
    return True


cdef inline bint send_plain_ack(Connection *c) noexcept nogil:
    """The ACK that is owed, if nothing else is: number and AETH are all that differs from the one before.

    False: nothing was done, and `send_responses` has to.
    """
    cdef uint32_t psn = swap32(c.ack_psn)
    cdef uint64_t aeth = swap32(<uint32_t> SYNDROME_ACK << 24 | c.msn)
    if not c.ack_due or c.ack_syndrome != SYNDROME_ACK or c.response_head != c.response_tail or (
            c.ack.shared.version == 0):
        return False
    # AETH and ICRC, as they lie in memory on a machine that keeps the lowest byte first
    if not c.gather.append_one(c.gather.me, &c.ack.shared, NULL, 0, psn,
                               aeth | <uint64_t> icrc_end(c.quick.word(c.ack.register, psn | aeth << 32)) << 32):
        return False
    c.ack_due = False
    c.counters.acks_sent += 1
    c.counters.sent += 1
    return True
