"""RoceTransport: a queue pair of our own, over a link of frames, as a path."""

from cython_ext.core.pinned cimport PinnedBuffer
from cython_ext.core.transport cimport Transport
from cython_ext.frames.link cimport FrameLink
from cython_ext.frames.stamps cimport StageStamps
from cython_ext.roce.memory_region cimport MemoryRegion, ProtectionDomain
from cython_ext.roce.queue_pair cimport RoceQueuePair
from cython_ext.roce.roce_ops cimport RoceState


cdef class RoceTransport(Transport):
    cdef RoceState state
    cdef readonly FrameLink link
    cdef readonly ProtectionDomain domain
    cdef readonly RoceQueuePair pair
    cdef readonly StageStamps stamps
    cdef PinnedBuffer out
    cdef object landing             # the buffer behind `landing`; None where frames are the receive buffers
    cdef MemoryRegion out_region
    cdef MemoryRegion landing_region
    cdef readonly object prepare    # hwrx.control.messages.Prepare
    cdef object port                # hwrx.paths.roce_port.RocePort
    cdef readonly object end        # End: what the other end is told
    cdef dict notes

    cdef set_up(self)
    cdef make_buffers(self)
    cdef fill_slots(self)
    cdef choose_ops(self)
