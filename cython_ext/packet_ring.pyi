from cython_ext.link import FrameLink

class PacketRing(FrameLink):
    def __init__(
        self,
        netdev: str,
        mac: str,
        *,
        poll: bool = False,
        block_size: int = 65536,
        blocks: int = 32,
        block_ms: int = 1,
        slots: int = 256,
    ) -> None: ...
