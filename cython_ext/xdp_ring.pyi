from cython_ext.link import FrameLink
from cython_ext.pinned import PinnedBuffer

class XdpRing(FrameLink):
    umem: PinnedBuffer
    zero_copy: bool
    why_copy: str
    mode: str
    def __init__(
        self,
        netdev: str,
        mac: str,
        port: int,
        *,
        queue: int = 0,
        poll: bool = False,
        frames: int = 512,
        zero_copy: bool | None = None,
    ) -> None: ...
