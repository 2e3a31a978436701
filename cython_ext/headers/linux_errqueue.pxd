"""<linux/errqueue.h>: what a socket's error queue says."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "linux/errqueue.h" nogil:
    enum: SO_EE_ORIGIN_ZEROCOPY
    enum: SO_EE_CODE_ZEROCOPY_COPIED

    struct sock_extended_err:
        uint32_t ee_errno
        uint8_t ee_origin
        uint8_t ee_code
        uint32_t ee_info
        uint32_t ee_data
