"""Plain data from TOML and as TOML, which the standard library can read but not write."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from hwrx.errors import UsageError


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML; UsageError names `source` and the place. A byte order mark at its beginning is passed over."""
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # besides its own error: a number of 5000 digits, lists in lists
        raise UsageError(f"{source}: not valid TOML: {error}") from error


def to_toml(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> str:
    """Write plain data as TOML: values first, then sub-tables, as the format demands."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in table.items():
        if isinstance(value, dict):
            inner = (*prefix, key)
            text += f"\n[{'.'.join(map(_key, inner))}]\n" + to_toml(value, inner)
    return text


def _key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's strings, numbers and booleans are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
