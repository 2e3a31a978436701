# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Asynchronous events of a verbs device: the port that goes down, the queue that overruns, the device that is gone.

Without them an end that waits for a message would learn of none of these before its limit is over: only the end that
has a message on its way gets a completion with error. An endpoint has its device's context to itself, so every event
of a queue that comes in is about its own.
"""

from libc.stdint cimport int64_t, uint8_t

from cython_ext.core.clock cimport now
from cython_ext.core.transport cimport EVENT_STATUS
from cython_ext.headers.infiniband_verbs cimport (
    IBV_EVENT_CQ_ERR,
    IBV_EVENT_DEVICE_FATAL,
    IBV_EVENT_PORT_ACTIVE,
    IBV_EVENT_PORT_ERR,
    IBV_EVENT_QP_ACCESS_ERR,
    IBV_EVENT_QP_FATAL,
    IBV_EVENT_QP_REQ_ERR,
    ibv_ack_async_event,
    ibv_async_event,
    ibv_context,
    ibv_get_async_event,
)
from cython_ext.verbs.verbs_wait cimport BEAT_NS


cdef extern from *:
    """
    #include <poll.h>

    static int hwrx_readable_now(int fd)
    {
        struct pollfd one = {fd, POLLIN, 0};
        return poll(&one, 1, 0) > 0 && (one.revents & POLLIN);
    }
    """
    bint hwrx_readable_now(int fd) nogil


# Those that end a trial; the header's names and values.
EVENTS = {
    "IBV_EVENT_CQ_ERR": IBV_EVENT_CQ_ERR,
    "IBV_EVENT_QP_FATAL": IBV_EVENT_QP_FATAL,
    "IBV_EVENT_QP_REQ_ERR": IBV_EVENT_QP_REQ_ERR,
    "IBV_EVENT_QP_ACCESS_ERR": IBV_EVENT_QP_ACCESS_ERR,
    "IBV_EVENT_DEVICE_FATAL": IBV_EVENT_DEVICE_FATAL,
    "IBV_EVENT_PORT_ERR": IBV_EVENT_PORT_ERR,
}


cdef void start_watch(Watch *watch, ibv_context *context, uint8_t port) noexcept nogil:
    watch.context = context
    watch.port = port
    watch.looked = watch.down_since = 0
    watch.struck = -1


cdef void heed(Watch *watch, const ibv_async_event *event) noexcept nogil:
    cdef int kind = <int> event.event_type
    if kind == <int> IBV_EVENT_PORT_ERR or kind == <int> IBV_EVENT_PORT_ACTIVE:
        if event.element.port_num == watch.port:
            watch.down_since = now() if kind == <int> IBV_EVENT_PORT_ERR else 0
    elif kind in (<int> IBV_EVENT_CQ_ERR, <int> IBV_EVENT_QP_FATAL, <int> IBV_EVENT_QP_REQ_ERR,
                  <int> IBV_EVENT_QP_ACCESS_ERR, <int> IBV_EVENT_DEVICE_FATAL):
        watch.struck = kind
    # the others (migration, a GID that changed, a queue that has drained) change nothing here


cdef int look_for_events(Watch *watch) noexcept nogil:
    cdef ibv_async_event event
    cdef int64_t since = now()
    if watch.context == NULL:
        return 0
    if watch.struck < 0 and since - watch.looked >= BEAT_NS:
        watch.looked = since
        while watch.struck < 0 and hwrx_readable_now(watch.context.async_fd):
            if ibv_get_async_event(watch.context, &event) != 0:
                break
            heed(watch, &event)
            ibv_ack_async_event(&event)
        if watch.down_since and since - watch.down_since >= PORT_GRACE_NS:
            watch.struck = <int> IBV_EVENT_PORT_ERR
    return EVENT_STATUS - watch.struck if watch.struck >= 0 else 0
