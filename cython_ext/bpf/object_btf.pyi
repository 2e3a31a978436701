from collections.abc import Iterable
from os import PathLike
from typing import Any

def structures(path: str | PathLike[str], names: Iterable[str]) -> dict[str, Any]: ...
