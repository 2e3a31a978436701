"""Of traced runs: how often the payload is copied and passed over, and what tracing cost.

Reads the tables `copies` and `tracing` of run directories. Both know the trial that they are of, and with it the row of
the report: nothing is added up over settings that differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from hwrx import stages
from hwrx.report.cells import Cell, Kind, Table, column_heads
from hwrx.report.model import Row, Summary
from hwrx.report.numbers import WITHHELD, number_text

if TYPE_CHECKING:
    from hwrx.runs.reading import Run


class Handled(Struct, frozen=True, kw_only=True):
    """How often CPUs copied each byte of a row's payload, and how often they only read it; None: nothing counted."""

    copied: tuple[float | None, float | None]  # by the sender's side, by the receiver's
    passed: tuple[float | None, float | None]


def bytes_handled(summary: Summary) -> dict[tuple[Any, ...], Handled]:
    """By the key of each row that was traced: its copies and passes a byte delivered."""
    found = {}
    for run in summary.runs:
        tracing, copied = _by_trial(run, "tracing"), _by_trial(run, "copies")
        for row in summary.of_run(run.path.name):
            trials = [trial for trial in row.trials if trial in tracing]
            whole = sum(tracing[trial][0]["delivered_bytes"] for trial in trials)
            if not whole:
                continue
            entries = [entry for trial in trials for entry in copied.get(trial, [])]
            counted = [tracing[trial][0] for trial in trials]
            found[row.key] = Handled(
                copied=_sides(entries, "copied", whole, _known(counted, "copies")),
                passed=_sides(entries, "passed", whole, _known(counted, "passes")),
            )
    return found


def _known(counted: Sequence[dict[str, Any]], what: str) -> list[bool]:
    """Whether all of a row's trials had something that counted a side's copies or passes."""
    return [all(trial.get(f"{side}_{what}") is not None for trial in counted) for side in ("sender", "receiver")]


def _sides(
    entries: list[dict[str, Any]], kind: str, whole: int, known: Sequence[bool]
) -> tuple[float | None, float | None]:
    sums = (
        sum(entry["bytes"] for entry in entries if (entry["side"], entry["kind"]) == (side, kind)) / whole
        for side in ("sender", "receiver")
    )
    sender, receiver = (value if seen else None for value, seen in zip(sums, known, strict=True))
    return sender, receiver


def ledger_tables(summary: Summary) -> list[Table]:
    """Copies per byte, and what tracing cost."""
    found = []
    for run in summary.runs:
        name = f"-{run.path.name}" if len(summary.runs) > 1 else ""
        found += [table for table in (_copies(summary, run, name), _tracing(summary, run, name)) if table is not None]
    return found


def _by_trial(run: Run, name: str) -> dict[int, list[dict[str, Any]]]:
    table = run.table(name)
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in [] if table is None else table.to_pylist():
        found.setdefault(entry["trial"], []).append(entry)
    return found


def _traced_rows(
    summary: Summary, run: Run, by_trial: dict[int, list[dict[str, Any]]]
) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
    """The rows that were traced, each with the entries of all its trials."""
    for row in summary.of_run(run.path.name):
        entries = [entry for trial in row.trials for entry in by_trial.get(trial, [])]
        if entries:
            yield row, entries


def _copies(summary: Summary, run: Run, name: str) -> Table | None:
    copied, tracing = _by_trial(run, "copies"), _by_trial(run, "tracing")
    if not copied or not tracing:
        return None
    traced = list(_traced_rows(summary, run, copied))
    columns, head = column_heads([row for row, _ in traced])
    rows: list[tuple[bool, list[Cell]]] = []
    for row, entries in traced:
        whole = sum(tracing[trial][0]["delivered_bytes"] for trial in row.trials if trial in tracing)
        added: dict[tuple[str, str, str, str], int] = {}
        remarks = {}
        for entry in entries:
            key = (entry["side"], entry["kind"], entry["stage"], entry["actor"])
            added[key] = added.get(key, 0) + entry["bytes"]
            # what a stage does stands in the catalogue; what is no stage, or only sometimes one, needs its word here
            if entry["stage"] not in stages.BY_NAME or entry["kind"] == "mapped":
                remarks[key] = entry["words"]
        first = True
        for key, count in sorted(added.items(), reverse=True):
            per_byte = f"{count / whole:{'+.4f' if key[1] == 'balance' else '.3f'}}" if whole else WITHHELD
            words: list[Cell] = [(word, "") for word in (*key, per_byte, remarks.get(key, ""))]
            rows.append((first, [*(head(row) if first else [("", "")] * len(columns)), *words]))
            first = False
    more: list[tuple[str, Kind]] = [
        ("side", "t"), ("what", "t"), ("stage", "t"), ("by", "t"), ("times per byte", ""), ("", "t")
    ]  # fmt: skip
    caption = (
        "Bytes of payload that the CPU copied, only read (passed) or left in place (mapped), over the bytes delivered, "
        "both directions of the traced trials together. rxe's copies are the CPU standing in for the HCA's DMA engine: "
        f"a real HCA makes none. A balance is what was counted less what the sizes demand. {summary.label}."
    )
    return Table(f"copies{name}", "Copies per byte", caption, [*columns, *more], rows)


def _tracing(summary: Summary, run: Run, name: str) -> Table | None:
    by_trial = _by_trial(run, "tracing")
    traced = list(_traced_rows(summary, run, by_trial))
    if not traced:
        return None
    columns, head = column_heads([row for row, _ in traced])
    unit, factor = ("instructions", 1.0) if run.manifest.get("clock") == "icount" else ("µs", 1e-3)
    rows: list[tuple[bool, list[Cell]]] = []
    for row, mine in traced:
        messages, complete = sum(r["messages"] for r in mine), sum(r["complete"] for r in mine)
        missing: dict[str, int] = {}
        for entry in mine:
            for stage, count in json.loads(entry["missing"]).items():
                missing[stage] = missing.get(stage, 0) + count
        worst = max(missing, key=lambda stage: missing[stage]) if missing else ""
        share = f"{100 * complete / messages:.2f} %" if messages else WITHHELD
        cells: list[Cell] = [*head(row), (share, worst), (f"{messages:,}", "")]
        cells.append((f"{sum(r['lost'] for r in {r['trial']: r for r in mine}.values()):,}", ""))
        for figure in ("mean", "p50", "p99"):  # runs of format 1 have no mean
            pairs = [(r.get(f"{figure}_off_ns"), r.get(f"{figure}_on_ns")) for r in mine if r["direction"] == "there"]
            cells.append(_change([(off, on) for off, on in pairs if off and on], factor))
        rows.append((True, cells))
    more: list[tuple[str, Kind]] = [
        ("complete", ""), ("timelines", ""), ("events lost", ""),
        (f"mean off → on [{unit}]", ""), (f"p50 off → on [{unit}]", ""), (f"p99 off → on [{unit}]", ""),
    ]  # fmt: skip
    caption = (
        "Each trial was run twice, without and with tracing; the figures of all other tables are those without. A "
        "timeline is complete when every stage that each message passes was stamped, in order; beside it the stage "
        f"missing most. Off and on are of what a trial times: a whole round trip, or the gap between deliveries. "
        f"{summary.label}."
    )
    return Table(f"tracing{name}", "What tracing cost, and how complete it is", caption, [*columns, *more], rows)


def _change(pairs: Sequence[tuple[float, float]], factor: float) -> Cell:
    if not pairs:
        return (WITHHELD, "")
    off, on = (float(np.exp(np.mean(np.log([pair[k] for pair in pairs])))) for k in (0, 1))
    return (
        f"{number_text(off * factor)} → {number_text(on * factor)}",
        f"{100 * (on / off - 1):+.0f} %",
    )
