"""From runs to figures of merit: the one place where samples become what tables, pictures and sentences show."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hwrx import paths as delivery
from hwrx.report import words
from hwrx.report.model import BASELINE, Row, Summary
from hwrx.report.ratios import costs_of, judge, relate
from hwrx.report.rows import rows_of

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


def summarise(runs: Sequence[Run]) -> Summary:
    """Digest the runs, one trial in memory at a time."""
    from hwrx.report import answer  # which is made from a whole summary

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
    relate(rows, baseline)
    for run in runs:
        judge(run, [row for row in rows if row.run in ("", run.path.name)])
    warnings = [warning for run in runs for warning in words.of_run(run)]
    warnings += words.of_rows(rows)
    summary = Summary(
        runs=list(runs),
        rows=rows,
        baseline=baseline,
        label="; ".join(dict.fromkeys(label(run) for run in runs)),
        answer=words.answer(rows, baseline),
        warnings=warnings,
        costs=costs_of(rows),
        skipped=[(skip["label"], skip["reason"]) for run in runs for skip in run.manifest.get("skipped", [])],
    )
    if answer.compares(summary) and summary.of("pingpong"):
        summary.answer = answer.sentence(summary)
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


def _step(steps: dict[str, list[Any]], key: str, value: Any) -> tuple[str, int, str]:
    """Where a row stands among those of other values; a field that a path's own table sets comes by its words."""
    listed = steps.get(key, [])
    return key, listed.index(value) if value in listed else len(listed), str(value)


def label(run: Run) -> str:
    """Say on what the run was measured: what each caption needs so that nobody takes it for something else."""
    said = []
    if run.manifest["clock"] == "icount":
        said.append("virtual time, 1 ns = 1 guest instruction")
    elif run.emulated:
        said.append("EMULATED guest: compare within the run only")
    else:
        said.append("wall clock")
    if kernel := kernel_of(run):
        said.append(f"Linux {kernel}")
    said.append(f"topology {run.manifest['topology']}")
    if run.status != "complete":
        said.append(f"{run.status.upper()} run")
    if run.damage:
        said.append("DAMAGED run")
    return ", ".join(said)


def kernel_of(run: Run) -> str:
    """The release of the kernel that the messages crossed; empty where the manifest does not say."""
    kernel = find(run.manifest.get("machine"), "kernel")
    if isinstance(kernel, dict):
        kernel = kernel.get("release")
    return str(kernel or "")


def find(tree: Any, key: str) -> Any:
    """Return the first value of `key` anywhere in nested dictionaries, nearest to the top first."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, dict) and node.get(key) is not None:
                return node[key]
        level = [value for node in level if isinstance(node, dict) for value in node.values()]
    return None


def software_rdma(run: Run) -> bool:
    """Whether the run's verbs paths crossed SoftRoCE: its device says so, or the lab's guest has no other."""
    if not any(delivery.PATHS[p].needs == "verbs" for p in run.experiment.paths if p in delivery.PATHS):
        return False
    text = msgspec.json.encode(run.manifest).decode()
    return "rxe" in text or run.manifest["topology"] in ("pair", "wire")
