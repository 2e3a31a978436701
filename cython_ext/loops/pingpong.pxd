"""The loops of a ping-pong's two ends; see loop.pyx."""

from cython_ext.core.transport cimport Ops
from cython_ext.core.trial cimport Trial


# `rest`: iterations of two instructions that the client executes before each message
cdef int pingpong_client(Trial t, const Ops *ops, unsigned long rest) noexcept nogil
# `paced`: the client is an open loop
cdef int answering_server(Trial t, const Ops *ops, bint paced) noexcept nogil
