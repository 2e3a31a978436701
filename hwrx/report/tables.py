"""The report's tables as plain cells, for HTML and LaTeX alike; and everything as CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from typing import Any, Literal

from msgspec import Struct

from hwrx import __version__, strict_json
from hwrx.report import text, waterfall
from hwrx.report.model import Row, Summary, name_of
from hwrx.report.words import size_words
from hwrx.stats import NAMED, Estimate

Kind = Literal["", "t"]  # a number, aligned right; text
Cell = tuple[str, str]  # what it says, and in small beside it how sure that is


class Table(Struct):
    """A table: `rows` are cells, each row with whether a group of rows begins with it."""

    name: str
    title: str
    caption: str
    columns: list[tuple[str, Kind]]
    rows: list[tuple[bool, list[Cell]]]


def tables(summary: Summary) -> list[Table]:
    """Every table that the runs can fill."""
    found = []
    if summary.of("pingpong"):
        found.append(_latency(summary))
    if summary.of("stream"):
        found.append(_rates(summary))
    if summary.of("paced"):
        found.append(_paced(summary))
    if summary.costs:
        found.append(_costs(summary))
    found.append(_quality(summary))
    return found + waterfall.tables(summary)


def _latency(summary: Summary) -> Table:
    columns = _first_columns(summary, summary.of("pingpong"))
    columns += [(f"{name_of(p)} [µs]", "") for p in NAMED]
    columns += [(f"p50 × {summary.baseline}", ""), ("round trips/s", "")]
    rows = []
    for first, row in grouped(summary.of("pingpong")):
        cells: list[Cell] = [*_head(summary, row, first)]
        cells += [_estimate(row.quantiles[name_of(p)]) for p in NAMED]
        cells += [_ratio(row, summary.baseline), (text.value(row.messages_per_s), "")]
        rows.append((first, cells))
    return Table("latency", "Latency", text.latency_caption(summary), columns, rows)


def _rates(summary: Summary) -> Table:
    columns = [
        *_first_columns(summary, summary.of("stream")),
        ("messages/s", ""),
        ("bytes/s", ""),
        (f"rate × {summary.baseline}", ""),
        ("lost", ""),
    ]
    rows = []
    for first, row in grouped(summary.of("stream")):
        lost = f"{100 * row.lost_share:.2g} %" if row.lost_share else "0"
        rate = (text.bytes_a_second(row.bytes_per_s), "")
        cells = [
            *_head(summary, row, first),
            _estimate(row.messages_per_s),
            rate,
            _ratio(row, summary.baseline),
            (lost, ""),
        ]
        rows.append((first, cells))
    return Table("throughput", "Throughput", text.rate_caption(summary), columns, rows)


def _paced(summary: Summary) -> Table:
    columns = _first_columns(summary, summary.of("paced"))
    shares = any(row.load is not None for row in summary.of("paced"))
    columns += [("load", "")] if shares else []
    columns += [("offered [1/s]", ""), ("answered [1/s]", "")]
    columns += [(f"{name_of(p)} [µs]", "") for p in NAMED]
    columns += [(f"p50 × {summary.baseline}", "")]
    rows = []
    for first, row in grouped(summary.of("paced")):
        offered = text.WITHHELD if row.rate is None else text.number(row.rate)
        cells: list[Cell] = [
            *_head(summary, row, first),
            *([(text.share(row.load), "")] if shares else []),
            (offered, ""),
        ]
        cells.append((text.value(row.messages_per_s), text.SATURATED if row.saturated else ""))
        for p in NAMED:
            service = row.service_quantiles.get(name_of(p))
            cells.append((text.value(row.quantiles[name_of(p)]), f"({text.value(service)})" if service else ""))
        rows.append((first, [*cells, _ratio(row, summary.baseline)]))
    return Table("load", "Open loop", text.paced_caption(summary), columns, rows)


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
        cells += [text.signed(cost.byte), text.signed(cost.message), (f"{100 * off:+.0f} %", size_words(size))]
        rows.append((False, cells))
    return Table("cost", "What a byte costs", text.cost_caption(summary), columns, rows)


def _quality(summary: Summary) -> Table:
    """How good the measurement is: what every row's figures stand on."""
    columns: list[tuple[str, Kind]] = [
        ("pattern", "t"),
        ("size", ""),
        ("path", "t"),
        ("wait", "t"),
        ("trials", ""),
        ("samples", ""),
        ("effective", ""),
        ("warm-up", ""),
        ("lost", ""),
        ("sent again", ""),
        ("twice", ""),
        ("reordered", ""),
        ("corrupt", ""),
        ("CPU [µs]", ""),
    ]
    asked = any(row.converged is not None for row in summary.rows)
    if asked:
        columns.append(("converged", "t"))
    rows = []
    for place, row in enumerate(summary.rows):
        new = not place or row.pattern != summary.rows[place - 1].pattern
        trials = f"{len(row.digests)}" + (f" + {row.failed} failed" if row.failed else "")
        warmup = "did not settle" if not row.settled else f"{row.warmup:,}"
        cells: list[Cell] = [(row.pattern if new else "", ""), *_alone(row), (trials, "")]
        cells.append((f"{row.samples:,}", ""))
        cells += [("–" if math.isnan(row.effective) else f"{100 * row.effective:.0f} %", ""), (warmup, "")]
        cells += [
            (f"{row.tally.get(name, 0):,}", "") for name in ("lost", "resent", "duplicated", "reordered", "corrupt")
        ]
        cells.append((text.WITHHELD if row.cpu_us is None else text.number(row.cpu_us), ""))
        if asked:
            words = {True: "yes", False: "did not converge", None: text.WITHHELD}
            cells.append((words[row.converged], ""))
        rows.append((new, cells))
    caption = (
        "What the figures stand on: trials and samples, the share of samples that count as independent, samples of an "
        "initial transient that was left (by MSER-5), what became of messages, and processor time of both endpoints' "
        f"threads for a message. {summary.label}."
    )
    return Table("quality", "Quality of the measurement", caption, columns, rows)


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
        "rows": [
            {key: value for key, value in _record(row, summary).items() if key != "measured_on"} for row in summary.rows
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
    for name, estimate in row.quantiles.items():
        record |= _spread(f"{name}_us", estimate)
    for name, estimate in row.service_quantiles.items():
        record |= _spread(f"service_{name}_us", estimate)
    record |= _spread("messages_per_s", row.messages_per_s)
    record |= _spread("bytes_per_s", row.bytes_per_s)
    record |= _spread(f"ratio_to_{summary.baseline}", row.ratio)
    for p, estimate in row.shift:
        record |= _spread(f"shift_p{100 * p:g}", estimate)
    record |= row.tally
    record |= {
        "cpu_us_per_message": row.cpu_us,
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


# --- cells ---------------------------------------------------------------------------------------------------------


def _first_columns(summary: Summary, rows: list[Row]) -> list[tuple[str, Kind]]:
    swept: list[tuple[str, Kind]] = [(key.replace("_", " "), "t") for key in summary.swept(rows)]
    return [("size", ""), *swept, ("path", "t"), ("wait", "t")]


def _head(summary: Summary, row: Row, first: bool) -> list[Cell]:
    """The cells under `_first_columns`."""
    keys = summary.swept(summary.of(row.pattern))
    swept: list[Cell] = [(swept_cell(row.swept.get(key)) if first else "", "") for key in keys]
    return [(size_words(row.size) if first else "", ""), *swept, (row.name + _mark(row), ""), (row.wait, "")]


def _alone(row: Row) -> list[Cell]:
    return [(size_words(row.size), ""), (row.label + _mark(row), ""), (row.wait, "")]


def _mark(row: Row) -> str:
    return " (full round trip)" if row.measures == "FULL round trip" else ""


def swept_cell(value: object) -> str:
    """A swept field's value in a column of its own; nothing has a word, for an empty cell means the one above."""
    return "none" if value is None or value == "" else str(value)


def _estimate(estimate: Estimate | None) -> Cell:
    return text.value(estimate), text.plus_minus(estimate)


def _ratio(row: Row, baseline: str) -> Cell:
    value, _, interval = text.ratio(row, baseline).partition(" ")
    return value, interval


def grouped(rows: list[Row]) -> list[tuple[bool, Row]]:
    """Rows, each with whether it is the first of its size and of what was swept."""
    groups = [(row.size, {key: value for key, value in row.swept.items() if key != "rate"}) for row in rows]
    return [(not place or groups[place - 1] != groups[place], row) for place, row in enumerate(rows)]
