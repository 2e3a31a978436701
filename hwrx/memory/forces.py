"""What moves pages and pages them out: compaction, and a memory limit that leaves no room. Each undoes itself."""

from __future__ import annotations

import contextlib
import mmap
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from hwrx.errors import MachineError
from hwrx.host import tools
from hwrx.host.undo import SYSCTL, Undo
from hwrx.probes import cgroups

ZRAM = Path("/sys/class/zram-control")
MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h
UNEVICTABLE = "vm/compact_unevictable_allowed"


def compact_memory() -> None:
    """Let the kernel compact all its memory now (vm.compact_memory): what can be moved goes to the upper end."""
    try:
        (SYSCTL / "vm/compact_memory").write_text("1")
    except FileNotFoundError:
        raise MachineError("this kernel does not compact memory (CONFIG_COMPACTION)") from None
    except OSError as error:
        raise MachineError(f"cannot let the kernel compact memory: {error.strerror}", remedy="run it as root") from None


def available_bytes() -> int:
    """Return the bytes of memory that programs could still get (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MachineError("/proc/meminfo does not say how much memory is available")


class Filler:
    """Memory that is taken between the pieces of others and then thinned out, so that theirs lie among gaps.

    Compaction moves pages into gaps, not into wide free space (suitable_migration_target in mm/compaction.c):
    without gaps above them, pages stay where they are, whoever holds them.
    """

    KEPT = 16  # of so many pages one is kept

    def __init__(self, piece: int) -> None:
        self._piece = piece // mmap.PAGESIZE * mmap.PAGESIZE
        self._taken: list[mmap.mmap] = []

    def take(self) -> None:
        """Take one more piece, in small pages, every page of it."""
        if not self._piece:
            return
        piece = mmap.mmap(-1, self._piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._taken.append(piece)
        with contextlib.suppress(OSError):  # a kernel that makes no huge pages by itself has no need to be told
            piece.madvise(mmap.MADV_NOHUGEPAGE)
        try:
            piece.madvise(MADV_POPULATE_WRITE)
        except OSError:  # before Linux 5.14, or no memory: then a write to a page finds out
            for at in range(0, self._piece, mmap.PAGESIZE):
                piece[at] = 0

    def thin(self) -> None:
        """Give back all but one page of `KEPT`."""
        gap = (self.KEPT - 1) * mmap.PAGESIZE
        for piece in self._taken:
            for at in range(0, len(piece), self.KEPT * mmap.PAGESIZE):
                piece.madvise(mmap.MADV_DONTNEED, at, min(gap, len(piece) - at))

    def double(self) -> None:
        """Take as much again, and thin it out."""
        for _ in list(self._taken):
            self.take()
        self.thin()

    def give(self) -> None:
        """Give all of it back; harmless when called twice."""
        for piece in self._taken:
            piece.close()
        self._taken.clear()


def swap_space(undo: Undo, size: int) -> str:
    """See to it that there is swap, and return what it is: the machine's own, or else `size` bytes of zram.

    MachineError where there is neither.
    """
    present = Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    if present:
        return f"the machine's own swap ({present[0].split()[0]})"
    if not ZRAM.exists():
        undo.plan("modprobe", "-r", "zram")
        tools.run_tool("modprobe", "zram", "num_devices=0")
    try:
        number = int((ZRAM / "hot_add").read_text(encoding="utf-8"))
        undo.plan("sh", "-c", f"echo {number} > {ZRAM}/hot_remove")
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size), encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"no zram device can be made to swap to: {error.strerror}", remedy="swapon a device or a file of yours"
        ) from None
    device = f"/dev/zram{number}"
    tools.run_tool("mkswap", device)
    undo.plan("swapoff", device)
    tools.run_tool("swapon", device)
    return f"zram of {size >> 20} MiB"


class Cgroup:
    """A cgroup of this process's own, so that a limit hits nothing but what is taken from now on.

    MachineError where no memory controller of the second hierarchy can be had.
    """

    def __init__(self, undo: Undo) -> None:
        self._root = cgroups.find_hierarchy()
        self.path = self._root / f"hwrx-{undo.token}"
        passed_on = self._root / "cgroup.subtree_control"
        try:
            if "memory" not in (self._root / "cgroup.controllers").read_text(encoding="utf-8").split():
                raise MachineError(
                    f"the second cgroup hierarchy, on {self._root}, has no memory controller: the first one has it",
                    remedy="boot with cgroup_no_v1=memory, or measure in a guest (hwrx memory --guest)",
                )
            if "memory" not in passed_on.read_text(encoding="utf-8").split():
                undo.plan("sh", "-c", f"echo -memory > {shlex.quote(str(passed_on))}")
                passed_on.write_text("+memory")
            undo.plan("rmdir", str(self.path))
            self.path.mkdir()
        except OSError as error:
            raise MachineError(f"no cgroup can be made: {error.strerror}", remedy="run it as root") from None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it: pages that are taken meanwhile are charged to it, for as long as they are there."""
        own = next(
            line
            for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
            if line.startswith("0::")
        )
        home = self._root / own[3:].lstrip("/")
        self.join()
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(os.getpid()))

    def join(self) -> None:
        """Be in it for good: for a child."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def limit(self, most: int) -> None:
        """Kill whoever takes more than `most` bytes: no swap stands in (memory.max, memory.swap.max)."""
        (self.path / "memory.max").write_text(str(most))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap
            (self.path / "memory.swap.max").write_text("0")

    def squeeze(self) -> None:
        """Page out all that can be: memory.high at 0, which the kernel tries to reach before the write returns."""
        file = os.open(self.path / "memory.high", os.O_WRONLY | os.O_CLOEXEC)
        try:
            # nothing may be charged in between: who is above memory.high is made to sleep
            os.write(file, b"0")
            os.write(file, b"max")
        finally:
            os.close(file)
