"""HandedLink: frames that Python hands in, and takes out."""

from libc.stdint cimport uint32_t

from cython_ext.frames.link cimport FrameLink


cdef struct HandedState:
    char *memory            # incoming slots, then outgoing ones
    uint32_t *incoming_sizes
    uint32_t *outgoing_sizes
    uint32_t slots          # of either
    uint32_t slot_size
    uint32_t handed         # free-running: frames handed in,
    uint32_t taken          # taken from the link,
    uint32_t given          # and given back
    uint32_t refused        # of those taken and not given back
    uint32_t sent
    uint32_t fetched


cdef class HandedLink(FrameLink):
    cdef HandedState state
