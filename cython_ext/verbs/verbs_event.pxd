"""What a device says unasked: asynchronous events, looked for while nothing else comes."""

from libc.stdint cimport int64_t, uint8_t

from cython_ext.headers.infiniband_verbs cimport ibv_context

cdef enum:
    # A port that went down may come back: RC's own retries bridge that long. What lasts longer ends the trial.
    PORT_GRACE_NS = 1_000_000_000


cdef struct Watch:
    ibv_context *context
    uint8_t port
    int64_t looked        # when last, so that a wait which ends often does not pay a system call each time
    int64_t down_since    # 0 while the port is up
    int struck            # the ibv_event_type that ends the trial, or -1


cdef void start_watch(Watch *watch, ibv_context *context, uint8_t port) noexcept nogil
# 0, or EVENT_STATUS - ibv_event_type.
cdef int look_for_events(Watch *watch) noexcept nogil
