"""Physical pages, page faults and locked memory of this process, as the kernel tells them."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from cython_ext.core.pinned import PFN_MASK, PRESENT, PinnedBuffer
from hwrx.errors import MachineError

SWAPPED = 1 << 62  # of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst)
ABSENT, OUT = 0, 1  # instead of a physical address: never there, and paged out


class Faults(Struct, frozen=True):
    """Page faults of this thread (getrusage): `minor` found or made the page in memory, `major` read it from swap."""

    minor: int = 0
    major: int = 0

    def __add__(self, other: Faults) -> Faults:
        """Return both together."""
        return Faults(self.minor + other.minor, self.major + other.major)

    def __sub__(self, other: Faults) -> Faults:
        """Return what came after `other`."""
        return Faults(self.minor - other.minor, self.major - other.major)


def count_faults() -> Faults:
    """Return those that this thread has had so far; those of memory that a system call gets hold of are among them."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return Faults(usage.ru_minflt, usage.ru_majflt)


def physical_addresses(buffer: PinnedBuffer) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the physical address of each page of a buffer, `OUT` for one in swap, `ABSENT` for one that never was.

    MachineError where the kernel hides them from this process, as it does without CAP_SYS_ADMIN.
    """
    stride = buffer.page_size // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), buffer.size // mmap.PAGESIZE * 8, buffer.address // mmap.PAGESIZE * 8)
    entries = np.frombuffer(data, dtype=np.uint64)[::stride]
    present, frames = entries & np.uint64(PRESENT) != 0, entries & np.uint64(PFN_MASK)
    if np.any(present & (frames == 0)):
        raise MachineError(
            "the kernel hides physical addresses from this process (/proc/self/pagemap gives frame number 0)",
            remedy="run as root, or with CAP_SYS_ADMIN",
        )
    elsewhere = np.where(entries & np.uint64(SWAPPED) != 0, OUT, ABSENT)
    return np.where(present, frames.astype(np.int64) * mmap.PAGESIZE, elsewhere)


def extents_of(physical: np.ndarray[Any, np.dtype[np.int64]], page_size: int) -> int:
    """Return how many pieces that are contiguous in physical memory pages of `page_size` bytes make."""
    return 1 + int(np.count_nonzero(np.diff(physical) != page_size)) if len(physical) else 0


def accounted_bytes() -> tuple[int, int]:
    """Return the bytes that the kernel counts as locked and as pinned by this process (VmLck, VmPin)."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if ":" in line
    )
    return int(lines["VmLck"].split()[0]) * 1024, int(lines["VmPin"].split()[0]) * 1024
