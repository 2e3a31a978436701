"""<sys/prctl.h>."""


cdef extern from "sys/prctl.h" nogil:
    enum: PR_SET_TIMERSLACK
    enum: PR_GET_TIMERSLACK

    int prctl(int option, ...)
