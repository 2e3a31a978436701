"""The tables of an experiment file that change fields of a setting: which there are, and whether a table is right.

Fields are checked one by one, so that an error can name the one that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.host.outside import clean_name
from hwrx.runs import checked

Overrides = dict[str, Any]  # fields of Setting; of a pattern's table also tables of such, by size

SETTING_FIELDS: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Setting)}
LISTED = {"path": "paths", "pattern": "patterns", "size": "sizes", "mix": "sizes", "wait": "waits"}
_CHOSEN = ("path", "pattern", "size", "mix")  # by the lists alone


def setting_of(trial: Mapping[str, Any]) -> Setting:
    """Return the setting that a trial's row names in columns; what its path does not read is not recorded there.

    :raises msgspec.ValidationError: if a value is none that the setting can have
    """
    return msgspec.convert({key: trial[key] for key in SETTING_FIELDS if trial.get(key) is not None}, Setting)


def plain_fields(table: Overrides) -> Overrides:
    """Return a table without those inside of it."""
    return {key: value for key, value in table.items() if not isinstance(value, dict)}


def all_fields(table: Overrides) -> list[str]:
    """Name the fields that a table gives, those for single sizes among them."""
    inside = [field for value in table.values() if isinstance(value, dict) for field in value]
    return [*plain_fields(table), *inside]


def check_by_size(source: str, where: str, fields: Overrides) -> None:
    """Check a pattern's table, in which those named by a size hold for that size alone."""
    check_overrides(source, where, plain_fields(fields))
    for size, of_size in fields.items():
        if isinstance(of_size, dict):
            check_size(source, where, size)
            check_overrides(source, f"{where}.{size}", of_size)


def check_size(source: str, where: str, name: str) -> None:
    """UsageError if a table is not named by a number of bytes."""
    if not (name.isascii() and name.isdecimal()) or len(name) > 10:
        raise UsageError(f"{source}: [{where}.{clean_name(name)}]: '{clean_name(name)}' is not a number of bytes")


def check_overrides(source: str, where: str, fields: Overrides, also: Iterable[str] = ()) -> None:
    """UsageError if a table names no field of a setting, or gives one a value that it cannot have.

    `also`: names that are allowed in it besides.
    """
    for key, value in fields.items():
        if key in LISTED and where in ("setting",):
            raise UsageError(f"{source}: {where}.{key}: '{key}' is given by the list '{LISTED[key]}'")
        if key in _CHOSEN or key not in SETTING_FIELDS:
            allowed = [name for name in SETTING_FIELDS if name not in _CHOSEN]
            raise checked.unknown_field(source, f"{where}.{key}", [*allowed, *also], key=key)
        checked.convert_field(source, f"{where}.{key}", value, SETTING_FIELDS[key])


def check_until(source: str, table: Mapping[str, Any], kind: type[Struct]) -> None:
    """Check the table `until`, whose fields are those of `kind`."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise checked.unknown_field(source, f"until.{key}", fields, key=key)
        checked.convert_field(source, f"until.{key}", value, fields[key])
    if "width" not in table:
        raise UsageError(f"{source}: the key 'until.width' is missing", remedy=checked.allowed_values(fields["width"]))
