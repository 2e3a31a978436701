from pathlib import Path

from hwrx.errors import MachineError

DISABLED: Path

def why_no_ring(error: int) -> MachineError: ...
