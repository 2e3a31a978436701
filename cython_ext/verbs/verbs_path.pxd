"""What the verbs transports share: the class that owns what their C functions work on."""

from libc.stdint cimport uint32_t

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport Transport
from cython_ext.verbs.verbs_device cimport Context, ProtectionDomain
from cython_ext.verbs.verbs_queue cimport CompletionChannel, CompletionQueue, QueuePair
from cython_ext.verbs.verbs_region cimport MemoryRegion
from cython_ext.verbs.verbs_registering cimport MessageRegions
from cython_ext.verbs.verbs_ring cimport State
from cython_ext.verbs.verbs_shape cimport Shape


cdef class VerbsTransport(Transport):
    cdef State *st
    cdef readonly Context context
    cdef readonly ProtectionDomain pd
    cdef readonly PinnedBuffer buffer
    cdef readonly QueuePair qp
    cdef MemoryRegion out_mr
    cdef MemoryRegion landing_mr
    cdef MessageRegions each          # of what goes out, if each message is registered; or None
    cdef CompletionChannel send_channel
    cdef CompletionChannel recv_channel
    cdef CompletionQueue send_cq
    cdef CompletionQueue recv_cq
    cdef object chosen_port           # hwrx.paths.verbs_port.ChosenPort
    cdef readonly object prepare      # hwrx.control.messages.Prepare
    cdef readonly object port         # Port
    cdef readonly object gid          # Gid
    cdef readonly object end          # End: what the other end is told
    cdef readonly object remote       # End of the other side, once connected
    cdef readonly uint32_t path_mtu   # bytes
    cdef object managed               # cython_ext.verbs.rdma_cm.ManagedConnection, if RDMA-CM connects; or None
    cdef object counted               # hw_counters when the endpoint was made: a dict
    cdef bint completes_by_send       # READ: deliveries are completions of the send queue
    cdef set_up(self, Shape shape)
    cdef void register_each(self, MessageRegions each) noexcept
    cdef void release_rings(self) noexcept
