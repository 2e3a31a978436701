import socket
from typing import Any

from cython_ext.core.connections import Connections
from cython_ext.sockets.socket_transport import SocketTransport

class ManySocketsTransport(SocketTransport):
    connections: Connections
    def __init__(
        self,
        socks: list[socket.socket],
        *,
        size: int,
        count: int,
        listens: bool,
        manner: str,
        limit: float,
        huge: bool = False,
        notes: dict[str, Any] | None = None,
    ) -> None: ...
