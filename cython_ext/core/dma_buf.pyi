from cython_ext.core.pinned import PinnedBuffer

DEVICE: str

def open_dma_buf(size: int, *, huge: bool = False) -> PinnedBuffer: ...
