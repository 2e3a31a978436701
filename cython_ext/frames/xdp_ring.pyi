from cython_ext.core.pinned import PinnedBuffer
from cython_ext.frames.link import FrameLink

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
        largest: int = 1514,
        qpn: int | None = None,
    ) -> None: ...
