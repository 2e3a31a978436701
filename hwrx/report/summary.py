"""From runs to figures of merit: the one place where samples become what tables, pictures and sentences show."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hwrx.report import answer, words
from hwrx.report.model import BASELINE, Row, Summary
from hwrx.report.provenance import label_of_run
from hwrx.report.ratios import costs_of, judge_rows, relate_rows
from hwrx.report.rows import rows_of

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def summarise_runs(runs: Sequence[Run]) -> Summary:
    """Digest the runs, one trial in memory at a time."""
    rows: list[Row] = []
    for run in runs:
        rows += rows_of(run, run.path.name if len(runs) > 1 else "")
    order = {path: place for place, path in enumerate(dict.fromkeys(row.path for row in _by_experiment(runs, rows)))}
    steps = _steps(runs)
    rows.sort(
        key=lambda row: (
            row.pattern, row.size, [_step(steps, key, value) for key, value in row.swept.items() if key != "rate"],
            order[row.path], row.wait, row.rate or 0.0, row.run,
        )
    )  # fmt: skip
    baseline = BASELINE if any(row.path == BASELINE for row in rows) else next(iter(order), BASELINE)
    relate_rows(rows, baseline)
    for run in runs:
        judge_rows(run, [row for row in rows if row.run in ("", run.path.name)])
    warnings = [warning for run in runs for warning in words.of_run(run)]
    warnings += words.of_rows(rows)
    summary = Summary(
        runs=list(runs),
        rows=rows,
        baseline=baseline,
        label="; ".join(dict.fromkeys(label_of_run(run) for run in runs)),
        answer=words.answer_words(rows, baseline),
        warnings=warnings,
        costs=costs_of(rows),
        skipped=[(skip["label"], skip["reason"]) for run in runs for skip in run.manifest.get("skipped", [])],
    )
    if answer.compares_paths(summary) and summary.of("pingpong"):
        summary.answer = answer.answer_sentence(summary)
    return summary


def _by_experiment(runs: Sequence[Run], rows: list[Row]) -> Iterable[Row]:
    wanted = {path: place for run in reversed(runs) for place, path in enumerate(run.experiment.paths)}
    return sorted(rows, key=lambda row: wanted.get(row.path, len(wanted)))


def _steps(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The values of each swept field in the order in which the experiments list them."""
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for run in runs:
        for key, values in run.experiment.sweep.items():
            found[key] += [value for value in values if value not in found[key]]
    return found


def _step(steps: dict[str, list[Any]], key: str, value: object) -> tuple[str, int, str]:
    """Where a row stands among those of other values; a field that a path's own table sets comes by its words."""
    listed = steps.get(key, [])
    return key, listed.index(value) if value in listed else len(listed), str(value)
