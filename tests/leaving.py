"""Nothing is left behind: a fixture for tests that open endpoints in this process."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


def open_files() -> set[str]:
    # the descriptor that lists the folder is the last one, and closed by the time it is read
    return {file.name for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}


def locked_memory() -> int:
    found = re.search(r"VmLck:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # buffers that earlier tests have left in cycles, whose end would be counted as ours
    before = open_files(), locked_memory()
    yield
    assert (open_files(), locked_memory()) == before
    assert Path("/proc/self/timers").read_text() == ""
