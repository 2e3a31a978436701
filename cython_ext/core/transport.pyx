# cython: language_level=3
"""The base of every path's endpoint: see transport.pxd for the contract."""

import errno
import os

from libc.stdint cimport uint32_t, uint64_t

from cython_ext.core.payload cimport SMALLEST


cdef class Transport:
    """One end of a path, ready to be driven by `hwrx`'s loops.

    Subclasses own their resources, are context managers, and have an idempotent `close()`. One thread drives an
    endpoint at a time; `interrupt` and `resent` are for another one.

    Attributes: `size`, bytes of each message, or of the longest; `window`, messages that may be outstanding.
    """

    def __cinit__(self, *args, **kwargs):
        # until `vary`: a table of one entry
        self.lengths.of = &self.size
        self.lengths.mask = 0

    def vary(self, const uint32_t[::1] sizes not None):
        """Have messages that differ in size; after the endpoint is made for the longest, and before it is connected.

        Subclasses override, for what they do only then; and only paths that read `mix` are called.

        :param sizes: bytes of message k modulo its length, a power of two; none above `size`; both ends' are the same
        :raises ValueError: if its length is not a power of two, or a size is not within 8 and `size`
        """
        cdef size_t count = sizes.shape[0]
        if count == 0 or count & (count - 1):
            raise ValueError(f"a table of sizes has a power of two of entries, not {count}")
        if min(sizes) < SMALLEST or max(sizes) > self.size:
            raise ValueError(f"sizes are within {SMALLEST} and {self.size} bytes")
        self.sizes = sizes
        self.lengths.of = &sizes[0]
        self.lengths.mask = <uint32_t> (count - 1)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        """Give everything back. Subclasses override; harmless when called twice."""

    def describe(self):
        """What the other end needs to reach this one: a dict of JSON values."""
        return {}

    def connect(self, remote):
        """Take what the other end's `describe` said and get ready to send and receive.

        :param remote: that dict, of JSON values
        :raises PathError: if the other end cannot be reached
        """

    def chosen(self):
        """What was chosen that the user did not say, for the manifest: a dict of JSON values."""
        return {}

    def end_at(self, uint64_t total):
        """For another thread: the trial has so many messages, which was not known when the endpoint was made.

        Of a trial that goes on for a time. For paths whose receiver learns nothing of a message but by the last one.
        """

    def counts(self):
        """What the path counted beyond what the loops count: a dict of whole numbers, which joins the trial's tally."""
        return {}

    def resent(self) -> int:
        """Packets that the path's own recovery has sent again so far; 0 where it has none, or does not tell."""
        return 0

    def interrupt(self) -> bool:
        """For another thread: make a loop on this endpoint end with an error soon; False where that cannot be done."""
        return False

    def explain(self, int status):
        """One sentence for a status that an operation returned.

        :param status: -errno, FINISHED or a path's own
        """
        if status == FINISHED:
            return "the other end closed the connection"
        if WC_STATUS < status < 0:
            return f"{os.strerror(-status)} ({errno.errorcode.get(-status, -status)})"
        return f"status {status}"
