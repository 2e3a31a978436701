"""The one way in which hwrx writes JSON: what has no number is null, never NaN, which no other parser takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def to_json(content: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Return `content` as JSON (RFC 8259), text as it is; floats that are not finite become null.

    :param content: dictionaries, lists and plain values; NumPy's numbers too
    :param indent: spaces a level; None: all on one line
    :param default: makes plain data of anything else
    :raises TypeError: if there is anything else and no `default`
    """
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False, default=default)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if not isinstance(content, str) and hasattr(content, "item"):  # of NumPy; a whole array is no single value
        content = content.tolist() if getattr(content, "ndim", 0) else content.item()
        return _finite(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content
