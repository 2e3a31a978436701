"""Checking what a person wrote, a field at a time, with errors that name the field and say what is allowed there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from hwrx.control.messages import NETEM
from hwrx.errors import UsageError


def convert_field(source: str, key: str, value: Any, kind: Any) -> None:
    """UsageError where the value of a key is not of its type, which it puts into words."""
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        at = str(error).partition(" - at `$")[2].rstrip("`")
        found = _at(value, at)
        raise UsageError(
            f"{source}: {key}{at}: {_show(found)} is not allowed", remedy=allowed_values(kind, at)
        ) from None


def _at(value: Any, where: str) -> Any:
    """Follow msgspec's `[0]` into the value; other steps do not occur in our types."""
    for step in where.replace("]", "").split("["):
        if step.isdecimal() and isinstance(value, list | tuple):
            value = value[int(step)]
    return value


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def allowed_values(kind: Any, at: str = "") -> str:
    """Say in words which values a type takes."""
    return f"allowed: {_words(msgspec.inspect.type_info(kind), at)}"


def _words(info: msgspec.inspect.Type, at: str = "") -> str:
    if isinstance(info, msgspec.inspect.Metadata):
        return _words(info.type, at)
    if isinstance(info, msgspec.inspect.LiteralType):
        return " or ".join(_show(value) for value in info.values)
    if isinstance(info, msgspec.inspect.UnionType):
        return " or ".join(_words(kind, at) for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        inner = _words(info.item_type)
        return inner if at else f"a list of {inner}"
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(info, msgspec.inspect.IntType) else "a number"
        bounds = [
            f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
            for words, bound in (("above", info.gt), ("from", info.ge), ("below", info.lt), ("to", info.le))
            if bound is not None
        ]
        return " ".join([noun, *bounds])
    if isinstance(info, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(info, msgspec.inspect.StrType):
        if info.pattern == NETEM:
            return "netem's words, such as 'loss 1%', 'delay 1ms 100us', 'duplicate 1%' or 'delay 1ms reorder 5%'"
        return "a string" if info.pattern is None else "1 to 64 letters, digits, '.', '_', '-'; no blank"
    if isinstance(info, msgspec.inspect.DictType):
        return "a table" if at == "" else _words(info.value_type)
    return "any value"


def check_known(source: str, key: str, value: str, names: Iterable[str]) -> None:
    """UsageError where a value is none of the names there are."""
    if value not in names:
        close = difflib.get_close_matches(value, list(names), 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(f"{source}: {key}: there is no '{value}'", remedy=f"{hint}allowed: {', '.join(names)}")


def unknown_field(source: str, where: str, names: Iterable[str], key: str | None = None) -> UsageError:
    """The error about a key that nobody knows, with the one that may have been meant."""
    close = difflib.get_close_matches(key or where, list(names), 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(f"{source}: unknown key '{where}'", remedy=f"{hint}allowed: {', '.join(names)}")


def literals_of(kind: Any) -> tuple[str, ...]:
    """The strings that a Literal allows."""
    info = msgspec.inspect.type_info(kind)
    return cast("tuple[str, ...]", tuple(cast("msgspec.inspect.LiteralType", info).values))
