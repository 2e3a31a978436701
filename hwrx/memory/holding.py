"""What it costs to get hold of memory: page faults, time, and in how many pieces it then lies."""

from __future__ import annotations

import contextlib
import gc
import mmap
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct

from cython_ext.core.dma_buf import open_dma_buf
from cython_ext.core.pinned import PinnedBuffer, huge_page_size
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.undo import Undo
from hwrx.memory.pages import OUT, Faults, count_faults, extents_of, physical_addresses
from hwrx.memory.subjects import open_domain, register_buffer, reserve_huge

REPEATS = 7
ON_DEMAND = "ibv_reg_mr, on demand (ODP)"
UNTOUCHED = {"transparent": False, "fault_in": False}

Step = Callable[[PinnedBuffer, int, int, contextlib.ExitStack], object]  # buffer, offset, bytes, until when


class Holding(Struct, frozen=True):
    """One manner of getting hold of `size` bytes. `pages`: that are in memory then; `extents`: contiguous pieces of it.

    `ns`: median of the repeats; in a guest that counts instructions (icount), so many of those.
    """

    what: str
    size: int
    page_size: int
    pages: int
    extents: int
    faults: Faults
    ns: int


def hold_pages(size: int = 4 << 20, *, device: str | None = None) -> tuple[list[Holding], dict[str, str]]:
    """Time getting hold of `size` bytes by touching, mlock and ibv_reg_mr, in small, transparent and reserved pages.

    Needs root, which alone may see physical addresses. Huge pages that had to be reserved are given back.

    :param size: bytes of each manner, a page at least
    :param device: verbs device, by default the first
    :return: a figure for each manner, and by manner what could not be had and why
    :raises UsageError: if `size` is less than a page
    :raises MachineError: without root
    """
    if size < mmap.PAGESIZE:
        raise UsageError(f"at least a page, {mmap.PAGESIZE} bytes, has to be held")
    tools.need_root("looking at physical pages")
    found: list[Holding] = []
    unavailable: dict[str, str] = {}
    steps: list[tuple[str, Step, dict[str, bool]]] = [
        ("touch, small pages", _touch, UNTOUCHED),
        ("touch, transparent huge pages", _touch, {"fault_in": False}),
        (
            "mlock, small pages",
            lambda buffer, offset, size, stack: None,
            {"transparent": False, "fault_in": False, "lock": True},
        ),
    ]
    with Undo("huge pages") as undo, contextlib.ExitStack() as stack:
        try:
            pd = open_domain(stack, device)
        except MachineError as error:
            unavailable["ibv_reg_mr"] = str(error.args[0])
        else:

            def register(
                buffer: PinnedBuffer, offset: int, size: int, until: contextlib.ExitStack, kind: str = "pinned"
            ) -> object:
                return register_buffer(until, pd, buffer, offset, size, kind)

            steps += [
                ("ibv_reg_mr, small pages", register, UNTOUCHED),
                ("ibv_reg_mr, small pages, touched before", register, {"transparent": False}),
                ("ibv_reg_mr, transparent huge pages, touched before", register, {}),
                ("ibv_reg_mr, reserved huge pages, touched before", register, {"huge": True}),
                ("ibv_reg_dmabuf_mr, touched before", partial(register, kind="dmabuf"), {"dma_buf": True}),
            ]
            # asked, not tried: SoftRoCE of old kernels takes the flag and pins the pages all the same
            if pd.context.on_demand.rc:
                steps.append((ON_DEMAND, partial(register, kind="odp"), UNTOUCHED))
            else:
                unavailable[ON_DEMAND] = f"{pd.context.name} has no on-demand paging"
        for what, step, options in steps:
            try:
                if options.get("huge"):
                    reserve_huge(undo, -(-size // huge_page_size()))
                found.append(_held(what, size, step, options))
            except MachineError as error:
                unavailable[what] = str(error.args[0])
    return found, unavailable


def _touch(buffer: PinnedBuffer, offset: int, size: int, stack: contextlib.ExitStack) -> object:
    with memoryview(buffer) as view:
        view[offset : offset + size : mmap.PAGESIZE] = bytes(-(-size // mmap.PAGESIZE))
    return None


def _held(what: str, size: int, step: Step, options: dict[str, Any]) -> Holding:
    """One manner, repeated. Where memory is locked, the constructor does it and is timed with its mmap."""
    times: list[int] = []
    locks = options.get("lock", False)
    # the kernel makes huge pages where they are aligned, so there is room to begin at one
    whole = options.get("huge") or options.get("dma_buf")
    room = huge_page_size() if options.get("transparent", True) and not whole else 0
    gc.disable()  # what it touches is none of the faults that are counted
    try:
        for _ in range(REPEATS):
            with contextlib.ExitStack() as stack:
                at, since = count_faults(), time.monotonic_ns()
                buffer = stack.enter_context(
                    open_dma_buf(size)
                    if options.get("dma_buf")
                    else PinnedBuffer(size + room, **{"lock": False, **options})
                )
                offset = -buffer.address % room if room else 0
                if not locks:
                    at, since = count_faults(), time.monotonic_ns()
                step(buffer, offset, size, stack)
                times.append(time.monotonic_ns() - since)
                taken = count_faults() - at
                first = offset // buffer.page_size
                physical = physical_addresses(buffer)[first : first - (-size // buffer.page_size)]
                page_size = buffer.page_size
    finally:
        gc.enable()
    there = physical[physical > OUT]
    pieces = extents_of(there, page_size)
    return Holding(what, len(physical) * page_size, page_size, len(there), pieces, taken, int(statistics.median(times)))
