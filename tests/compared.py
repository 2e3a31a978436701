"""What a summary that `hwrx compare --json` printed must say of a wire on which nothing goes wrong."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def carried(found: dict[str, Any], paths: Collection[str]) -> None:
    """Every path has its rows, every trial ended well, and every message arrived once and whole."""
    assert {row["path"] for row in found["rows"]} == set(paths)
    assert [run["status"] for run in found["runs"]] == ["complete"]
    for row in found["rows"]:
        assert not row["failed"], row
        assert row["delivered"] == row["expected"] > 0, row
        assert row["checked"] > 0, row
        assert not any(row[oddity] for oddity in ("lost", "duplicated", "reordered", "corrupt", "wrong_size")), row
