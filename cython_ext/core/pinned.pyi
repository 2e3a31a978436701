from types import TracebackType
from typing import Self

from hwrx.errors import MachineError

PRESENT: int
PFN_MASK: int

def huge_page_size() -> int: ...
def no_huge_pages(size: int, page_size: int) -> MachineError: ...

class PinnedBuffer:
    size: int
    page_size: int
    locked: bool
    exports: int
    users: int
    dma_buf: int
    def __init__(
        self,
        size: int,
        *,
        huge: bool = False,
        lock: bool = True,
        dont_fork: bool = True,
        fault_in: bool = True,
        transparent: bool = True,
        memfd: int = -1,
        dma_buf: int = -1,
    ) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def physical_pages(self) -> list[int]: ...
    def close(self) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
