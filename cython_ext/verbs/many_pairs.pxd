"""What endpoints with many connections over verbs have in common: the class."""

from cython_ext.core.connections cimport Connections
from cython_ext.verbs.many_requests cimport ManyState
from cython_ext.verbs.verbs_path cimport VerbsTransport
from cython_ext.verbs.verbs_queue cimport SharedReceiveQueue
from cython_ext.verbs.verbs_shape cimport Shape


cdef class ManyPairsTransport(VerbsTransport):
    cdef ManyState m
    cdef readonly Connections connections
    cdef SharedReceiveQueue shared
    cdef list pairs             # a QueuePair for each connection
    cdef list numbers           # first packet sequence number of each
    cdef set_up(self, Shape shape)
