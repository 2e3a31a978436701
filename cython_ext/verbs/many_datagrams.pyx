# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""UD over many connections: the client has one queue pair, which talks to as many of the server's.

That is what UD is taken for: RC needs a queue pair for each peer, whose context a device must keep at hand, while one
UD queue pair reaches everybody. So the client, whose times are measured, has one queue pair, one send queue and one
receive queue, however many there are to talk to; the server's queue pairs stand for the peers. They are behind one
port, and an address handle says no more than the way to a port: one is enough, and each request names the number of
the queue pair beside it.

A message is told apart by the numbers in its completion: the client's by its sender (`src_qp`), the server's by the
queue pair that it came on. What any other queue pair sends is counted (`foreign`) and not looked at. There are no
credits, as a stream has them: each connection has one message under way, for which there is a buffer.
"""

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc

from cython_ext.headers.infiniband_verbs cimport IBV_WR_SEND
from cython_ext.verbs.many_pairs cimport ManyPairsTransport
from cython_ext.verbs.many_requests cimport ManyState, many_post
from cython_ext.verbs.pair_numbers cimport note_number
from cython_ext.verbs.verbs_queue cimport AddressHandle
from cython_ext.verbs.verbs_shape cimport Shape

from cython_ext.verbs.ud import GRH_BYTES, check_datagram, way_to
from cython_ext.verbs.verbs_queue import QKEY


cdef int datagram_post(void *me, uint32_t connection) noexcept nogil:
    cdef ManyState *m = <ManyState *> me
    m.wr.wr.ud.remote_qpn = m.far[connection]
    return many_post(me, connection)


@cython.no_gc_clear
cdef class ManyDatagramsTransport(ManyPairsTransport):
    """One UD queue pair of the client, and one of the server for each connection.

    :param prepare, chosen_port: VerbsTransport's
    :raises UsageError: if a message is larger than the path's MTU
    """
    cdef AddressHandle way

    def shape(self):
        """Receive buffers with room for the route header."""
        check_datagram(self)
        return Shape(opcode=IBV_WR_SEND, access=0, datagram=True, head=GRH_BYTES, slots=1, receives=1)

    cdef set_up(self, Shape shape):
        cdef ManyState *m = &self.m
        m.far = <uint32_t *> calloc(self.prepare.setting.connections, sizeof(uint32_t))
        if m.far == NULL:
            raise MemoryError
        ManyPairsTransport.set_up(self, shape)
        self.connections.ops.post = datagram_post
        self.ops.lossy = True

    def _connect(self, there):
        cdef ManyState *m = &self.m
        cdef uint32_t k
        check_datagram(self)
        for k, (qpn, _) in enumerate(self._far_pairs(there)):
            m.far[k] = qpn
            if m.one_pair:
                note_number(&m.numbers, qpn, k)
        # UD gets to RTS without a peer: the address goes with each request.
        for pair, psn in zip(self.pairs[:1] if m.one_pair else self.pairs, self.numbers, strict=False):
            pair.connect(psn=psn)
        self.way = way_to(self, there)
        m.wr.wr.ud.ah = self.way.ptr
        m.wr.wr.ud.remote_qkey = QKEY

    def counts(self):
        """As of many queue pairs; and `foreign`."""
        return {**ManyPairsTransport.counts(self), "foreign": self.m.foreign}

    def _close_path(self):
        ManyPairsTransport._close_path(self)
        if self.way is not None:
            self.way.close()
