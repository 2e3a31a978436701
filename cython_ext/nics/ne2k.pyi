from typing import Any

from cython_ext.core.pinned import PinnedBuffer
from cython_ext.frames.link import FrameLink
from cython_ext.nics.interrupt import Interrupt

class Ne2kLink(FrameLink):
    interrupt: Interrupt | None
    memory: PinnedBuffer
    def __init__(
        self, device: Any, port: int, *, width: int = 2, interrupt: Interrupt | None = None, slots: int = 64
    ) -> None: ...
    def start(self) -> None: ...
