from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cython_ext.core.meter import Meter

class Trial:
    intended: npt.NDArray[np.int64]
    posted: npt.NDArray[np.int64]
    delivered: npt.NDArray[np.int64]
    meter: Meter
    def __init__(
        self,
        *,
        messages: int,
        size: int,
        warmup: int = 0,
        cooldown: int = 0,
        trial: int = 0,
        batch: int = 1,
        check_every: int = 0,
        sizes: npt.NDArray[np.uint32] | None = None,
        due: npt.NDArray[np.int64] | None = None,
        limit_ns: int = 10_000_000_000,
        counters: Iterable[str] = (),
        patience_ns: int = 500_000_000,
        stamped: bool = True,
        lasts_ns: int = 0,
        closes: bool = True,
    ) -> None: ...
    def counts(self) -> dict[str, int]: ...
    def progress(self) -> int: ...
    def stop(self, total: int = 0) -> None: ...
    @property
    def filled(self) -> bool: ...

def touched(count: int, kind: Any) -> npt.NDArray[Any]: ...
