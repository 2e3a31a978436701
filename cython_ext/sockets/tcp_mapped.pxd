"""A TCP connection whose receiver maps the pages that its messages arrived in (TCP_ZEROCOPY_RECEIVE)."""

from cython_ext.sockets.tcp cimport TcpTransport


cdef class MappedTcpTransport(TcpTransport):
    cdef int map_window(self) except -1
