from cython_ext.frames.link import FrameLink

def port_filter(port: int) -> bytes: ...

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
        bypass: bool = True,
        only_port: int | None = None,
        largest: int = 1514,
    ) -> None: ...
