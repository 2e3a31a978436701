"""Sending with MSG_ZEROCOPY, for every socket path whose state begins with its Waiter."""

from cython_ext.core.transport cimport Ops
from cython_ext.sockets.zerocopy cimport ZeroCopy


# Put the operations in front of the path's own, which `ops` holds. The Waiter's `zero` and the ZeroCopy are filled in.
cdef void install(ZeroCopy *z, Ops *ops) noexcept
