import socket
from typing import Any

from cython_ext.sockets.tcp import TcpTransport

KEY_BYTES: int

def cipher_driver(ciphers: str) -> str: ...

class TlsTransport(TcpTransport):
    def __init__(self, sock: socket.socket, *, key: bytes, **rest: Any) -> None: ...
