"""PinnedBuffer: real mappings, looked up in what the kernel says about this process."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cython_ext.pinned import PinnedBuffer
from hwrx.errors import MachineError

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
NOBODY = 65534


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


def in_a_child(what: Callable[[], str]) -> str:
    """What a function returned in a forked child, which may drop its privileges."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(read)
            os.write(write, what().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def drop_privileges() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.fixture
def one_huge_page() -> Iterator[None]:
    before = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text(str(int(before) + 1))
    yield
    HUGE_PAGES.write_text(before)


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


def test_physical_pages_are_where_the_bytes_are() -> None:
    with PinnedBuffer(5 * mmap.PAGESIZE) as buffer:
        pages = buffer.physical_pages()
        assert len(pages) == len(set(pages)) == 5
        assert all(page and page % mmap.PAGESIZE == 0 for page in pages)
        assert buffer.physical_pages() == pages


def test_without_the_privilege_physical_pages_are_hidden() -> None:
    def ask() -> str:
        with PinnedBuffer(1, lock=False) as buffer:
            drop_privileges()
            try:
                return str(buffer.physical_pages())
            except MachineError as error:
                return str(error)

    said = in_a_child(ask)
    assert "pagemap" in said
    assert "remedy:" in said
    assert "root" in said


def test_a_memlock_limit_that_is_too_low_is_named() -> None:
    def ask() -> str:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
        drop_privileges()
        try:
            PinnedBuffer(1 << 20)
        except MachineError as error:
            return str(error)
        return "it was locked"

    said = in_a_child(ask)
    assert "limit of locked memory is 65536 bytes" in said
    assert "ulimit -l 1024" in said


def test_huge_pages_that_are_not_reserved_are_named() -> None:
    free = int(re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
    with pytest.raises(MachineError, match=r"vm\.nr_hugepages=\d+") as caught:
        PinnedBuffer((free + 1) << 21, huge=True)
    assert f"{free} are free" in str(caught.value)


def test_a_huge_page_is_one_piece(one_huge_page: None) -> None:
    with PinnedBuffer(5, huge=True) as buffer:
        assert buffer.size == buffer.page_size >= 1 << 20
        assert {"ht", "lo"} & flags_of(buffer.address) >= {"ht"}
        (page,) = buffer.physical_pages()
        assert page % buffer.page_size == 0
        np.frombuffer(buffer, np.uint8)[-1] = 1
