# cython: language_level=3
"""The base of every path's endpoint: see transport.pxd for the contract."""

import errno
import os


cdef class Transport:
    """One end of a path, ready to be driven by `hwrx`'s loops.

    Subclasses own their resources, are context managers, and have an idempotent `close()`. One thread drives an
    endpoint at a time; `interrupt` and `resent` are for another one.

    Attributes: `size`, bytes of each message; `window`, messages that may be outstanding.
    """

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
