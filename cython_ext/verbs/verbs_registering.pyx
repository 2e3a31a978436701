# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Registration of each message: its buffer becomes a memory region in front of its post, and is none when it is sent.

A program whose messages lie wherever they were made has this choice: copy them into memory that is registered, or
register them where they are. Here it is the latter, inside of the timed region, so that its cost is in the figures.
Both calls go through the kernel, which allocates, pins and unpins: that is the path's own work, as all that it does
between two stamps. A post deregisters first what completed since the last one, so in a ping-pong each message bears one
registration and one deregistration, that of the message before it.

What lands is not registered so: the device may write there at any time, and a registration must stand before it does.
Only of READ and the atomics the buffer is one that lands, because its own work request names it.
"""

cimport cython
from libc.errno cimport ENOMEM
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport Ops
from cython_ext.headers.infiniband_verbs cimport ibv_dereg_mr, ibv_mr, ibv_reg_mr
from cython_ext.verbs.verbs_device cimport ProtectionDomain
from cython_ext.verbs.verbs_ring cimport Registering, State, reap


cdef int deregister_to(State *st, uint64_t upto) noexcept nogil:
    """Deregister the buffers of all messages before that one, oldest first: 0, or an error."""
    cdef Registering *r = st.registering
    cdef uint32_t slot
    cdef int error
    while r.deregistered < upto:
        slot = <uint32_t> (r.deregistered % st.window)
        error = ibv_dereg_mr(r.regions[slot])
        if error:
            return -error if error > 0 else error
        r.regions[slot] = NULL
        r.deregistered += 1
    return 0


cdef int register_outgoing(State *st, uint32_t count) noexcept nogil:
    """Register the buffers of the next `count` messages, and tell their work requests: 0, or an error."""
    cdef Registering *r = st.registering
    cdef uint32_t k, slot
    cdef ibv_mr *region
    # A completion says that the device has no more use for the buffer; not before may it be deregistered.
    cdef int status = reap(st) if r.looks else 0
    if status < 0:
        return status
    # Of READ `completed` counts what the loop gave back, so what it holds stays registered, too.
    status = deregister_to(st, st.completed)
    if status < 0:
        return status
    for k in range(count):
        slot = st.slot + k
        if slot >= st.window:
            slot -= st.window
        region = ibv_reg_mr(r.pd, st.out + <size_t> slot * st.stride, st.size, r.access)
        if region == NULL:
            return -c_errno if c_errno else -ENOMEM
        r.regions[slot] = region
        r.registered += 1
        # The key changes each time: rxe's last byte is drawn at random, hardware's is counted.
        st.send_sge[slot].lkey = region.lkey
    return 0


cdef int registering_post(void *me, uint32_t count) noexcept nogil:
    cdef State *st = <State *> me
    cdef int status = register_outgoing(st, count)
    return status if status < 0 else st.registering.post(me, count)


cdef int registering_finish(void *me) noexcept nogil:
    cdef State *st = <State *> me
    cdef int status = st.registering.finish(me)
    # The path has waited for its last completion: nothing is under way that names a region.
    return status if status < 0 else deregister_to(st, st.completed)


@cython.no_gc_clear
cdef class MessageRegions:
    """The regions of a transport that registers each message: made with its rings, closed behind its queue pair.

    :param pd: of the queue pair
    :param buffer: in which the rings are
    """

    def __cinit__(self, ProtectionDomain pd not None, PinnedBuffer buffer not None):
        self.pd = pd
        self.buffer = buffer
        self.shared.pd = pd.ptr

    cdef int begin(self, State *st, int access, bint looks) except -1:
        """Take the transport's state, whose window is settled, and be known to it."""
        self.shared.regions = <ibv_mr **> calloc(st.window, sizeof(ibv_mr *))
        if self.shared.regions == NULL:
            raise MemoryError
        self.buffer.users += 1  # until `close`
        self.shared.access = access
        self.shared.looks = looks
        self.st = st
        st.registering = &self.shared
        return 0

    cdef void stand_before(self, Ops *ops) noexcept:
        """Stand in front of a table of functions whose `me` is a State."""
        self.shared.post = ops.post
        self.shared.finish = ops.finish
        ops.post = registering_post
        ops.finish = registering_finish

    def counts(self) -> dict[str, int]:
        """How many buffers were registered, and deregistered, one by one."""
        return {"registered": self.shared.registered, "deregistered": self.shared.deregistered}

    def close(self):
        """Deregister what a trial that broke off left; harmless when called twice. The queue pair must be gone."""
        cdef uint32_t slot
        if self.shared.regions == NULL:
            return
        for slot in range(self.st.window):
            if self.shared.regions[slot] != NULL:
                ibv_dereg_mr(self.shared.regions[slot])
        free(self.shared.regions)
        self.shared.regions = NULL
        self.st.registering = NULL
        self.buffer.users -= 1

    def __dealloc__(self):
        free(self.shared.regions)
