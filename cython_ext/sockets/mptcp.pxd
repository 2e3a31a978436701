"""A Multipath TCP connection."""

from cython_ext.sockets.tcp cimport TcpTransport


cdef class MptcpTransport(TcpTransport):
    pass
