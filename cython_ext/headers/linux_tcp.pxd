"""<linux/tcp.h>: what TCP_ZEROCOPY_RECEIVE is asked and answers. It cannot stand beside <netinet/tcp.h>."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "linux/tcp.h" nogil:
    enum: TCP_ZEROCOPY_RECEIVE

    struct tcp_zerocopy_receive:
        uint64_t address         # in: where to map, page-aligned
        uint32_t length          # in: bytes to map; out: bytes mapped
        uint32_t recv_skip_hint  # out: bytes that follow and have to be read
        int err                  # out: 0, or the socket's error as -errno, which is told once (sock_error)
