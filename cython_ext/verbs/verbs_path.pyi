from cython_ext.core.pinned import PinnedBuffer
from cython_ext.core.transport import Transport
from cython_ext.verbs.verbs_device import Context, Gid, Port, ProtectionDomain
from cython_ext.verbs.verbs_queue import QueuePair
from cython_ext.verbs.verbs_shape import Shape
from hwrx.control.messages import Prepare
from hwrx.paths.verbs_end import End
from hwrx.paths.verbs_port import ChosenPort

RING_LIMIT: int
READS: int
ACCESS_LOCAL: int
ACCESS_WRITE: int
ACCESS_READ: int
ACCESS_ATOMIC: int

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
    def __init__(self, prepare: Prepare, chosen_port: ChosenPort) -> None: ...
    def shape(self) -> Shape: ...
    def failure(self) -> tuple[int, int] | None: ...
    def arrived(self) -> int: ...
