"""A TCP connection whose bytes are sent and received through an io_uring."""

from libc.stdint cimport uint32_t

from cython_ext.sockets.tcp cimport TcpState, TcpTransport
from cython_ext.sockets.uring cimport Ring, Sends


cdef struct UringTcpState:
    Ring ring
    Sends sends
    TcpState *tcp
    bint defers               # what is posted goes out with the next wait, in one system call
    bint armed                # a request to receive is under way
    int error                 # of a completion, to be told by the next operation
    uint32_t gone             # bytes of the request to send that is open which went out by its predecessors


cdef class UringTcpTransport(TcpTransport):
    cdef UringTcpState uring

    cdef int open_for(self, object sock) except -1
