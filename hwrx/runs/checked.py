"""Checking what a person wrote, a field at a time, with errors that name the field and say what is allowed there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import cast

import msgspec

from hwrx.control.messages import MIX, MIX_FORMS, NETEM
from hwrx.errors import UsageError
from hwrx.host.outside import clean_name


def convert_field(source: str, key: str, value: object, kind: object) -> None:
    """UsageError where the value of a key is not of its type, which it puts into words."""
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        at = str(error).partition(" - at `$")[2].rstrip("`")
        found = _at(value, at)
        raise UsageError(
            f"{source}: {clean_name(key)}{at}: {_show(found)} is not allowed", remedy=allowed_values(kind, at)
        ) from None


def _at(value: object, where: str) -> object:
    """Follow msgspec's `[0]` into the value; other steps do not occur in our types."""
    for step in where.replace("]", "").split("["):
        if step.isdecimal() and isinstance(value, list | tuple):
            value = value[int(step)]
    return value


def _show(value: object) -> str:
    """Write a value as the file has it, as far as one line of an error has room for it."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)  # JSON has no inf and no nan
    return clean_name(json.dumps(value, ensure_ascii=False, default=str))


def allowed_values(kind: object, at: str = "") -> str:
    """Say in words which values a type takes."""
    return f"allowed: {_words(msgspec.inspect.type_info(kind), at)}"


def _words(info: msgspec.inspect.Type, at: str = "") -> str:
    if isinstance(info, msgspec.inspect.Metadata):
        return (info.extra_json_schema or {}).get("description") or _words(info.type, at)
    if isinstance(info, msgspec.inspect.LiteralType):
        return " or ".join(_show(value) for value in info.values)
    if isinstance(info, msgspec.inspect.UnionType):
        return " or ".join(_words(kind, at) for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        inner = _words(info.item_type)
        most = "" if info.max_length is None else f", at most {info.max_length} of them"
        return inner if at else f"a list of {inner}{most}"
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
        if info.pattern == MIX:
            return f"a distribution of sizes: {MIX_FORMS}"
        if info.pattern is not None:
            return "1 to 64 letters, digits, '.', '_', '-'; no blank"
        return "a string" if info.max_length is None else f"a string of at most {info.max_length} characters"
    if isinstance(info, msgspec.inspect.DictType):
        return "a table" if at == "" else _words(info.value_type)
    if isinstance(info, msgspec.inspect.StructType):
        return f"a table of {', '.join(field.name for field in info.fields)}"
    return "any value"


def check_known(source: str, key: str, value: str, names: Iterable[str]) -> None:
    """UsageError where a value is none of the names there are."""
    if value not in names:
        shown = clean_name(value)
        close = difflib.get_close_matches(shown, list(names), 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(
            f"{source}: {clean_name(key)}: there is no '{shown}'", remedy=f"{hint}allowed: {', '.join(names)}"
        )


def unknown_field(source: str, where: str, names: Iterable[str], key: str | None = None) -> UsageError:
    """The error about a key that nobody knows, with the one that may have been meant."""
    close = difflib.get_close_matches(clean_name(key or where), list(names), 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(f"{source}: unknown key '{clean_name(where)}'", remedy=f"{hint}allowed: {', '.join(names)}")


def literals_of(kind: object) -> tuple[str, ...]:
    """The strings that a Literal allows."""
    info = msgspec.inspect.type_info(kind)
    return cast("tuple[str, ...]", tuple(cast("msgspec.inspect.LiteralType", info).values))
