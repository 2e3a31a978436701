from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

from typing_extensions import Buffer

from cython_ext.frames.link import FrameLink
from cython_ext.roce.memory_region import MemoryRegion, ProtectionDomain

MTUS: tuple[int, ...]
VERBS: dict[str, int]

class WorkCompletion(NamedTuple):
    wr_id: int
    status: str
    opcode: str
    size: int
    immediate: int | None

class RoceQueuePair:
    link: FrameLink
    domain: ProtectionDomain
    def __init__(
        self,
        link: FrameLink,
        domain: ProtectionDomain,
        *,
        qpn: int,
        mtu: int = 1024,
        send_depth: int = 128,
        receive_depth: int = 128,
        reads: int = 4,
        window: int = 64,
        access: Iterable[str] = ...,
    ) -> None: ...
    def connect(
        self,
        headers: Buffer,
        qpn: int,
        *,
        expects: int,
        begins: int,
        mtu: int | None = None,
        timeout: int = 14,
        retry_count: int = 7,
        rnr_retry: int = 7,
        min_rnr_timer: int = 12,
    ) -> None: ...
    def use_landing(self) -> None: ...
    def post_receive(
        self, region: MemoryRegion, offset: int = 0, size: int | None = None, *, wr_id: int = 0
    ) -> None: ...
    def post_send(
        self,
        verb: str,
        region: MemoryRegion | None = None,
        offset: int = 0,
        size: int | None = None,
        *,
        wr_id: int = 0,
        key: int = 0,
        address: int = 0,
        immediate: int = 0,
        compare: int = 0,
        swap: int = 0,
        signaled: bool = True,
        solicited: bool = False,
    ) -> None: ...
    def progress(self, at: int | None = None, *, most: int = 64) -> int: ...
    def wait(self, seconds: float) -> bool: ...
    def take_aside(self) -> bytes | None: ...
    def poll_sends(self, most: int = 64) -> list[WorkCompletion]: ...
    def poll_receives(self, most: int = 64) -> list[WorkCompletion]: ...
    @property
    def state(self) -> str: ...
    @property
    def qpn(self) -> int: ...
    @property
    def unfinished(self) -> int: ...
    @property
    def next_event(self) -> int | None: ...
    @property
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
