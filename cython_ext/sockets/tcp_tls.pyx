# cython: language_level=3
"""kTLS: TCP whose records the kernel makes and opens itself; the loops send and receive as over TCP.

Each end encrypts with a key of its own, which the other end is told on the control pipe, where a program would have the
handshake of its TLS library. What is measured is the record layer (Documentation/networking/tls.rst): no handshake, no
certificate, no close_notify. The keys are the trial's, known to everybody, and protect nothing.
"""

import errno
import re
import socket
import struct
from pathlib import Path

from cython_ext.sockets.tcp cimport TcpTransport

from hwrx.errors import MachineError, PathError

# linux/tls.h, linux/tcp.h, linux/socket.h; Python's socket module does not have them
SOL_TLS = 282
TCP_ULP = 31
TLS_TX, TLS_RX = 1, 2
TLS_1_3_VERSION = 0x0304
TLS_CIPHER_AES_GCM_128 = 51
# struct tls12_crypto_info_aes_gcm_128: version and cipher, then iv, key, salt and the first record's number
HEAD = struct.Struct("=HH")
KEY_BYTES = 8 + 16 + 4 + 8
SAID = re.compile(r"^(name|driver|priority)\s*: (.*)$", re.MULTILINE)


def cipher_driver(ciphers: str) -> str:
    """Return the driver that the kernel takes for AES-GCM: the one of highest priority, "" if none is named.

    :param ciphers: what /proc/crypto says
    """
    found = [dict(SAID.findall(each)) for each in ciphers.split("\n\n")]
    found = [each for each in found if each.get("name") == "gcm(aes)"]
    return max(found, key=lambda each: int(each["priority"]))["driver"] if found else ""


cdef class TlsTransport(TcpTransport):
    """One end of a TCP path with the kernel's TLS 1.3, AES-128-GCM.

    :param key: KEY_BYTES that this end sends with; the other end hears of it by `describe`
    :param rest: TcpTransport's
    :raises ValueError: if the key has another length
    """

    def __init__(self, sock, *, bytes key, **rest):
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of TLS has {KEY_BYTES} bytes here, not {len(key)}")
        self.key = key
        TcpTransport.__init__(self, sock, **rest)

    def describe(self):
        """As TcpTransport, with `tls_key`: what this end sends with, in hexadecimal digits."""
        return {**TcpTransport.describe(self), "tls_key": self.key.hex()}

    def connect(self, remote):
        """As TcpTransport; then both directions are handed to the kernel's TLS.

        :param remote: what `describe` of the other end returned
        :raises PathError: if the peer cannot be reached, or names no key
        :raises MachineError: if this kernel has no TLS, or not this cipher
        """
        TcpTransport.connect(self, remote)
        try:
            theirs = bytes.fromhex(remote["tls_key"])
        except (KeyError, TypeError, ValueError):
            theirs = b""
        if len(theirs) != KEY_BYTES:
            raise PathError("the other end names no key of TLS, so nothing that it sends could be read")
        head = HEAD.pack(TLS_1_3_VERSION, TLS_CIPHER_AES_GCM_128)
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            self.sock.setsockopt(SOL_TLS, TLS_TX, head + self.key)
            self.sock.setsockopt(SOL_TLS, TLS_RX, head + theirs)
        except OSError as error:
            raise MachineError(
                f"the kernel's TLS cannot take this connection: {error.strerror}"
                f" ({errno.errorcode.get(error.errno, error.errno)})",
                remedy="modprobe tls, on a kernel with CONFIG_TLS; or the path tcp",
            ) from error
        self.notes["tls"] = "TLS 1.3, AES-128-GCM, by the kernel"
        self.notes["cipher"] = cipher_driver(Path("/proc/crypto").read_text(encoding="utf-8"))

    def explain(self, int status):
        """As SocketTransport; and of records that could not be opened.

        :param status: -errno, FINISHED or a path's own
        """
        if status == -errno.EBADMSG:
            return f"a record from {self.peer} could not be decrypted (EBADMSG): it was changed on its way"
        return TcpTransport.explain(self, status)
