"""The state of an endpoint with many connections over verbs, and the C functions that work on it."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cython_ext.core.connections cimport Arrival
from cython_ext.headers.infiniband_verbs cimport ibv_qp, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_srq, ibv_wc
from cython_ext.verbs.pair_numbers cimport Numbers
from cython_ext.verbs.verbs_ring cimport BATCH, State

cdef enum:
    BUFFERS = 2            # that go out, and own receive requests, of each connection


cdef struct ManyState:
    State *st
    uint32_t count
    ibv_qp **pairs              # of each connection; UD's client: the same one for all
    ibv_srq *shared             # NULL: each queue pair has receive requests of its own
    Numbers numbers             # from a queue pair's number to its connection
    bint one_sided
    bint reads
    bint one_pair               # UD's client: `numbers` are the other end's

    char *out
    uint32_t stride
    uint8_t *turn               # of the connection's two buffers, the next one
    uint8_t *under_way          # of them, those that are the device's
    ibv_send_wr wr
    ibv_sge sge

    char *landing
    uint32_t landing_stride
    uint32_t head               # bytes before the message in each slot: UD's route header
    uint32_t slots
    ibv_recv_wr recv_wr
    ibv_sge recv_sge
    uint32_t held[BATCH]        # slots that the last receive handed out
    uint32_t holder[BATCH]      # and their connections
    uint32_t holds
    ibv_wc wc[BATCH]

    uint32_t *far               # UD: the number of the connection's queue pair at the other end; NULL: RC
    uint64_t foreign            # datagrams from any other queue pair
    uint64_t *asked             # atomics: operations that were posted on the connection; NULL: others
    uint32_t wrong              # atomics: a connection whose counter is not that at the end, or NOT_OURS
    uint64_t says               # and what it says


# Parts of `ManyOps`; `me` is a ManyState.
cdef int many_outgoing(void *me, uint32_t connection, char **message) noexcept nogil
cdef int many_post(void *me, uint32_t connection) noexcept nogil
cdef int many_receive(void *me, Arrival *out, uint32_t most) noexcept nogil
cdef int many_release(void *me) noexcept nogil
cdef int many_finish(void *me) noexcept nogil
# And their pieces.
cdef int post_on(ManyState *m, uint32_t connection, char *at) noexcept nogil
cdef int post_receive(ManyState *m, uint32_t slot, uint32_t connection) noexcept nogil
cdef void poison(ManyState *m, char *at) noexcept nogil
