import socket
from typing import Any

from cython_ext.sockets.tcp import TcpTransport

class UringTcpTransport(TcpTransport):
    def __init__(self, sock: socket.socket, *, batch: int, zerocopy: bool = False, **rest: Any) -> None: ...
