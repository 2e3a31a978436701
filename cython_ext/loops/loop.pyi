from typing import Literal

from cython_ext.core.transport import Transport
from cython_ext.core.trial import Trial

ENDED: dict[int, Literal["complete", "limit", "finished", "nothing"]]

def run(trial: Trial, transport: Transport, pattern: str, role: str, rest: int = 0, settle_ns: int = 0) -> int: ...
