"""A connected UDP socket whose datagrams are sent and received through an io_uring."""

from libc.stdint cimport int64_t, uint16_t, uint32_t

from cython_ext.sockets.udp cimport UdpState, UdpTransport
from cython_ext.sockets.uring cimport Ring, Sends

cdef enum:
    MOST_SLOTS = 512          # datagrams that lie in our buffers at a time


cdef struct UringUdpState:
    Ring ring
    Sends sends
    UdpState *udp
    bint multishot            # one request receives all datagrams, each into a buffer of its own
    bint defers               # what is posted goes out with the next wait, in one system call
    bint armed                # a request to receive is under way
    int error                 # of a completion, to be told by the next operation
    # datagrams by number, in the order in which they came
    uint32_t came
    uint32_t handed           # to the loop
    uint32_t released         # by the loop
    bint in_lots              # one look may bring more than the loop takes at a time, all of which came then
    int64_t brought_at        # then: when the last look that brought a datagram was taken
    uint16_t[MOST_SLOTS] slot
    uint32_t[MOST_SLOTS] length


cdef class UringUdpTransport(UdpTransport):
    cdef UringUdpState uring
