# cython: language_level=3
"""Multipath TCP: a TCP socket of the protocol IPPROTO_MPTCP, whose bytes travel on subflows (RFC 8684).

A peer or a box on the way that does not know it makes a plain TCP connection of it, in silence. hwrx looks: a trial
that would have measured TCP under this name is refused.
"""

from cython_ext.sockets.tcp cimport TcpTransport

from hwrx.errors import PathError

# linux/socket.h, linux/mptcp.h; Python's socket module does not have them
SOL_MPTCP = 284
MPTCP_INFO = 1
MPTCP_INFO_FLAG_FALLBACK = 1
FLAGS = slice(8, 12)  # struct mptcp_info: mptcpi_flags, behind six bytes and their padding


cdef class MptcpTransport(TcpTransport):
    """One end of a Multipath TCP connection; arguments are TcpTransport's, `sock` is of IPPROTO_MPTCP."""

    def fell_back(self) -> bool:
        """Whether the connection is plain TCP by now (mptcpi_flags of MPTCP_INFO)."""
        try:
            told = self.sock.getsockopt(SOL_MPTCP, MPTCP_INFO, FLAGS.stop)
        except OSError:
            return True  # older kernels ask the TCP socket that it has become, which does not know the option
        return bool(int.from_bytes(told[FLAGS], "little") & MPTCP_INFO_FLAG_FALLBACK)

    def connect(self, remote):
        """As TcpTransport; then see that it is Multipath TCP.

        :param remote: what `describe` of the other end returned
        :raises PathError: if the peer cannot be reached, or the connection is plain TCP
        """
        TcpTransport.connect(self, remote)
        if self.fell_back():
            raise PathError(
                f"the connection with {self.peer} fell back to TCP: the other end, or something on the way, does not"
                " speak Multipath TCP",
                remedy="sysctl -w net.mptcp.enabled=1 at both ends, and no box between that removes TCP's options; or"
                " the path tcp",
            )
        self.notes["mptcp"] = "Multipath TCP"

    def chosen(self):
        """As TcpTransport; and whether the connection has fallen back since it was made."""
        notes = TcpTransport.chosen(self)
        if "mptcp" in notes and self.sock.fileno() >= 0 and self.fell_back():
            notes["mptcp"] = "fell back to TCP while messages went"
        return notes
