from cython_ext.core.pinned import PinnedBuffer
from cython_ext.verbs.verbs_device import ProtectionDomain

class MemoryRegion:
    pd: ProtectionDomain
    buffer: PinnedBuffer
    offset: int
    length: int
    def __init__(
        self,
        pd: ProtectionDomain,
        buffer: PinnedBuffer,
        offset: int,
        length: int,
        access: int,
        *,
        kind: str = "pinned",
    ) -> None: ...
    @property
    def lkey(self) -> int: ...
    @property
    def rkey(self) -> int: ...
    def close(self) -> None: ...
