import socket
from typing import Any

from cython_ext.sockets.socket_transport import SocketTransport

class UdpTransport(SocketTransport):
    def __init__(
        self,
        sock: socket.socket,
        *,
        size: int,
        window: int,
        batch: int,
        stream: bool,
        trial: int,
        manner: str,
        patience: float,
        limit: float,
        huge: bool = False,
        zerocopy: bool = False,
        notes: dict[str, Any] | None = None,
    ) -> None: ...
    @property
    def slides(self) -> int: ...
