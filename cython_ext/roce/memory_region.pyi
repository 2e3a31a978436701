from collections.abc import Iterable
from types import TracebackType
from typing import Self

from typing_extensions import Buffer

ACCESS: dict[str, int]
EVERY_ACCESS: tuple[str, ...]

def access_flags(names: Iterable[str]) -> int: ...

class ProtectionDomain:
    def register(self, memory: Buffer, *, access: Iterable[str] = ...) -> MemoryRegion: ...

class MemoryRegion:
    domain: ProtectionDomain
    key: int
    address: int
    size: int
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
