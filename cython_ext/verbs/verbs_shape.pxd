"""What a verbs transport needs of rings, queues and access rights."""

from libc.stdint cimport uint32_t


cdef class Shape:
    cdef readonly int opcode           # of its work requests
    cdef readonly int access           # what the other end may do with the landing ring
    cdef readonly uint32_t slots       # buffers in which messages land
    cdef readonly uint32_t receives    # receive requests posted, which complete at each message: none, or up to slots
    cdef readonly bint into            # these name the buffers; otherwise they carry no address
    cdef readonly uint32_t head        # bytes before the message in each
    cdef readonly uint32_t least       # bytes that each landing buffer takes even if messages are smaller
    cdef readonly uint32_t spare       # send requests and buffers beyond the window
    cdef readonly bint landing_out     # work requests name the landing ring (READ)
    cdef readonly bint datagram        # UD instead of RC
