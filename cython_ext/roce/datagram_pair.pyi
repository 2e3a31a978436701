from types import TracebackType
from typing import NamedTuple, Self

from typing_extensions import Buffer

from cython_ext.frames.link import FrameLink
from cython_ext.roce.memory_region import MemoryRegion, ProtectionDomain

GRH: int

class DatagramCompleted(NamedTuple):
    wr_id: int
    status: str
    size: int
    source_qpn: int
    immediate: int | None

class DatagramPair:
    link: FrameLink
    domain: ProtectionDomain
    def __init__(
        self,
        link: FrameLink,
        domain: ProtectionDomain,
        *,
        address: str,
        qpn: int,
        qkey: int = 0x11111111,
        mtu: int = 1024,
        send_depth: int = 128,
        receive_depth: int = 128,
    ) -> None: ...
    def post_receive(
        self, region: MemoryRegion, offset: int = 0, size: int | None = None, *, wr_id: int = 0
    ) -> None: ...
    def post_send(
        self,
        headers: Buffer,
        qpn: int,
        region: MemoryRegion | None = None,
        offset: int = 0,
        size: int | None = None,
        *,
        qkey: int = 0x11111111,
        immediate: int | None = None,
        wr_id: int = 0,
    ) -> None: ...
    def progress(self) -> int: ...
    def wait(self, seconds: float) -> bool: ...
    def take_aside(self) -> bytes | None: ...
    def poll_sends(self, most: int = 64) -> list[DatagramCompleted]: ...
    def poll_receives(self, most: int = 64) -> list[DatagramCompleted]: ...
    @property
    def qpn(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
