"""The report of floods as one HTML file and its pictures, made from the run directory alone."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from hwrx.flood import pictures, words
from hwrx.flood.model import Flood
from hwrx.host import disk
from hwrx.report.page import NARROW, WIDE, render_template
from hwrx.report.provenance import flat_changes, label_of_run
from hwrx.runs import reading

ABOUT = (
    "A CPU's time is cut at every event that changes whose it is (a task switch, a system call, an interrupt, "
    "a softirq), so the shares of a CPU add up to 100 %. What the user's side of a page fault costs the kernel "
    "stands as user.",
    "A softirq runs on top of whatever the CPU does: at the end of an interrupt, at the end of a task's own send, or "
    "in ksoftirqd, which the scheduler weighs against other tasks. One poll of a device brings at most its weight of "
    "packets, one run of net_rx_action at most netdev_budget of them, and at most netdev_budget_usecs long. A device "
    "that has packets left after its poll is polled again in the next run, not in the same: so one device alone never "
    "has more than its weight in a run, and the budget is for several.",
    "Every loss is placed by the kernel's own reason; what a WRITE wrote over, by the reader's count. Delivered is "
    "counted over the whole time from the first send to the last delivery, so what a queue held at the end is in it.",
)


def write_page(run: reading.Run, floods: Sequence[Flood]) -> list[pathlib.Path]:
    """Write the page and the pictures into the run's directory; return the files."""
    directory, label = run.path, label_of_run(run)
    with disk.guarded_writes(directory):
        page = directory / "report.html"
        disk.refuse_link(directory / "figures")
        disk.write_new(page, render_page(run, floods, label))
        return [*pictures.write_all(floods, label, directory / "figures"), page]


def render_page(run: reading.Run, floods: Sequence[Flood], label: str) -> str:
    """Return the page; the same for the same run each time."""
    lines = [(key, text) for key, text in flat_changes(run.manifest) if key not in ("question", "skipped", "warnings")]
    drawn = [
        {
            "name": name,
            "title": pictures.title_of(floods, name),
            "wide": pictures.inline_svg(floods, name, label, WIDE, f"{name}-wide"),
            "narrow": pictures.inline_svg(floods, name, label, NARROW, f"{name}-narrow"),
        }
        for name in pictures.picture_names(floods)
    ]
    return render_template(
        "flood.html",
        title=words.label_of(floods[0].spec) if floods else run.name,
        answers=[words.answer_of(flood) for flood in floods],
        label=label,
        notes=words.notes_of(floods),
        tables=[*words.tables_of(floods), *(words.kernels_account(flood) for flood in floods[:1])],
        figures=drawn,
        about=ABOUT,
        lines=lines,
        name=run.path.name,
    )
