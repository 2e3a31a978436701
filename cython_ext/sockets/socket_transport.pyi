from typing import Any

from cython_ext.core.pinned import PinnedBuffer
from cython_ext.core.transport import Transport

MANNERS: dict[str, int]
UNREACHABLE: tuple[int, ...]

def sending_slots(batch: int) -> int: ...
def batch_in_a_piece(batch: int, size: int) -> int: ...
def named(address: tuple[Any, ...]) -> str: ...

class SocketTransport(Transport):
    received: PinnedBuffer
    built: PinnedBuffer
    def resolve(self, remote: dict[str, Any]) -> Any: ...
    def connect_socket(self, remote: dict[str, Any]) -> None: ...
