"""Who needs a page table: for each of the eight rows of the article's table, what CR3 held when the step was made."""

from __future__ import annotations

from msgspec import Struct

from hwrx.reception.records import KERNEL_TABLE
from hwrx.reception.scene import Found
from hwrx.reception.trail import Trail, page_table_loads
from hwrx.reception.view import table_name

# the article's rows: what is done, by whom, what the article says of CR3, the event at which it is looked at
ROWS = (
    ("radio to bytes", "NIC hardware", "no", ""),
    ("DMA to RAM", "NIC hardware", "no", ""),
    ("parse headers", "kernel", "no", "ip_rcv"),
    ("look up the socket", "kernel", "no", "lookup"),
    ("queue to the socket", "kernel", "no", "enqueued"),
    ("wake the process up", "scheduler", "no", "waking"),
    ("switch to the process", "scheduler", "yes", "mm switched"),
    ("copy to the user's buffer", "kernel", "yes", "copied"),
)


class TableUse(Struct, frozen=True):
    """One row: what the article says, the page table that was loaded (0: not seen), whose, and what that means."""

    what: str
    who: str
    said: str
    table: int
    whose: str
    loads: int | None  # of CR3 on this CPU since the row before
    verdict: str


def table_uses(trail: Trail, found: Found) -> list[TableUse]:
    """Return the eight rows as they were seen."""
    reader = _reader_table(trail)
    loads = len(page_table_loads(trail, found))
    return [_row(trail, reader, loads, *row) for row in ROWS]


def _reader_table(trail: Trail) -> int:
    for name in ("copied", "taken"):
        event = trail.get(name)
        if event is not None and event.tid:
            return event.table
    return 0


def _row(trail: Trail, reader: int, loads: int, what: str, who: str, said: str, name: str) -> TableUse:
    if not name:
        dma = trail.get("ring read")
        if what.startswith("DMA") and dma is not None:
            verdict = f"as it says: the descriptor holds the DMA address {dma.values[4]:#x}, and no page table is asked"
            return TableUse(what, who, said, 0, "", None, verdict)
        return TableUse(what, who, said, 0, "", None, "no program of the CPU's sees it; the NIC has no access to CR3")
    event = trail.get(name)
    if event is None:
        return TableUse(what, who, said, 0, "", None, "not seen on this way")
    if name == "mm switched":
        before, after = event.values[:2]
        verdict = f"as it says: CR3 goes from {table_name(before)} to {after:#x}"
        return TableUse(what, who, said, after, "the reader's", 1, verdict)
    whose = "the reader's" if event.table == reader else "another task's"
    if event.table == KERNEL_TABLE:
        whose = "the kernel's own"
    if said == "yes":
        good = event.table == reader and reader != 0
        verdict = "as it says: the reader's is loaded, and translates the buffer" if good else "not as it says"
        return TableUse(what, who, said, event.table, whose, 0, verdict)
    verdict = (
        "as it says: whoever's it is, the kernel's part is the same in all, and none was loaded for it"
        if not loads
        else f"none was loaded for it; the scheduler loaded one {loads} times meanwhile"
    )
    return TableUse(what, who, said, event.table, whose, loads, verdict)
