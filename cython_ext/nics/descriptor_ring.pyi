import numpy as np
from numpy.typing import NDArray

from cython_ext.nics.dma import DmaRegion
from cython_ext.nics.mmio import Bar

class Ring:
    bar: Bar
    descriptors: DmaRegion
    buffers: DmaRegion
    count: int
    stride: int
    closed: bool
    def close(self) -> None: ...
    @property
    def table(self) -> NDArray[np.uint64]: ...
    def address(self, index: int) -> int: ...
