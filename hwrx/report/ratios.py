"""Rows held against each other: against the baseline's, against the width that was asked for, and over size."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import numpy as np

from hwrx import stats
from hwrx.report.model import Cost, Row
from hwrx.runs.experiment import Until

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def relate_rows(rows: list[Row], baseline: str) -> None:
    """Set each row's ratios to the baseline's row of the same run, pattern, size and sweep.

    Where the baseline waits in the same manner it is that row; else the one that it has.
    """
    for row in rows:
        if row.digests and row.path != baseline and not row.saturated:
            candidates = [base for base in rows if base.path == baseline and base.digests and not base.saturated]
            candidates = [base for base in candidates if _like(base, row)]
            # the nearest: swept alike to the letter, then waiting alike
            candidates.sort(key=lambda base, row=row: (base.swept != row.swept, base.wait != row.wait))  # type: ignore[misc]
            if candidates:
                _compare(row, candidates[0])


def _like(base: Row, row: Row) -> bool:
    """Whether a row of the baseline was measured under the same conditions, as far as its path has them."""
    return (base.run, base.pattern, base.size, base.load) == (row.run, row.pattern, row.size, row.load) and all(
        base.swept.get(field) in (value, None) for field, value in row.swept.items()
    )


def _compare(row: Row, base: Row) -> None:
    """Hold a row against the baseline's, trial by trial of the repeats that both have."""
    common = sorted(set(row.repeats) & set(base.repeats))
    if not common:
        return
    a, b = ([of.digests[of.repeats.index(repeat)] for repeat in common] for of in (row, base))
    if row.pattern != "stream":
        row.ratio = stats.quantile_ratio(a, b, 0.5, row.level)
        row.shift = stats.shift_between(a, b, row.level)
    elif not row.withheld and not base.withheld:
        ours, theirs = ([of.rates[of.repeats.index(repeat)] for repeat in common] for of in (row, base))
        row.ratio = stats.ratio_across(ours, theirs, level=row.level)
    if row.busy and base.busy:
        pair = [[of.busy[of.repeats.index(repeat)] for repeat in common] for of in (row, base)]
        row.cost_ratio = stats.ratio_across(pair[0], pair[1], row.level)


def judge_rows(run: Run, rows: list[Row]) -> None:
    """Mark the rows whose interval is wider than the experiment asked."""
    if run.experiment.until is not None:
        for row in rows:
            row.converged = is_converged(row, run.experiment.until) if row.digests else None


def is_converged(row: Row, until: Until) -> bool:
    """Whether a row's interval, made for looking after each repeat, is as narrow as asked: of the quantile, or of a
    stream's rate.
    """
    if row.pattern == "stream":
        return stats.is_converged(row.messages_per_s, until.width)
    return stats.is_converged(stats.quantile_across(row.digests, until.quantile, stats.SEQUENTIAL), until.width)


def costs_of(rows: list[Row]) -> list[Cost]:
    """Fit p50 of a ping-pong against size, by least squares, where a path was measured at four sizes or more.

    In each repeat alone: so the interval is that of the slope across repeats. A half round trip crosses the path once,
    a full one (READ) carries the payload once too. How far each size lies off the line is said beside it: a path that
    cuts messages into packets is no line.
    """
    groups: dict[tuple[Any, ...], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.pattern == "pingpong" and row.digests:
            groups[row.line].append(row)
    costs = []
    for line, of in groups.items():
        common = set.intersection(*(set(row.repeats) for row in of))
        if len(of) < 4 or not common or any(row.quantiles["p50"] is None for row in of):
            continue
        sizes = np.array([row.size for row in of], float)
        lines, misfits = [], []
        for repeat in sorted(common):
            medians = np.array([row.digests[row.repeats.index(repeat)].quantile(0.5) for row in of])
            # relative errors are alike at all sizes, so each point weighs by its inverse
            slope, start = np.polyfit(sizes, medians, 1, w=1 / medians)
            lines.append((float(slope), float(start)))
            misfits.append(medians / (start + slope * sizes) - 1)
        slopes, starts = zip(*lines, strict=True)
        steps = [digest.step for row in of for digest in row.digests]
        costs.append(
            Cost(
                line=line,
                row=of[0].label,
                wait=of[0].wait,
                sizes=[row.size for row in of],
                byte=stats.mean_across(
                    [slope * 1e3 for slope in slopes], of[0].level, 1e3 * max(steps) / float(np.ptp(sizes))
                ),
                message=stats.mean_across(starts, of[0].level, max(steps)),
                misfit=[float(off) for off in np.median(misfits, axis=0)],
            )
        )
    return costs
