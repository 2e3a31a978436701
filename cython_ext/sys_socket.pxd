"""<sys/socket.h>: sending and receiving, one datagram and many."""

from posix.time cimport timespec


cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "sys/socket.h" nogil:
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: MSG_TRUNC
    enum: MSG_WAITALL
    enum: MSG_WAITFORONE
    enum: SHUT_WR

    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int shutdown(int fd, int how)
