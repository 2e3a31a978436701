"""The allocator of I/O virtual addresses."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwrx.errors import MachineError
from hwrx.nic.iova import IovaAllocator

# what an Intel IOMMU of 39 bits answers: the hole in between is where interrupts go
RANGES = [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]


def test_address_zero_is_never_given():
    assert IovaAllocator(RANGES, 4096).take(1) == 4096


def test_ranges_are_whole_pages_of_the_smallest_size():
    allocator = IovaAllocator([(100, 20_000)], 4096 | 1 << 21)
    at = allocator.take(4097)
    assert (at, allocator.used) == (4096, {4096: 8192})
    assert allocator.take(4096) == 12288
    with pytest.raises(MachineError, match="4096 bytes of addresses left"):
        allocator.take(1)


def test_the_hole_is_stepped_over():
    allocator = IovaAllocator(RANGES, 4096)
    allocator.take(0xFEDF_0000)
    assert allocator.take(1 << 21) == 0xFEF0_0000


def test_alignment():
    allocator = IovaAllocator(RANGES, 4096)
    assert allocator.take(4096, align=1 << 21) == 1 << 21
    # the space before it is not lost
    assert allocator.take(4096) == 4096
    with pytest.raises(ValueError):
        allocator.take(4096, align=5000)


@given(st.lists(st.tuples(st.integers(1, 1 << 22), st.booleans()), max_size=60))
def test_nothing_overlaps_and_all_of_it_comes_back(steps):
    allocator = IovaAllocator(RANGES, 4096)
    for size, give in steps:
        at = allocator.take(size)
        if give:
            allocator.give(at)
    used = sorted(allocator.used.items())
    for (at, size), (after, _) in itertools.pairwise(used):
        assert at + size <= after
    for at, size in used:
        assert at % 4096 == 0 and any(first <= at and at + size - 1 <= last for first, last in RANGES)
        allocator.give(at)
    assert allocator.take((1 << 39) - 0xFEF0_0000) == 0xFEF0_0000


def test_what_was_not_taken_cannot_be_given():
    allocator = IovaAllocator(RANGES, 4096)
    with pytest.raises(ValueError, match="no range begins at 0x1000"):
        allocator.give(4096)


def test_an_iommu_without_page_sizes():
    with pytest.raises(MachineError, match="no page size"):
        IovaAllocator(RANGES, 0)
