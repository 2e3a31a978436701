from typing import Any

from cython_ext.core.transport import Transport
from cython_ext.frames.link import FrameLink
from cython_ext.frames.stamps import StageStamps
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.queue_pair import RoceQueuePair
from hwrx.control.messages import Prepare
from hwrx.paths.roce_port import RocePort
from hwrx.paths.verbs_end import End

class RoceTransport(Transport):
    link: FrameLink
    domain: ProtectionDomain
    pair: RoceQueuePair
    prepare: Prepare
    end: End
    stamps: StageStamps | None
    def __init__(self, prepare: Prepare, port: RocePort) -> None: ...
    def stamp_stages(self, first: int, count: int) -> None: ...
    def counts(self) -> dict[str, int]: ...
    def chosen(self) -> dict[str, Any]: ...
