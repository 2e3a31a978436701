"""What becomes of the physical pages under a buffer: held by nobody, locked, registered with a device, mapped for one.

    from hwrx import memory

    found = memory.measure_pages(["ordinary", "locked", "registered"], device="rxe0")
    for row in found.rows:
        print(row.kind, row.compaction.moved, row.pressure.swapped, row.again.major)

`measure_pages` takes the same physical memory for all kinds in turns, receives a datagram into each page, lets the
kernel compact its memory and page out what it can, receives again, and looks up each page in /proc/self/pagemap in
between. `hold_pages` says what it costs to get hold of some memory, and `find_limits` what happens where the kernel
allows no more of it. All of them need root; they undo what they changed.
"""

from hwrx.memory.holding import Holding, hold_pages
from hwrx.memory.limits import Limit, find_limits
from hwrx.memory.measuring import Fate, Measured, Row, measure_pages
from hwrx.memory.pages import Faults
from hwrx.memory.subjects import KINDS

__all__ = [
    "KINDS",
    "Fate",
    "Faults",
    "Holding",
    "Limit",
    "Measured",
    "Row",
    "find_limits",
    "hold_pages",
    "measure_pages",
]
