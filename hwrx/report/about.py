"""The paragraphs that stand under the tables of a report: how the figures were made, and what they are not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hwrx.machine import placement
from hwrx.report.model import Summary
from hwrx.report.numbers import WITHHELD
from hwrx.report.provenance import find_key, software_rdma
from hwrx.runs import renewal
from hwrx.stats import BEYOND

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

RXE = (
    "The rdma paths of this run cross SoftRoCE (rxe), RDMA in software. It has RDMA's interface and RoCE's packets, "
    "but no adapter: the CPU does the HCA's copying. Each payload byte is copied once by the CPU on the sending "
    "side (twice if it is posted inline) and once on the receiving side, as often as over UDP, and either side "
    "reads it once more for the checksum. A real HCA moves the bytes itself, by DMA, and the CPU copies none. So "
    "these figures tell what the interface and its packets cost here; they do not tell how fast RDMA hardware is."
)
HOW = (
    "Figures are geometric means over the repeats. Intervals are Student's at 95 %, on the logarithm of each repeat's "
    "figure, and no narrower than the clock's step; they hold what varied between the repeats of this run, and nothing "
    "that all of them had in common, as two runs have not: hwrx diff takes several runs a side. Within one repeat the "
    "settings ran in random order. Quantiles are of type 8 of Hyndman and Fan. "
    f"{WITHHELD} stands where fewer than {BEYOND} samples lie beyond the quantile; an interval is withheld of one "
    "repeat, and of repeats that fall into groups."
)
UNTIL = (
    "Repeats went on until the intervals were as narrow as the experiment asked. Whoever looks after each repeat stops "
    "too early too often, so these intervals were made at 98 %; they hold the truth in 95 of 100 such runs, or more."
)


def about_row(summary: Summary) -> list[str]:
    """Paragraphs to stand under the tables: how the figures were made, and what they are not."""
    paragraphs = [HOW]
    if any(run.experiment.until is not None for run in summary.runs):
        paragraphs.append(UNTIL)
    paragraphs += _conditions(summary)
    if any(software_rdma(run) for run in summary.runs):
        paragraphs.insert(0, RXE)
    return paragraphs


def _memory(run: Run) -> list[str]:
    """Say of which kind of memory the buffers of verbs paths were; a sentence a kind."""
    found: dict[str, dict[str, None]] = {}
    if "chosen" in run.trials.column_names:
        for path, chosen in zip(run.trials["path"].to_pylist(), run.trials["chosen"].to_pylist(), strict=True):
            memory = find_key(json.loads(chosen or "{}"), "memory")
            if memory:
                found.setdefault(str(memory), {})[path] = None
    return [f"The buffers of {', '.join(paths)}: {memory}." for memory, paths in found.items()]


def _conditions(summary: Summary) -> list[str]:
    """Say where the ends ran, and what the repeats had in common; each sentence once, however many runs there are."""
    said: dict[str, None] = {}
    for run in summary.runs:
        where = run.manifest.get("placement")
        said[placement.describe_placement(where) if where else ""] = None
        said[renewal.describe_renewal(run.manifest)] = None
        said.update(dict.fromkeys(_memory(run)))
    return [sentence for sentence in said if sentence]
