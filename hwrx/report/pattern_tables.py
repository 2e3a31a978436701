"""The report's first tables: what a ping-pong, a stream and an open loop took over each path."""

from __future__ import annotations

from hwrx.report import captions, numbers
from hwrx.report.cells import Cell, Table, column_heads, estimate_cell, grouped_digits, ratio_cell
from hwrx.report.model import Row, Summary, name_of
from hwrx.report.numbers import SATURATED, value_text
from hwrx.stats import NAMED


def pattern_tables(summary: Summary) -> list[Table]:
    """Return a table for each pattern that was measured: latency, throughput, load."""
    makers = {"pingpong": _latency, "stream": _rates, "paced": _paced}
    return [make(summary) for pattern, make in makers.items() if summary.of(pattern)]


def _latency(summary: Summary) -> Table:
    rows = summary.of("pingpong")
    columns, head = column_heads(rows)
    shown = _shown_quantiles(rows)
    columns += [(f"{name} [µs]", "") for name in shown]
    columns += [(f"p50 × {summary.baseline}", ""), ("round trips/s", "")]
    cells = [
        (
            first,
            [
                *head(row),
                *(estimate_cell(row.quantiles[name]) for name in shown),
                ratio_cell(row, summary.baseline),
                (value_text(row.messages_per_s), ""),
            ],
        )
        for first, row in grouped_digits(rows)
    ]
    return Table("latency", "Latency", captions.latency_caption(summary, rows), columns, cells, 2)


def _shown_quantiles(rows: list[Row]) -> list[str]:
    """p50, and of the others those that any row has samples enough for."""
    names = [name_of(p) for p in NAMED]
    return [name for name in names if name == "p50" or any(row.quantiles[name] for row in rows)]


def _rates(summary: Summary) -> Table:
    rows = summary.of("stream")
    columns, head = column_heads(rows)
    columns += [("messages/s", ""), ("bytes/s", ""), (f"rate × {summary.baseline}", ""), ("lost", "")]
    cells = []
    for first, row in grouped_digits(rows):
        lost = f"{100 * row.lost_share:.2g} %" if row.lost_share else "0"
        rate = (numbers.bytes_a_second(row.bytes_per_s), "")
        cells.append(
            (
                first,
                [*head(row), estimate_cell(row.messages_per_s), rate, ratio_cell(row, summary.baseline), (lost, "")],
            )
        )
    return Table("throughput", "Throughput", captions.rate_caption(summary, rows), columns, cells, 2)


def _paced(summary: Summary) -> Table:
    rows = summary.of("paced")
    columns, head = column_heads(rows, offered=False)
    shares = any(row.load is not None for row in rows)
    shown = _shown_quantiles(rows)
    columns += [("load", "")] if shares else []
    columns += [("offered [1/s]", ""), ("answered [1/s]", "")]
    columns += [(f"{name} [µs]", "") for name in shown]
    columns += [(f"p50 × {summary.baseline}", "")]
    found = []
    for first, row in grouped_digits(rows):
        cells: list[Cell] = [
            *head(row),
            *([(numbers.share_words(row.load), "")] if shares else []),
            (numbers.offered_words(row.rate), ""),
        ]
        cells.append((value_text(row.messages_per_s), SATURATED if row.saturated else ""))
        for name in shown:
            service = row.service_quantiles.get(name)
            cells.append((value_text(row.quantiles[name]), f"({value_text(service)})" if service else ""))
        found.append((first, [*cells, ratio_cell(row, summary.baseline)]))
    return Table("load", "Open loop", captions.paced_caption(summary, rows), columns, found, 2)
