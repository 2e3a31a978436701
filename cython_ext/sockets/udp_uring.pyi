import socket
from typing import Any

from cython_ext.sockets.udp import UdpTransport

class UringUdpTransport(UdpTransport):
    def __init__(
        self,
        sock: socket.socket,
        *,
        batch: int,
        pattern: str,
        multishot: bool = False,
        zerocopy: bool = False,
        **rest: Any,
    ) -> None: ...
