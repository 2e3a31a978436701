"""<sys/socket.h>: sending and receiving, one datagram and many."""

from posix.time cimport timespec


cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "sys/socket.h" nogil:
    enum: MSG_DONTWAIT
    enum: MSG_ERRQUEUE
    enum: MSG_NOSIGNAL
    enum: MSG_PEEK
    enum: MSG_TRUNC
    enum: MSG_WAITALL
    enum: MSG_WAITFORONE
    enum: MSG_ZEROCOPY
    enum: SHUT_WR

    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen

    struct cmsghdr:
        pass

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *part)
    unsigned char *CMSG_DATA(cmsghdr *part)
    int getsockopt(int fd, int level, int option, void *value, unsigned int *length)
    int shutdown(int fd, int how)


cdef extern from "netinet/in.h" nogil:
    enum: IPPROTO_TCP
