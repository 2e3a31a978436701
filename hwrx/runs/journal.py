"""The journal of a run, trials.jsonl: one line a trial, each with its checksum, and the table that is made of it."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from hwrx.errors import StoreError
from hwrx.host.decoding import UNREADABLE
from hwrx.runs import seal

FILE = "trials.jsonl"


class Line(Struct, frozen=True):
    """What a line must have, whatever else it has."""

    trial: int
    repeat: int
    label: str
    setting: dict[str, Any]
    status: str
    error: str
    ended: str
    samples: int
    tally: dict[str, int | float]
    extra: dict[str, Any]
    part: int = 0


class Journal(Struct, frozen=True):
    """The trials that were recorded, in order, and the numbers of the lines that are damaged."""

    lines: list[dict[str, Any]]
    damaged: list[int]


def read_journal(folder: pathlib.Path, key: str | None) -> Journal:
    """Read a run's journal; StoreError if it cannot be read. `key` None: its lines have no checksums (format 1).

    A last line without its end was being written when the run was killed, and is left out. If a trial stands there
    twice (a failed one that ran again), the later line counts.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise seal.damaged_error(path, error) from None
    lines: dict[int, dict[str, Any]] = {}
    damaged = []
    *whole, last = content.split(b"\n")
    for number, text in enumerate([*whole, last], 1):
        ended = number <= len(whole)
        if key is None:
            entry = _plain(path, number, text) if ended else None
        else:
            # of the last line it may be the end that is damaged
            entry = seal.opened_line(text, key) or (None if ended else seal.opened_line(text[:-1], key))
            if entry is not None and not _is_line(entry):  # sealed, by somebody else than the store
                entry = None
            if entry is None and ended:
                damaged.append(number)
        if entry is not None:
            lines[entry["trial"]] = entry
    return Journal(list(lines.values()), damaged)


def _is_line(entry: dict[str, Any]) -> bool:
    try:
        msgspec.convert(entry, Line)
    except UNREADABLE:
        return False
    return True


def _plain(path: pathlib.Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(text)
        msgspec.convert(entry, Line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged in line {number}: {error}") from None
    return entry


def trials_table(lines: list[dict[str, Any]]) -> pa.Table:
    """One row a trial: setting and counts as columns, and of `extra` what is numbers all through; else JSON text."""
    rows = []
    for line in lines:
        row = {key: line[key] for key in ("trial", "repeat", "label", "status", "error", "ended", "samples")}
        row["part"] = line.get("part", 0)
        row.update(line["setting"])
        row.update(line["tally"])
        for key, value in line["extra"].items():
            row.update(_flat(key, value))
        rows.append(row)
    columns: dict[str, list[Any]] = {key: [] for row in rows for key in row}
    for key in columns:
        columns[key] = [row.get(key) for row in rows]
    if not rows:
        return pa.table({"trial": pa.array([], pa.int64())})
    return pa.table({key: _column(values) for key, values in columns.items()})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # of several types, or beyond a 64-bit integer
        return pa.array([None if value is None else json.dumps(value, ensure_ascii=False) for value in values])


def _flat(key: str, value: object) -> dict[str, Any]:
    if isinstance(value, bool | int | float | str) or value is None:
        return {key: value}
    if key != "chosen" and isinstance(value, dict) and _numbers(value):  # what a path chose has no fixed columns
        return {name: number for inner, item in value.items() for name, number in _flat(f"{key}_{inner}", item).items()}
    return {key: json.dumps(value, ensure_ascii=False)}


def _numbers(value: object) -> bool:
    if isinstance(value, dict):
        return all(_numbers(item) for item in value.values())
    return isinstance(value, int | float)
