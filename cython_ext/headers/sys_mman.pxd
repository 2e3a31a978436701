"""<sys/mman.h>: what Cython's posix.mman leaves out."""


cdef extern from "sys/mman.h" nogil:
    # Linux 5.14: fault every page in for writing, and say where one cannot be
    enum: MADV_POPULATE_WRITE
    enum: MADV_NOHUGEPAGE
