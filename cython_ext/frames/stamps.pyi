import numpy as np
from numpy.typing import NDArray

class StageStamps:
    seen: NDArray[np.int64]
    parsed: NDArray[np.int64]
    looked_up: NDArray[np.int64]
    verified: NDArray[np.int64]
    def __init__(self, first: int, count: int) -> None: ...
    def counts(self) -> dict[str, int]: ...
