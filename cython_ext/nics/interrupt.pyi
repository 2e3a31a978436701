from collections.abc import Callable

class Interrupt:
    kind: str
    @property
    def fd(self) -> int: ...
    @property
    def fired(self) -> int: ...
    def __init__(
        self,
        kind: str,
        fd: int,
        *,
        unmask: tuple[int, bytes, int] | None = None,
        keeps: int = 0,
        on_close: Callable[[], object] | None = None,
    ) -> None: ...
    def wait_for(self, seconds: float) -> bool: ...
    def rearm(self) -> None: ...
    def close(self) -> None: ...
