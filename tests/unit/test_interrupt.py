"""Interrupts as file descriptors: each ends one wait, though nobody reads the descriptor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from cython_ext.nics.interrupt import Interrupt


@pytest.fixture
def counter() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def test_each_interrupt_ends_one_wait(counter: int) -> None:
    interrupt = Interrupt("msix", counter)
    assert not interrupt.wait_for(0)
    for number in range(1, 4):
        os.eventfd_write(counter, 1)
        assert interrupt.wait_for(30)
        # it was told: the count, which stands there still, is not told again
        assert not interrupt.wait_for(0)
        assert interrupt.fired == number
    assert os.eventfd_read(counter) == 3
    interrupt.close()


def test_those_between_two_waits_are_one(counter: int) -> None:
    interrupt = Interrupt("msix", counter)
    for _ in range(5):
        os.eventfd_write(counter, 1)
    assert interrupt.wait_for(30)
    assert not interrupt.wait_for(0)
    interrupt.close()


def test_a_closed_one_is_no_descriptor_any_more(counter: int) -> None:
    closed = []
    interrupt = Interrupt("msix", counter, on_close=lambda: closed.append(True))
    interrupt.close()
    interrupt.close()
    assert closed == [True] and interrupt.fd == -1
    with pytest.raises(OSError) as caught:
        interrupt.wait_for(0)
    assert caught.value.errno == errno.EBADF
