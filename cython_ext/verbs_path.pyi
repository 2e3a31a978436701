from cython_ext.pinned import PinnedBuffer
from cython_ext.transport import Transport
from cython_ext.verbs_device import Context, Gid, Port, ProtectionDomain
from cython_ext.verbs_queue import QueuePair
from hwrx.control.messages import Prepare
from hwrx.paths.verbs_end import End, Shape

RING_LIMIT: int
READS: int
ACCESS_LOCAL: int
ACCESS_WRITE: int
ACCESS_READ: int

def ring_slots(size: int, wanted: int) -> int: ...

class VerbsTransport(Transport):
    context: Context
    pd: ProtectionDomain
    buffer: PinnedBuffer
    qp: QueuePair
    prepare: Prepare
    port: Port
    gid: Gid
    end: End
    remote: End | None
    path_mtu: int
    def __init__(self, prepare: Prepare, device: str) -> None: ...
    def shape(self) -> Shape: ...
    def failure(self) -> tuple[int, int] | None: ...
    def arrived(self) -> int: ...
