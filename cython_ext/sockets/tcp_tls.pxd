"""A TCP connection whose bytes the kernel encrypts and decrypts (kTLS)."""

from cython_ext.sockets.tcp cimport TcpTransport


cdef class TlsTransport(TcpTransport):
    cdef bytes key
