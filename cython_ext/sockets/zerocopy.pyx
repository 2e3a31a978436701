# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""MSG_ZEROCOPY's notifications: taken from the error queue, and waited for."""

from libc.errno cimport EAGAIN, EINTR, EPROTO
from libc.errno cimport errno as c_errno
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset
from posix.time cimport timespec

from cython_ext.headers.linux_errqueue cimport (
    SO_EE_CODE_ZEROCOPY_COPIED,
    SO_EE_ORIGIN_ZEROCOPY,
    sock_extended_err,
)
from cython_ext.headers.sys_poll cimport pollfd, ppoll
from cython_ext.headers.sys_socket cimport (
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_NXTHDR,
    MSG_DONTWAIT,
    MSG_ERRQUEUE,
    cmsghdr,
    msghdr,
    recvmsg,
)

cdef enum:
    CONTROL = 256  # bytes: a sock_extended_err and the address that may follow it


cdef int note(ZeroCopy *z, const sock_extended_err *said) noexcept nogil:
    """One notification: calls `ee_info` to `ee_data`. 0, or -errno where the queue speaks of something else."""
    cdef uint32_t number, count
    cdef Call *call
    if said.ee_errno != 0 or said.ee_origin != SO_EE_ORIGIN_ZEROCOPY:
        return -<int> said.ee_errno if said.ee_errno else -EPROTO
    number = said.ee_info
    count = said.ee_data - said.ee_info + 1
    if count > z.open:
        return -EPROTO  # of calls that were never made
    z.notified += 1
    while count:
        call = &z.made[number & (CALLS - 1)]
        z.held[call.slot] -= 1
        z.open -= 1
        if said.ee_code & SO_EE_CODE_ZEROCOPY_COPIED:
            z.copied += call.bytes
        number += 1
        count -= 1
    return 0


cdef int harvest(ZeroCopy *z, int fd) noexcept nogil:
    """Take what the error queue holds, without waiting: 0 or -errno."""
    cdef char[CONTROL] control
    cdef sock_extended_err said
    cdef msghdr message
    cdef cmsghdr *part
    cdef int status
    while z.open:
        memset(&message, 0, sizeof(message))
        message.msg_control = control
        message.msg_controllen = CONTROL
        if recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0:
            return 0 if c_errno in (EAGAIN, EINTR) else -c_errno
        part = CMSG_FIRSTHDR(&message)
        while part != NULL:
            # the one part there is: IP_RECVERR, or IPV6_RECVERR
            memcpy(&said, CMSG_DATA(part), sizeof(said))
            status = note(z, &said)
            if status < 0:
                return status
            part = CMSG_NXTHDR(&message, part)
    return 0


cdef int wait_notified(ZeroCopy *z, int fd, int64_t timeout_ns) noexcept nogil:
    """Sleep until the error queue says something, no longer than `timeout_ns`, and take it: 0 or -errno."""
    cdef timespec limit
    cdef pollfd one
    limit.tv_sec = timeout_ns // 1000000000
    limit.tv_nsec = timeout_ns % 1000000000
    one.fd = fd
    one.events = 0  # POLLERR is reported unasked
    if ppoll(&one, 1, &limit, NULL) < 0 and c_errno != EINTR:
        return -c_errno
    return harvest(z, fd)
