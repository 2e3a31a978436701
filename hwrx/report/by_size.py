"""The table of messages that differ in size: what was drawn, and each class of sizes for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwrx import stats
from hwrx.paths import mixes
from hwrx.report import captions
from hwrx.report.cells import Cell, Table, column_heads, estimate_cell
from hwrx.report.model import Row, Summary, name_of, scaled_estimate
from hwrx.report.numbers import WITHHELD, size_words

if TYPE_CHECKING:
    from hwrx.runs.reading import Run

NAME = "sizes"
WHAT = (
    "Messages that differ in size, drawn from the experiment's seed before each trial: of each class of sizes how many "
    "messages came, their share of all messages and of all bytes, and what they took by themselves"
)
SHOWN = (0.5, 0.99)


def size_tables(summary: Summary) -> list[Table]:
    """The table, if any row has a mix of sizes."""
    pairs = [(row, run) for row in summary.rows for run in summary.runs if row.run in ("", run.path.name)]
    pairs = [(row, run) for row, run in pairs if row.setting.get("mix") and row.digests]
    if not pairs:
        return []
    rows = [row for row, _ in pairs]
    columns, head = column_heads(rows)
    columns = columns[1:]  # the size is what differs
    columns += [("bytes", ""), ("messages", ""), ("of messages", ""), ("of bytes", "")]
    timed = any(row.pattern != "stream" for row in rows)  # the gaps of a stream are nobody's
    columns += [(f"{name_of(p)} [µs]", "") for p in SHOWN if timed]
    cells = []
    for row, run in pairs:
        for place, own in enumerate(_classes(row, run)):
            if not timed or row.pattern == "stream":
                own = [*own[:4], *[(WITHHELD, "")] * (len(SHOWN) if timed else 0)]
            cells.append((place == 0, [*head(row)[1:], *own]))
    return [Table(NAME, "By size", f"{WHAT}; {captions.basis(rows)}. {summary.label}.", columns, cells, 1)]


def _classes(row: Row, run: Run) -> list[list[Cell]]:
    """The cells of each class of a row: its sizes, messages, shares, and its quantiles."""
    factor = (0.5 if row.measures == "half round trip" else 1.0) / 1e3
    trials = [(np.asarray(samples.size), samples) for samples in map(run.trial_samples, row.trials)]
    total = sum(len(sizes) for sizes, _ in trials)
    every = sum(int(sizes.sum(dtype=np.int64)) for sizes, _ in trials)
    found: list[list[Cell]] = []
    for least, most in mixes.size_classes(mixes.read_mix(row.setting["mix"])):
        inside = [(sizes >= least) & (sizes <= most) for sizes, _ in trials]
        count = sum(int(which.sum()) for which in inside)
        bytes_of = sum(int(sizes[which].sum(dtype=np.int64)) for (sizes, _), which in zip(trials, inside, strict=True))
        times = [samples.ns[which] for (_, samples), which in zip(trials, inside, strict=True)]
        digests = [stats.digest_samples(ns) for ns in times if len(ns)]
        quantiles = [stats.quantile_across(digests, p, row.level) if digests else None for p in SHOWN]
        words = size_words(least) if least == most else f"{least:,} to {most:,} B"
        found.append(
            [
                (words, ""),
                (f"{count:,}", ""),
                (f"{100 * count / total:.1f} %" if total else WITHHELD, ""),
                (f"{100 * bytes_of / every:.1f} %" if every else WITHHELD, ""),
                *(estimate_cell(None if each is None else scaled_estimate(each, factor)) for each in quantiles),
            ]
        )
    return found
