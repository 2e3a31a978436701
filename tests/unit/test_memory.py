"""What is said of physical pages: from made addresses, and from this process's own where no privilege is needed."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cython_ext.core.pinned import PinnedBuffer
from hwrx import memory
from hwrx.cli import main
from hwrx.commands.memory import memory as command
from hwrx.errors import MachineError, UsageError
from hwrx.memory import pages
from hwrx.memory.measuring import fate_of
from hwrx.memory.picture import draw_pages


def row(kind: str = "ordinary", before: tuple[int, ...] = (0x1000, 0x2000, 0x9000)) -> memory.Row:
    compacted, squeezed = (0x1000, 0xA000, 0x9000), (0x1000, pages.OUT, 0x9000)
    looks = [np.array(each) for each in (before, compacted, squeezed)]
    none = memory.Faults()
    return memory.Row(
        kind, memory.KINDS[kind], 4096, 3, 2, 0, 0, none, none, none, fate_of(looks[0], looks[1]),
        fate_of(looks[1], looks[2]), 0, list(before), list(compacted), list(squeezed),
    )  # fmt: skip


def test_a_page_stayed_or_moved_or_was_paged_out() -> None:
    assert row().compaction == memory.Fate(stayed=2, moved=1, swapped=0)
    assert row().pressure == memory.Fate(stayed=2, moved=0, swapped=1)


def test_pieces_are_counted_where_addresses_do_not_follow_on() -> None:
    assert pages.extents_of(np.array([], dtype=np.int64), 4096) == 0
    assert pages.extents_of(np.array([0x1000, 0x2000, 0x9000, 0xA000, 0x5000]), 4096) == 3
    assert pages.extents_of(np.array([0x200000, 0x400000]), 0x200000) == 1


def test_faults_are_those_of_the_pages_that_are_touched() -> None:
    zeros = bytes(64)
    buffer = PinnedBuffer(64 * mmap.PAGESIZE, lock=False, fault_in=False, transparent=False)
    with buffer, memoryview(buffer) as view:
        before = pages.count_faults()
        view[:: mmap.PAGESIZE] = zeros
        first = pages.count_faults() - before
        before = pages.count_faults()
        view[:: mmap.PAGESIZE] = zeros
        second = pages.count_faults() - before
    assert first.minor >= 64 > second.minor


def test_locked_memory_is_faulted_in_and_accounted() -> None:
    locked, _ = pages.accounted_bytes()
    with PinnedBuffer(16 * mmap.PAGESIZE, fault_in=False):
        assert pages.accounted_bytes()[0] - locked == 16 * mmap.PAGESIZE


def test_a_row_that_is_not_there_says_why() -> None:
    found = memory.Measured([row()], True, "", {"ring": "no NIC was named"})
    assert found.row("ordinary").pages == 3
    with pytest.raises(UsageError, match="'ring' was not measured: no NIC was named"):
        found.row("ring")


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    found = memory.Measured([row(), row("registered")], True, "zram", {})
    for name in ("a.svg", "b.svg"):
        draw_pages(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").stat().st_size > 2000


def test_bad_input_gets_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no kind of memory 'soft'"):
        memory.measure_pages(["soft"])
    with pytest.raises(UsageError, match="at least one page"):
        memory.measure_pages(pages=0)
    assert main(["memory", "--picture", "x.gif"]) == 2
    assert ".svg" in capsys.readouterr().err
    assert "Example" in CliRunner().invoke(command, ["--help"]).output


def test_without_privilege_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for what in (memory.measure_pages, memory.hold_pages, memory.find_limits):
        with pytest.raises(MachineError, match="needs root"):
            what()
