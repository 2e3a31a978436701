"""Files that carry their own checksums: JSON lines, JSON documents, and Parquet files.

A JSON line or document ends with a member `crc32` over all bytes before it. A Parquet file has, between its last row
group and its footer, where the format leaves room and no reader looks, lines of the same kind: one a row group (place,
length, CRC-32 of its bytes, part and trial that it is of), one with the checksum of the footer, and one with a copy of
the footer. Nothing is handed to Arrow before its bytes are known to be those that were written: a wrong bit in a footer
can end the process, and Parquet's own page checksums (written and verified too) cover neither the pages' headers nor
the footer. One wrong bit therefore costs one row group at most.

All sums begin with a *key*, which names the run and the file: a file of another run, or under another name, does not
pass for the one that was written.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from hwrx.errors import StoreError

ROWS_A_GROUP = 1 << 20
CHUNK = 1 << 20  # bytes that are looked through at a time for the lines of a Parquet file
MARK = b'\n{"seal": '
REMEDY = "take the run from a copy, or run it again"
UNREADABLE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError, OverflowError)


def checksum_of(content: bytes, key: str) -> int:
    """CRC-32 of `content`, begun with that of the key."""
    return zlib.crc32(content, zlib.crc32(key.encode()))


# --- JSON ----------------------------------------------------------------------------------------------------------


def sealed_line(entry: dict[str, Any], key: str) -> bytes:
    """Return a JSON object on one line (its end not included) whose last member is its checksum."""
    return _sealed(json.dumps(entry).encode()[:-1], b", ", b"}", key)


def opened_line(line: bytes, key: str) -> dict[str, Any] | None:
    """Return what `sealed_line` was given; None if the line is not as it was written."""
    return _opened(line, b", ", b"}", key)


def sealed_document(content: dict[str, Any], key: str) -> bytes:
    """Return a JSON object for people to read, whose last line is its checksum. What is no JSON becomes text."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    # what was no UTF-8 in a command line or a file's name is an escape of JSON
    return _sealed(text.removesuffix("\n}").encode(errors="backslashreplace"), b",\n ", b"\n}\n", key)


def opened_document(text: bytes, key: str) -> dict[str, Any] | None:
    """Return what `sealed_document` was given; None if the text is not as it was written."""
    return _opened(text, b",\n ", b"\n}\n", key)


def is_sealed(text: bytes) -> bool:
    """Whether a JSON document ends as a sealed one does, intact or not."""
    return b'"crc32": ' in text[-40:]


def _sealed(body: bytes, comma: bytes, end: bytes, key: str) -> bytes:
    return b'%s%s"crc32": "%08x"%s' % (body, comma, checksum_of(body, key), end)


def _opened(text: bytes, comma: bytes, end: bytes, key: str) -> dict[str, Any] | None:
    body = text[: -len(comma) - len(b'"crc32": "01234567"') - len(end)]
    if _sealed(body, comma, end, key) != text:
        return None
    try:
        entry: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    del entry["crc32"]
    return entry


# --- Parquet -------------------------------------------------------------------------------------------------------


class Group(Struct, frozen=True):
    """One row group of a Parquet file: which part of the run it was, and of which trial (None: of none alone)."""

    number: int
    part: int  # 0: not known
    trial: int | None
    rows: int


class Reader:
    """A Parquet file of a run, of which only what is as it was written can be read.

    `groups` are the row groups that can be, `lost` those that cannot, `repaired` says whether a damaged footer was
    replaced by its copy. A file without seals (format 1) has all its groups, and Arrow's own judgement.
    No file stays open but those that were used last: a run in progress has thousands of parts.
    """

    def __init__(self, path: pathlib.Path, key: str | None) -> None:
        """`key`: of the run and file; None for a file without seals. StoreError if nothing of it can be read."""
        self.path = path
        self.repaired = False
        self.groups: list[Group] = []
        self.lost: list[Group] = []
        self._whole: pa.Buffer | None = None  # the content with its footer's copy
        try:
            if key is not None:
                self._check(key)
            file = _open(self)
            self.schema: pa.Schema = file.schema_arrow
            known = {group.number for group in (*self.groups, *self.lost)}
            for number in range(file.num_row_groups):
                if number not in known:  # its seal is damaged, or there are none
                    rows = file.metadata.row_group(number).num_rows
                    (self.groups if key is None else self.lost).append(Group(number, 0, _trial(file, number), rows))
        except UNREADABLE as error:
            raise damaged_error(path, error) from None
        self.groups.sort(key=lambda group: group.number)

    @property
    def source(self) -> pathlib.Path | pa.BufferReader:
        """What Arrow is to read."""
        if self._whole is not None:
            return pa.BufferReader(self._whole)
        try:
            str(self.path).encode()
        except UnicodeEncodeError:  # Arrow takes names of files that are UTF-8 alone
            return pa.BufferReader(self.path.read_bytes())
        return self.path

    def read(self, group: Group, columns: list[str] | None = None) -> pa.Table:
        """Read one row group; StoreError if Arrow cannot."""
        try:
            return _open(self).read_row_group(group.number, columns=columns)
        except UNREADABLE as error:
            raise damaged_error(self.path, error) from None

    def _check(self, key: str) -> None:
        """Check the whole file against its seals."""
        with self.path.open("rb") as file:
            by_kind: dict[str, list[dict[str, Any]]] = {"group": [], "footer": [], "copy": []}
            for line in _seals(file):
                if (entry := opened_line(line, key)) is not None:
                    by_kind[entry["seal"]].append(entry)
            if not any(by_kind.values()):
                raise ValueError("it is not what this run wrote there")
            for entry in by_kind["group"]:
                file.seek(entry["at"])
                intact = checksum_of(file.read(entry["bytes"]), key) == entry["sum"]
                group = Group(entry["group"], entry["part"], entry["trial"], entry["rows"])
                (self.groups if intact else self.lost).append(group)
            for entry in by_kind["footer"]:
                file.seek(entry["at"])
                if checksum_of(file.read(), key) == entry["sum"]:
                    return
            for entry in by_kind["copy"]:
                file.seek(0)
                self._whole = pa.py_buffer(file.read(entry["at"]) + zlib.decompress(base64.b64decode(entry["zlib"])))
                self.repaired = True
                return
            raise ValueError("both its footer and the footer's copy are")


@functools.lru_cache(maxsize=16)
def _open(reader: Reader) -> pq.ParquetFile:
    return pq.ParquetFile(reader.source, page_checksum_verification=True)


def _trial(file: pq.ParquetFile, number: int) -> int | None:
    """Return the trial that a row group is of, by the statistics of its first column; None if it is not of one."""
    column = file.metadata.row_group(number).column(0)
    found = column.statistics
    if column.path_in_schema != "trial" or found is None or not found.has_min_max or found.min != found.max:
        return None
    return int(found.min)


def write_parquet(
    file: BinaryIO, schema: pa.Schema, tables: Iterable[tuple[int, int | None, pa.Table]], key: str
) -> None:
    """Write tables, each with its part and trial, as row groups of a sealed Parquet file.

    `file` can be read as well as written, and is empty. At most one table is in memory at a time.
    """
    groups: list[Group] = []
    with pq.ParquetWriter(file, schema, write_page_checksum=True, **_encoding(schema)) as writer:
        for part, trial, table in tables:
            for first in range(0, table.num_rows, ROWS_A_GROUP):
                piece = table.slice(first, ROWS_A_GROUP)
                writer.write_table(piece, row_group_size=ROWS_A_GROUP)
                groups.append(Group(len(groups), part, trial, piece.num_rows))
    file.flush()
    size = file.seek(0, io.SEEK_END)
    file.seek(size - 8)
    footer_at = size - 8 - int.from_bytes(file.read(4), "little")
    file.seek(0)
    starts = [*_starts(pq.read_metadata(file)), footer_at]
    lines = []
    for group, at, end in zip(groups, starts[:-1], starts[1:], strict=True):
        file.seek(at)
        place = {"at": at, "bytes": end - at, "sum": checksum_of(file.read(end - at), key)}
        of = {"part": group.part, "trial": group.trial, "rows": group.rows}
        lines.append({"seal": "group", "group": group.number, **of, **place})
    file.seek(footer_at)
    footer = file.read()
    # both lines say where the footer will be, behind all lines: the digits' number is not known before they are written
    copy = base64.b64encode(zlib.compress(footer)).decode()
    total = checksum_of(footer, key)
    at = footer_at
    while True:
        last: list[dict[str, Any]] = [
            {"seal": "footer", "at": at, "sum": total},
            {"seal": "copy", "at": at, "zlib": copy},
        ]
        text = b"".join(b"\n" + sealed_line(line, key) for line in [*lines, *last]) + b"\n"
        if footer_at + len(text) == at:
            break
        at = footer_at + len(text)
    file.seek(footer_at)
    file.write(text)
    file.write(footer)


def damaged_error(path: pathlib.Path, error: BaseException | str) -> StoreError:
    """Say that a file is not what was written."""
    words = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
    return StoreError(f"{path} is damaged: {words}", remedy=REMEDY)


def _starts(metadata: pq.FileMetaData) -> list[int]:
    """Where each row group begins."""
    return [_start(metadata.row_group(number)) for number in range(metadata.num_row_groups)]


def _start(group: pq.RowGroupMetaData) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return min(
        int(place)
        for column in columns
        for place in (column.data_page_offset, column.dictionary_page_offset)
        if place is not None and place > 0
    )


def _seals(file: BinaryIO) -> list[bytes]:
    """Find a Parquet file's own lines, from its end: they stand together, and what is before them is data."""
    begin = file.seek(0, io.SEEK_END)
    tail = b""
    while begin > 0:
        more = min(CHUNK, begin)
        begin -= more
        file.seek(begin)
        tail = file.read(more) + tail
        if tail.find(MARK) >= more:  # nothing more in what was read last
            break
    return [MARK[1:] + piece.partition(b"\n")[0] for piece in tail.split(MARK)[1:]]


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Parquet options: integers that change are stored as differences (2.3 bytes a row where plain takes 2.8)."""
    changing = [
        field.name
        for field in schema
        if pa.types.is_integer(field.type) and (field.name in ("sequence", "at") or field.name.endswith("ns"))
    ]
    named = [field.name for field in schema if field.name not in changing]
    return {
        "compression": "zstd",
        "use_dictionary": named,
        "column_encoding": dict.fromkeys(changing, "DELTA_BINARY_PACKED"),
    } | ({} if named else {"use_dictionary": False})
