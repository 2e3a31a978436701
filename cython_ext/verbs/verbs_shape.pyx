# cython: language_level=3
"""Shape: what a verbs transport needs of rings, queues and access rights."""

from libc.stdint cimport uint32_t


cdef class Shape:
    """What a verbs transport needs: sizes in bytes, opcodes and access flags as `infiniband/verbs.h` numbers them.

    :param opcode: of its work requests
    :param access: what the other end may do with the landing ring
    :param slots: buffers in which messages land
    :param receives: receive requests posted, which complete at each message: none, or no more than slots
    :param into: these name the buffers; otherwise they carry no address
    :param head: bytes before the message in each buffer
    :param least: bytes that each landing buffer takes even if messages are smaller
    :param spare: send requests and buffers beyond the window
    :param landing_out: work requests name the landing ring (READ)
    :param datagram: UD instead of RC
    """

    def __init__(self, *, int opcode, int access, uint32_t slots, uint32_t receives, bint into=True, uint32_t head=0,
                 uint32_t least=0, uint32_t spare=0, bint landing_out=False, bint datagram=False):
        self.opcode = opcode
        self.access = access
        self.slots = slots
        self.receives = receives
        self.into = into
        self.head = head
        self.least = least
        self.spare = spare
        self.landing_out = landing_out
        self.datagram = datagram
