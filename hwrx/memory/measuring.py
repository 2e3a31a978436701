"""The measurement: the same steps for every kind of memory, side by side in the same physical memory.

Pieces of all kinds are taken in turns with filler in between, so that they lie mixed and scattered over the machine's
memory, among gaps once the filler is thinned out. Compaction then moves pages from the lower end of memory into gaps
at the upper, until both meet: so it never moves all of them, and how many depends on what else there is.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from cython_ext.core.pinned import PinnedBuffer
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.undo import Undo
from hwrx.memory import forces
from hwrx.memory.pages import ABSENT, OUT, Faults, accounted_bytes, count_faults, extents_of, physical_addresses
from hwrx.memory.subjects import KINDS, Kind, open_subject

PIECE = 16  # pages of a piece
FILLER = 256 << 20  # bytes, but at most half of what is available
HUGE_PAGES = 4  # taken of the kind `huge`
LETTER = 1024  # bytes of the datagram that is received into each page
ROOM = 64 << 20  # bytes of swap beyond what is measured

TRIES = 3  # of compaction, until it moves anything

Say = Callable[[str], None]
Look = np.ndarray[Any, np.dtype[np.int64]]  # an address for each page, see pages.addresses


class Fate(Struct, frozen=True):
    """What became of pages: each is still where it was, at another physical address, or in swap.

    All three are numbers of pages, and add up to those of the row.
    """

    stayed: int
    moved: int
    swapped: int


class Row(Struct, frozen=True):
    """One kind. Pages are of `page_size` bytes; addresses are physical, 0: not there yet, 1: in swap.

    `holding`, `receiving`, `again`: page faults while the memory was taken hold of, while a datagram was received into
    each page, and while another was after the pressure. `locked`, `pinned`: bytes by which the kernel's counts of the
    process grew (VmLck, VmPin). `damaged`: pages that did not hold at the end what had been written to them before.
    """

    kind: str
    sentence: str
    page_size: int
    pages: int
    extents: int
    locked: int
    pinned: int
    holding: Faults
    receiving: Faults
    again: Faults
    compaction: Fate | None
    pressure: Fate | None
    damaged: int
    before: list[int]
    compacted: list[int]
    squeezed: list[int]


class Measured(Struct, frozen=True):
    """All rows of one measurement. `unavailable`: kind or step to the reason why it was left out.

    `unevictable`: whether compaction was allowed to move locked pages (vm.compact_unevictable_allowed); None: this
    kernel does not say. `swap`: what there was to page out to.
    """

    rows: list[Row]
    unevictable: bool | None
    swap: str
    unavailable: dict[str, str]

    def row(self, kind: str) -> Row:
        """Return the row of a kind.

        :raises UsageError: if it was left out; it has the reason
        """
        for row in self.rows:
            if row.kind == kind:
                return row
        raise UsageError(f"'{kind}' was not measured: {self.unavailable.get(kind, 'it was not asked for')}")


class _Subject:
    """One kind while it is measured."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.buffers: list[PinnedBuffer] = []
        self.holding = self.receiving = self.again = Faults()
        self.locked = self.pinned = self.damaged = 0

    def take(self, size: int, post: _Post) -> None:
        """Take one piece more, and receive into each of its pages."""
        locked, pinned = accounted_bytes()
        at = count_faults()
        buffer = self.kind.take(size)
        self.holding += count_faults() - at
        now = accounted_bytes()
        self.locked += now[0] - locked
        self.pinned += now[1] - pinned
        self.buffers.append(buffer)
        self.receiving += post.into(buffer)
        _marks(buffer)[:] = np.arange(len(buffer) // buffer.page_size)

    def try_out(self, post: _Post) -> None:
        """Take a page that is not counted: what the first time costs is not what each time costs."""
        post.into(self.kind.take(1))

    def look(self) -> Look:
        return np.concatenate([physical_addresses(buffer) for buffer in self.buffers])


class _Post:
    """A datagram to ourselves for each page of a buffer: what the kernel copies there is what faults its pages in."""

    def __init__(self) -> None:
        self._sender, self._reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._letter = bytes(range(256)) * (LETTER // 256)

    def __enter__(self) -> _Post:
        with PinnedBuffer(PIECE * mmap.PAGESIZE) as first:
            self.into(first)  # what the first time costs is nobody's
        return self

    def __exit__(self, *exc: object) -> None:
        self._sender.close()
        self._reader.close()

    def into(self, buffer: PinnedBuffer) -> Faults:
        """Receive into each page, and return the faults that this took."""
        with memoryview(buffer) as view:
            places = [view[at : at + LETTER] for at in range(0, buffer.size, buffer.page_size)]
            send, receive, letter = self._sender.send, self._reader.recv_into, self._letter
            at = count_faults()
            for place in places:
                send(letter)
                receive(place)
            found = count_faults() - at
            for place in places:
                place.release()
        return found


def _marks(buffer: PinnedBuffer) -> Look:
    """The last eight bytes of each page, in place."""
    words = np.frombuffer(memoryview(buffer), np.int64)
    return words.reshape(-1, buffer.page_size // 8)[:, -1]


def measure_pages(
    kinds: Sequence[str] | None = None,
    *,
    pages: int = 512,
    device: str | None = None,
    nic: str | None = None,
    own: Collection[str] = (),
    unevictable: bool = True,
    compaction: bool = True,
    pressure: bool = True,
    filler: int = FILLER,
    say: Say = lambda text: None,
) -> Measured:
    """Take `pages` pages of each kind (`KINDS`; None: all that can be had), and see what becomes of them.

    Takes some seconds in an emulated guest. Needs root. What was changed of the machine (swap, cgroup, sysctls, huge
    pages) is as before when it returns, and is in a journal meanwhile.

    :param pages: of the small size, of each kind
    :param device: verbs device, by default the first
    :param nic: what is taken from the kernel for the kind `ring`: PCI address, netdev or MAC address
    :param own: addresses of that NIC that may go with it
    :param unevictable: whether compaction may move locked pages, which is the kernel's default
    :param compaction, pressure: False leaves that step out
    :param filler: bytes that are taken meanwhile to scatter the pages, at most half of what is available
    :param say: told what is being done, for people who wait
    :return: a row a kind. A kind that was not asked for by name and cannot be had is in `unavailable` instead, and so
        is a step that this machine does not allow
    :raises MachineError: if a kind that was asked for by name cannot be had, or without root
    :raises UsageError: if there is no such kind, or no page
    """
    for name in kinds or ():
        if name not in KINDS:
            raise UsageError(f"there is no kind of memory '{name}'", remedy=f"choose of: {', '.join(KINDS)}")
    if pages < 1:
        raise UsageError("at least one page has to be measured")
    tools.need_root("looking at physical pages, and moving them,")
    unavailable: dict[str, str] = {}
    with Undo("memory under pressure") as undo, contextlib.ExitStack() as stack:
        what_swap, cgroup = "", None
        if pressure:
            try:
                what_swap, cgroup = _pressure(undo, pages * mmap.PAGESIZE * len(KINDS))
            except MachineError as error:
                unavailable["pressure"] = str(error.args[0])
        subjects = []
        for name in kinds or KINDS:
            try:
                kind = open_subject(name, stack, undo, device=device, nic=nic, own=own, huge_pages=HUGE_PAGES + 1)
                subjects.append(_Subject(kind))
            except MachineError as error:
                if kinds is not None:
                    raise
                unavailable[name] = str(error.args[0])
        allowed = _allow(undo, unevictable) if compaction else None
        post = stack.enter_context(_Post())
        between = forces.Filler(min(filler, forces.available_bytes() // 2) // -(-pages // PIECE))
        stack.callback(between.give)
        if compaction:
            say("tidying up")
            _tidy(between, -(-pages // PIECE), unavailable)
        with cgroup.entered() if cgroup else contextlib.nullcontext():
            say("taking memory")
            _scatter(subjects, post, pages, between)
            rows = _steps(subjects, post, compaction, cgroup, between, unavailable, say)
    return Measured(rows, allowed, what_swap, unavailable)


def _pressure(undo: Undo, size: int) -> tuple[str, forces.Cgroup]:
    cgroup = forces.Cgroup(undo)
    return forces.swap_space(undo, size + ROOM), cgroup


def _allow(undo: Undo, unevictable: bool) -> bool | None:
    """Say whether compaction may move locked pages; None where this kernel has no such switch."""
    try:
        undo.sysctl(forces.UNEVICTABLE, str(int(unevictable)))
    except MachineError:
        return None
    return unevictable


def _tidy(between: forces.Filler, rounds: int, unavailable: dict[str, str]) -> None:
    """Compact into gaps once before: else what lies low in memory would fill those that are left for our pages.

    What this frees lies low too, and is what the kernel hands out next: our pages then lie where pages are moved from.
    """
    for _ in range(rounds):
        between.take()
    between.thin()
    try:
        forces.compact_memory()
    except MachineError as error:
        unavailable["compaction"] = str(error.args[0])
    between.give()


def _scatter(subjects: Sequence[_Subject], post: _Post, pages: int, between: forces.Filler) -> None:
    """Take the pieces of all kinds in turns, with filler in between, and leave gaps where the filler was."""
    gc.disable()  # what it frees and touches is none of the faults that are counted
    try:
        for each in subjects:
            each.try_out(post)
            if each.kind.huge:
                for _ in range(HUGE_PAGES):
                    each.take(1, post)
        for first in range(0, pages, PIECE):
            size = min(PIECE, pages - first) * mmap.PAGESIZE
            for each in subjects:
                if not each.kind.huge:
                    each.take(size, post)
            between.take()
        between.thin()
    finally:
        gc.enable()


def _steps(
    subjects: Sequence[_Subject], post: _Post, compaction: bool, cgroup: forces.Cgroup | None,
    between: forces.Filler, unavailable: dict[str, str], say: Say,
) -> list[Row]:  # fmt: skip
    before = [each.look() for each in subjects]
    after = before
    compacted = squeezed = False
    if compaction:
        say("compacting")
        try:
            after = _compacted(subjects, before, between)
            compacted = True
        except MachineError as error:
            unavailable["compaction"] = str(error.args[0])
    between.give()  # or it would be paged out too
    last = after
    if cgroup is not None:
        say("paging out")
        cgroup.squeeze()
        squeezed = True
        last = [each.look() for each in subjects]
    rows = []
    for each, first, middle, end in zip(subjects, before, after, last, strict=True):
        for buffer in each.buffers:
            each.again += post.into(buffer)
            marks = _marks(buffer)
            each.damaged += int(np.count_nonzero(marks != np.arange(len(marks))))
            del marks  # a view, with which the memory could not be given back
        rows.append(_row(each, first, middle, end, compacted, squeezed))
    return rows


def _compacted(subjects: Sequence[_Subject], before: Sequence[Look], between: forces.Filler) -> list[Look]:
    """Compact, with more gaps where nothing was moved for want of them; return where the pages are then."""
    for _ in range(TRIES):
        forces.compact_memory()
        after = [each.look() for each in subjects]
        if any(fate_of(first, last).moved for first, last in zip(before, after, strict=True)):
            break
        between.double()
    return after


def _row(each: _Subject, before: Look, compacted: Look, squeezed: Look, was_compacted: bool, was_squeezed: bool) -> Row:
    size = each.buffers[0].page_size
    return Row(
        kind=each.kind.name,
        sentence=KINDS[each.kind.name],
        page_size=size,
        pages=len(before),
        extents=extents_of(before, size),
        locked=each.locked,
        pinned=each.pinned,
        holding=each.holding,
        receiving=each.receiving,
        again=each.again,
        compaction=fate_of(before, compacted) if was_compacted else None,
        pressure=fate_of(compacted, squeezed) if was_squeezed else None,
        damaged=each.damaged,
        before=before.tolist(),
        compacted=compacted.tolist(),
        squeezed=squeezed.tolist(),
    )


def fate_of(before: Look, after: Look) -> Fate:
    """Return what became of pages between two looks at them."""
    out = after == OUT
    same = (after == before) & ~out
    return Fate(int(same.sum()), int((~same & ~out & (after != ABSENT)).sum()), int(out.sum()))
