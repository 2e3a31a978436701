"""Addresses of the kernel's symbols, and that they are looked up once a boot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hwrx.probes import symbols


def test_kallsyms_is_read_with_and_without_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "kallsyms"
    listing.write_text("ffff0010 D one\nffff0020 b two.31\nffff0030 d not_one\nffff0040 t one_more\t[module]\n")
    monkeypatch.setattr(symbols, "KALLSYMS", listing)
    assert symbols.from_kallsyms(["one", "two", "three"]) == {"one": 0xFFFF0010, "two": 0xFFFF0020}
    monkeypatch.setattr(symbols, "KALLSYMS", tmp_path / "none")
    assert symbols.from_kallsyms(["one"]) == {}


def test_a_boot_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[Sequence[str]] = []

    def find(names: Sequence[str]) -> dict[str, int]:
        asked.append(names)
        return {"one": 16}

    (tmp_path / "hwrx").mkdir()
    (tmp_path / "hwrx" / "things-of-another-boot").write_text("one 7\ntwo 8\n")
    for _ in range(2):
        assert symbols.noted_symbols("things", ["one", "two"], find) == {"one": 16, "two": 0}
    assert asked == [["one", "two"]]
    assert len(list((tmp_path / "hwrx").iterdir())) == 1
    # a note that was made for other names, or is damaged, is no answer
    assert symbols.noted_symbols("things", ["one"], find) == {"one": 16}
    next((tmp_path / "hwrx").iterdir()).write_text("nonsense")
    assert symbols.noted_symbols("things", ["one"], find) == {"one": 16}
    assert len(asked) == 3
