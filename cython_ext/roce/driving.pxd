"""The one function that makes a queue pair move."""

from libc.stdint cimport int64_t, uint32_t

from cython_ext.roce.connection cimport Connection

# Take up to `most` frames that have come (64 in any case), and send what is to be sent; `at`: nanoseconds. How many
# frames came, or the link's error.
cdef int drive(Connection *c, int64_t at, uint32_t most) noexcept nogil
# Of a connection whose link has brought nothing: repeat what was not answered in time. 0, or the link's error.
cdef int look_at_timers(Connection *c, int64_t at) noexcept nogil
# Note what the frames have in common that come most often; once the other end is known.
cdef void learn_plain(Connection *c) noexcept nogil
