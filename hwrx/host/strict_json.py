"""The one way in which hwrx writes JSON: what has no number is null, never NaN, which no other parser takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class OfNumPy(Protocol):
    """A number or an array of NumPy's, known by what it can do: NumPy is imported only by who uses it."""

    @property
    def ndim(self) -> int:
        """Dimensions; 0 of a number."""

    def item(self) -> object:
        """The one value as Python has it."""

    def tolist(self) -> object:
        """All values as Python has them."""


def to_json(content: object, *, indent: int | None = None, default: Callable[[object], object] | None = None) -> str:
    """Return `content` as JSON (RFC 8259), text as it is; floats that are not finite become null.

    :param content: dictionaries, lists and plain values; NumPy's numbers too
    :param indent: spaces a level; None: all on one line
    :param default: makes plain data of anything else
    :raises TypeError: if there is anything else and no `default`
    """
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False, default=default)


def _finite(content: object) -> object:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, OfNumPy):
        return _finite(content.tolist() if content.ndim else content.item())
    return None if isinstance(content, float) and not math.isfinite(content) else content
