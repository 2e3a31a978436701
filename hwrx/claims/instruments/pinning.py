"""What becomes of the physical pages under a buffer, and who faults them in: the measurement of `hwrx memory`."""

from __future__ import annotations

from hwrx import memory
from hwrx.claims.figures import give_figures, words_of
from hwrx.claims.model import Measurement
from hwrx.claims.pictures import Cells
from hwrx.claims.session import Session
from hwrx.memory.pages import OUT

SHOWN = 128  # pages of each kind in the picture
WORDS = {
    "ordinary": "ordinary memory",
    "locked": "locked memory (mlock)",
    "registered": "registered with the verbs device (ibv_reg_mr)",
}


@give_figures(
    "pages",
    more=lambda given: [
        f"{kind}_{what}" for kind in words_of(given, "kinds") for what in ("moved", "swapped", "faults", "pinned")
    ],
)
def pinning(
    session: Session,
    pages: int = 256,
    filler_mb: int = 128,
    kinds: list[str] = ["ordinary", "locked", "registered"],  # noqa: B006 - a default that says the kind
) -> Measurement:
    """Receive into pages of several kinds, let the kernel compact its memory and page out, look where each page is.

    Figures for each kind K of `hwrx memory`: K_moved by compaction and K_swapped under pressure (pages), K_faults (page
    faults while a message was received into each page for the first time, a page), K_pinned (bytes, VmPin); `pages`.
    """
    device = session.wire.places["server"].verbs
    found = memory.measure_pages(kinds, pages=pages, device=device, filler=filler_mb << 20)
    figures: dict[str, float | int | bool | str | None] = {"pages": pages}
    rows: dict[str, list[int]] = {}
    for row in found.rows:
        figures[f"{row.kind}_moved"] = row.compaction.moved if row.compaction else None
        figures[f"{row.kind}_swapped"] = row.pressure.swapped if row.pressure else None
        figures[f"{row.kind}_faults"] = (row.receiving.minor + row.receiving.major) / row.pages
        figures[f"{row.kind}_pinned"] = row.pinned
        states = [_state(*each) for each in zip(row.before, row.compacted, row.squeezed, strict=True)]
        rows[f"{WORDS.get(row.kind, row.kind)}, {min(SHOWN, len(states))} of {row.pages} pages"] = states[:SHOWN]
    legend = ["stayed where it was", "moved by compaction", "paged out", "moved, then paged out"]
    steps = {"_moved": "compaction", "_swapped": "pressure"}
    absent = {
        name: found.unavailable.get(step, "it was not measured")
        for name, value in figures.items()
        for ending, step in steps.items()
        if value is None and name.endswith(ending)
    }
    return Measurement(figures, Cells(rows, legend), absent)


def _state(before: int, compacted: int, squeezed: int) -> int:
    """Which of the legend's words a page deserves."""
    moved = compacted not in (before, OUT)
    return (3 if moved else 2) if squeezed == OUT else int(moved)
