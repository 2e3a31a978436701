"""Rows held against each other: against the baseline's, against the width that was asked for, and over size."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

from hwrx import precision, stats
from hwrx.report.model import Cost, Row

if TYPE_CHECKING:
    from hwrx.runs import Run


def relate(rows: list[Row], baseline: str) -> None:
    """Set each row's ratio to the baseline's row of the same run, pattern, size and sweep.

    Where the baseline waits in the same manner it is that row; else the one that it has.
    """
    for row in rows:
        if not row.digests:
            continue
        candidates = [
            base
            for base in rows
            if (base.run, base.pattern, base.size, base.swept, base.load)
            == (row.run, row.pattern, row.size, row.swept, row.load)
            and base.path == baseline
            and base.digests
            and not base.saturated
        ]
        same = [base for base in candidates if base.wait == row.wait]
        if row.path != baseline and not row.saturated and (base := next(iter(same or candidates), None)) is not None:
            _compare(row, base)


def _compare(row: Row, base: Row) -> None:
    """Hold a row against the baseline's, trial by trial of the repeats that both have."""
    common = sorted(set(row.repeats) & set(base.repeats))
    if not common:
        return
    a = [digest for digest, repeat in zip(row.digests, row.repeats, strict=True) if repeat in common]
    b = [digest for digest, repeat in zip(base.digests, base.repeats, strict=True) if repeat in common]
    if row.pattern != "stream":
        row.ratio = stats.quantile_ratio(a, b, 0.5, paired=True)
        row.shift = stats.shift(a, b, paired=True)
    elif all(digest.total for digest in (*a, *b)):
        row.ratio = stats.ratio_across([x.count / x.total for x in a], [x.count / x.total for x in b], paired=True)


def judge(run: Run, rows: list[Row]) -> None:
    """Mark the rows whose interval is wider than the experiment asked."""
    if run.experiment.until is not None:
        for row in rows:
            row.converged = precision.converged(row, run.experiment.until) if row.digests else None


def costs_of(rows: list[Row]) -> list[Cost]:
    """Fit p50 of a ping-pong against size, by least squares, where a path was measured at four sizes or more.

    In each repeat alone: so the interval is that of the slope across repeats. A half round trip crosses the path once,
    a full one (READ) carries the payload once too.
    """
    groups: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.pattern == "pingpong" and row.digests:
            groups[row.label, row.wait].append(row)
    costs = []
    for (name, wait), of in groups.items():
        common = set.intersection(*(set(row.repeats) for row in of))
        if len(of) < 4 or not common or any(row.quantiles["p50"] is None for row in of):
            continue
        sizes = np.array([row.size for row in of], float)
        lines = []
        for repeat in sorted(common):
            medians = np.array([row.digests[row.repeats.index(repeat)].quantile(0.5) for row in of])
            # relative errors are alike at all sizes, so each point weighs by its inverse
            lines.append(np.polyfit(sizes, medians, 1, w=1 / medians))
        slopes, starts = np.array(lines).T
        costs.append(
            Cost(
                row=name,
                wait=wait,
                sizes=[row.size for row in of],
                byte=stats.mean_across([float(slope * 1e3) for slope in slopes]),
                message=stats.mean_across([float(start) for start in starts]),
            )
        )
    return costs
