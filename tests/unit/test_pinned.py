"""PinnedBuffer: real mappings, looked up in what the kernel says about this process."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from cython_ext.core.pinned import PinnedBuffer
from hwrx.errors import MachineError


def flags_of(address: int) -> set[str]:
    """The VmFlags of the mapping at an address (proc(5), smaps): lo locked, dc not copied on fork, ht huge page."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    return set()


def resident(address: int, size: int) -> int:
    """Bytes of the mapping that are in memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) < address + size and address < int(match[2], 16)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_it_is_whole_pages_zeroed_resident_and_locked() -> None:
    with PinnedBuffer(3 * mmap.PAGESIZE + 1) as buffer:
        assert buffer.size == len(buffer) == 4 * mmap.PAGESIZE
        assert buffer.page_size == mmap.PAGESIZE
        assert buffer.address % mmap.PAGESIZE == 0
        assert resident(buffer.address, buffer.size) >= buffer.size
        assert {"lo", "dc"} <= flags_of(buffer.address)
        assert buffer.locked
        assert not np.frombuffer(buffer, np.uint8).any()


def test_without_lock_and_with_fork_it_is_ordinary_memory() -> None:
    with PinnedBuffer(1, lock=False, dont_fork=False) as buffer:
        assert not buffer.locked
        assert not {"lo", "dc"} & flags_of(buffer.address)


def test_views_see_and_change_it_in_place() -> None:
    buffer = PinnedBuffer(mmap.PAGESIZE)
    first, second = np.frombuffer(buffer, np.uint8), memoryview(buffer)
    first[7] = 42
    assert second[7] == 42
    assert first.ctypes.data == buffer.address
    assert buffer.exports == 2
    with pytest.raises(BufferError, match="2 views"):
        buffer.close()
    assert first[7] == 42
    del first
    second.release()
    buffer.close()
    assert buffer.closed


def test_close_unmaps_and_may_be_repeated() -> None:
    buffer = PinnedBuffer(mmap.PAGESIZE)
    address = buffer.address
    buffer.close()
    buffer.close()
    assert "lo" not in flags_of(address)
    for use in (lambda: buffer.address, buffer.physical_pages):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(BufferError, match="closed"):
        memoryview(buffer)


def test_a_buffer_that_nobody_holds_is_unmapped() -> None:
    def locked() -> int:
        return int(re.search(r"VmLck:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    before = locked()
    buffer = PinnedBuffer(64 * mmap.PAGESIZE)
    assert locked() == before + 64 * mmap.PAGESIZE // 1024
    view = memoryview(buffer)
    del buffer
    assert locked() == before + 64 * mmap.PAGESIZE // 1024
    del view
    assert locked() == before


def test_an_empty_buffer_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        PinnedBuffer(0)


def test_memory_that_nobody_has() -> None:
    with pytest.raises(MachineError, match="bytes of memory"):
        PinnedBuffer(1 << 60)
    with pytest.raises(MachineError, match="bytes of memory"):
        PinnedBuffer((1 << 64) - 1)


def test_huge_pages_that_are_not_reserved_are_named() -> None:
    free = int(re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
    with pytest.raises(MachineError, match=r"vm\.nr_hugepages=\d+") as caught:
        PinnedBuffer((free + 1) << 21, huge=True)
    assert f"{free} are free" in str(caught.value)
