"""The report's tables as plain cells, for HTML and LaTeX alike; and everything as CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import msgspec

from hwrx.host import strict_json
from hwrx.report import actors, anatomies, by_size, captions, connections, flows, ledgers, numbers, waterfall
from hwrx.report.cells import Cell, Kind, Table, column_heads
from hwrx.report.model import Row, Summary
from hwrx.report.numbers import WITHHELD, size_words
from hwrx.report.pattern_tables import pattern_tables
from hwrx.stats import Estimate
from hwrx.version import __version__


def report_tables(summary: Summary) -> list[Table]:
    """Every table that the runs can fill."""
    found = pattern_tables(summary)
    if summary.costs:
        found.append(_costs(summary))
    found += flows.flow_tables(summary) + connections.connection_tables(summary) + by_size.size_tables(summary)
    found += actors.actor_tables(summary)
    found.append(_quality(summary))
    found += waterfall.waterfall_tables(summary) + ledgers.ledger_tables(summary)
    return found + anatomies.anatomy_tables(summary)


def _costs(summary: Summary) -> Table:
    columns: list[tuple[str, Kind]] = [
        ("path", "t"),
        ("wait", "t"),
        ("sizes", "t"),
        ("a byte [ns]", ""),
        ("a message [µs]", ""),
        ("furthest off the line", ""),
    ]
    rows = []
    for cost in summary.costs:
        sizes = f"{size_words(cost.sizes[0])} to {size_words(cost.sizes[-1])}"
        cells: list[Cell] = [(cost.row, ""), (cost.wait, ""), (sizes, "")]
        size, off = cost.worst
        cells += [
            numbers.signed_percent(cost.byte),
            numbers.signed_percent(cost.message),
            (f"{100 * off:+.0f} %", size_words(size)),
        ]
        rows.append((False, cells))
    return Table("cost", "What a byte costs", captions.cost_caption(summary), columns, rows, 1)


def _quality(summary: Summary) -> Table:
    """How good the measurement is: what every row's figures stand on."""
    columns, head = column_heads(summary.rows)
    columns += [(name, "") for name in ("trials", "samples", "effective", "warm-up")]
    columns += [(name, "") for name in ("lost", "late", "sent again", "twice", "reordered", "corrupt")]
    asked = any(row.converged is not None for row in summary.rows)
    if asked:
        columns.append(("converged", "t"))
    rows = []
    for place, row in enumerate(summary.rows):
        new = not place or row.pattern != summary.rows[place - 1].pattern
        trials = f"{len(row.digests)}" + (f" + {row.failed} failed" if row.failed else "")
        warmup = "did not settle" if not row.settled else f"{row.warmup:,}"
        cells: list[Cell] = [*head(row), (trials, "")]
        cells.append((f"{row.samples:,}", ""))
        cells += [("–" if math.isnan(row.effective) else f"{100 * row.effective:.0f} %", ""), (warmup, "")]
        cells += [
            (f"{row.tally.get(name, 0):,}", "")
            for name in ("lost", "late", "resent", "duplicated", "reordered", "corrupt")
        ]
        if asked:
            words = {True: "yes", False: "did not converge", None: WITHHELD}
            cells.append((words[row.converged], ""))
        rows.append((new, cells))
    caption = (
        "What the figures stand on: trials and samples, the share of samples that count as independent, samples of an "
        f"initial transient that was left (by MSER-5), and what became of messages. {summary.label}."
    )
    return Table("quality", "Quality of the measurement", caption, columns, rows, 2)


# --- CSV and JSON --------------------------------------------------------------------------------------------------


def to_csv(summary: Summary) -> str:
    """One line a row, every figure with its interval; times µs. The label of the run stands in each line."""
    lines = [_record(row, summary) for row in summary.rows]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def to_json(summary: Summary) -> str:
    """Everything that the report says, for programs. Withheld figures are null."""
    content = {
        "hwrx": __version__,
        "answer": summary.answer,
        "label": summary.label,
        "baseline": summary.baseline,
        "runs": [{"path": run.path.name, "status": run.status, "manifest": run.manifest} for run in summary.runs],
        "warnings": summary.warnings,
        "costs": [
            {
                "row": cost.row,
                "wait": cost.wait,
                "sizes": cost.sizes,
                **_spread("byte_ns", cost.byte),
                **_spread("message_us", cost.message),
                "off_the_line": cost.misfit,
            }
            for cost in summary.costs
        ],
        "skipped": [{"label": label, "reason": reason} for label, reason in summary.skipped],
        "flows": msgspec.to_builtins(flows.flow_rows(summary)),
        "rows": [
            {
                **{key: value for key, value in _record(row, summary).items() if key != "measured_on"},
                "states": msgspec.to_builtins(row.states),
                "groups_of_repeats": msgspec.to_builtins(row.groups),
            }
            for row in summary.rows
        ],
    }
    return strict_json.to_json(content, indent=1)


def _record(row: Row, summary: Summary) -> dict[str, Any]:
    record: dict[str, Any] = {
        "run": row.run or summary.runs[0].path.name,
        "path": row.path,
        "size": row.size,
        "pattern": row.pattern,
        "wait": row.wait,
        **row.swept,
        "load": row.load,
        "measures": row.measures,
        "offered_per_s": row.rate,
        "saturated": row.saturated if row.pattern == "paced" else None,
        "trials": len(row.digests),
        "failed": row.failed,
        "samples": row.samples,
    }
    # the gaps of a stream are what batching makes them: only its rate is a figure of the path
    for name, found in row.quantiles.items() if row.pattern != "stream" else ():
        record |= _spread(f"{name}_us", found)
    for name, found in row.service_quantiles.items():
        record |= _spread(f"service_{name}_us", found)
    record |= _spread("messages_per_s", row.messages_per_s)
    record |= _spread("bytes_per_s", row.bytes_per_s)
    record |= _spread(f"ratio_to_{summary.baseline}", row.ratio)
    for p, found in row.shift:
        record |= _spread(f"shift_p{100 * p:g}", found)
    unit = "instructions" if row.counted else "us"
    for actor, time in row.cpu.items():
        record |= _spread(f"cpu_{actor}_{unit}_per_message", time)
    record |= {f"withheld_{figure}": reason for figure, reason in row.withheld.items()}
    record |= row.tally
    record |= {
        "resident_bytes": row.resident,
        "effective_share": None if math.isnan(row.effective) else row.effective,
        "warmup_left": row.warmup,
        "settled": row.settled,
        "converged": row.converged,
        "measured_on": summary.label,
    }
    return record


def _spread(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    known = not math.isnan(estimate.low)
    return {
        name: estimate.value,
        f"{name}_low": estimate.low if known else None,
        f"{name}_high": estimate.high if known else None,
    }
