from typing import Any

from cython_ext.core.transport import Transport
from cython_ext.frames.link import FrameLink
from cython_ext.frames.packet import PortTable
from cython_ext.frames.stamps import StageStamps

class DatagramTransport(Transport):
    link: FrameLink
    table: PortTable
    address: str
    port: int
    def __init__(
        self,
        link: FrameLink,
        *,
        address: str,
        port: int,
        size: int,
        window: int,
        batch: int,
        stream: bool,
        trial: int,
        patience: float,
        limit: float,
        verify: str = "all",
        look_up: bool = True,
        checksum: bool = True,
        notes: dict[str, Any] | None = None,
    ) -> None: ...
    stamps: StageStamps | None
    def stamp_stages(self, first: int, count: int) -> None: ...
    def counts(self) -> dict[str, int]: ...
