"""What stands in the tables of a run: columns, units, meanings."""

from __future__ import annotations

import json
import pathlib

import made_runs
import pyarrow.parquet as pq
import pytest

from hwrx.cli import main
from hwrx.runs import overrides, schema
from hwrx.timelines import counted, tables


def test_units_and_meanings_are_in_the_files(tmp_path: pathlib.Path) -> None:
    path = made_runs.make(tmp_path, repeats=1)
    for name in ("samples", "trials"):
        found = pq.read_schema(path / f"{name}.parquet")
        for field in found:
            unit, meaning = schema.column_of(name, field.name)
            assert (field.metadata or {}).get(b"unit", b"").decode() == unit, field.name
            assert meaning or field.name not in schema.SAMPLES.names, field.name
    assert pq.read_schema(path / "samples.parquet").field("ns").metadata[b"unit"] == b"ns"
    assert pq.read_schema(path / "trials.parquet").field("resident_client").metadata[b"unit"] == b"bytes"


def test_the_schema_is_printed_and_every_column_has_a_meaning(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made_runs.make(tmp_path, repeats=1, sizes=[64])
    assert main(["report", str(path), "--schema", "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)
    by_name = {(column["table"], column["name"]): column for column in columns}
    assert by_name["samples", "ns"]["unit"] == "ns"
    assert by_name["samples", "path"]["type"] == "string"
    assert by_name["trials", "size"] == {
        "table": "trials", "name": "size", "type": "int64", "unit": "bytes", "meaning": "payload of a message"
    }  # fmt: skip
    assert [name for (table, name), column in by_name.items() if not column["meaning"]] == []
    assert main(["report", str(path), "--schema"]) == 0
    assert "payload of a message" in capsys.readouterr().out


def test_every_field_of_a_setting_and_every_column_of_a_traced_run_has_a_meaning() -> None:
    for table, names in {
        "trials": list(overrides.SETTING_FIELDS),
        "samples": schema.SAMPLES.names,
        "stages": tables.STAGES.names,
        "copies": tables.COPIES.names,
        "tracing": tables.TRACING.names,
        "actors": counted.TABLE.names,
    }.items():
        assert [name for name in names if not schema.column_of(table, name)[1]] == [], table
