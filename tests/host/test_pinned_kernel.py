"""PinnedBuffer where the kernel asks for a privilege: physical addresses, limits, huge pages."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cython_ext.core.pinned import PinnedBuffer
from hwrx.errors import MachineError

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
COMPACT = Path("/proc/sys/vm/compact_memory")
NOBODY = 65534


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
    deadline = time.monotonic() + 60
    while int(HUGE_PAGES.read_text()) <= int(before):
        assert time.monotonic() < deadline, "the kernel finds no memory in one piece"
        HUGE_PAGES.write_text(str(int(before) + 1))
        COMPACT.write_text("1")  # memory that others have cut up is put together
    yield
    HUGE_PAGES.write_text(before)


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


def test_a_huge_page_is_one_piece(one_huge_page: None) -> None:
    with PinnedBuffer(5, huge=True) as buffer:
        assert buffer.size == buffer.page_size >= 1 << 20
        (page,) = buffer.physical_pages()
        assert page % buffer.page_size == 0
        np.frombuffer(buffer, np.uint8)[-1] = 1
