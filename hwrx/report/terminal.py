"""The report in a terminal of 80 columns; colours only where it is one."""

from __future__ import annotations

import pathlib
import textwrap
from typing import IO

from rich.table import Table
from rich.text import Text

from hwrx.host.console import OutsideConsole, open_console
from hwrx.report import about, answer, by_size, captions, connections, flows, numbers
from hwrx.report.cells import Table as Cells
from hwrx.report.cells import grouped_digits, swept_cell
from hwrx.report.model import Row, Summary, name_of
from hwrx.report.numbers import SATURATED, WITHHELD, size_of_rows, value_text
from hwrx.stats import NAMED

NARROWEST = 80


def show_summary(
    summary: Summary, file: IO[str] | None = None, width: int | None = None, page: pathlib.Path | None = None
) -> None:
    """Print the answer, the tables and the warnings to `file` (standard output). `page`: where the report is."""
    console = open_console(file, width=width, piped=NARROWEST)
    found = answer.answers_of(summary)
    for each in found:
        _show_answer(console, each)
    if not found:
        console.print(Text(summary.answer, style="bold"))
    if page is not None:
        console.print(Text(f"report: {page}"), soft_wrap=True)
    # of counted instructions the answer has all; their virtual times hold waiting as well, and stand in the report
    for pattern, table in (("pingpong", _latency), ("stream", _rates), ("paced", _paced)):
        if summary.of(pattern) and not any(each.counted for each in found if each.pattern == pattern):
            console.print()
            console.print(table(summary))
    for plain in [*flows.flow_tables(summary), *connections.connection_tables(summary), *by_size.size_tables(summary)]:
        console.print()
        console.print(plain_text(plain))
    if summary.skipped and not found:
        console.print()
        for label, reason in summary.skipped:
            console.print(Text(f"skipped: {label}: {reason}"))
    if summary.warnings:
        console.print()
        for warning in summary.warnings:
            console.print(Text(f"warning: {warning}", style="yellow"))
    console.print()
    for paragraph in about.about_row(summary):
        console.print(Text(paragraph, style="dim"))


def _show_answer(console: OutsideConsole, found: answer.Answer) -> None:
    """What was measured, the table, and a line each of what is not so; first of all, if nothing can be told."""
    if found.nothing:
        console.print(Text(found.nothing, style="bold"))
    console.print(Text(found.about, style="" if found.nothing else "bold"))
    for line in found.lines():
        console.print(Text(line), soft_wrap=True)
    for note in found.notes:
        for number, line in enumerate(textwrap.wrap(note, console.width - 2)):
            console.print(Text(("" if not number else "  ") + line))


def plain_text(table: Cells) -> Table:
    """A table of the report, as it is."""
    shown = _table(f"{table.title}: {table.caption}")
    for name, kind in table.columns:
        shown.add_column(Text(name), justify="left" if kind else "right")
    for _, cells in table.rows:
        shown.add_row(*(Text(" ".join(filter(None, cell))) for cell in cells))
    return shown


def _table(caption: str) -> Table:
    return Table(
        title=Text(caption),
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
        padding=(0, 1),
        expand=False,
    )


def _latency(summary: Summary) -> Table:
    table = _table(captions.latency_caption(summary, summary.of("pingpong")))
    _first_columns(table, summary, "pingpong")
    rows = summary.of("pingpong")
    tails = [p for p in NAMED[1:] if any(row.quantiles[name_of(p)] for row in rows)]
    for p in (NAMED[0], *tails):
        table.add_column(name_of(p), justify="right", no_wrap=True)
        if p == NAMED[0]:
            table.add_column("", justify="left", no_wrap=True)
    table.add_column(f"p50 × {summary.baseline}", overflow="fold")
    for first, row in grouped_digits(summary.of("pingpong")):
        table.add_row(
            *_head(summary, row, first),
            value_text(row.quantiles["p50"]),
            numbers.plus_minus(row.quantiles["p50"]),
            *(value_text(row.quantiles[name_of(p)]) for p in tails),
            numbers.ratio_text(row, summary.baseline),
        )
    return table


def _rates(summary: Summary) -> Table:
    table = _table(captions.rate_caption(summary, summary.of("stream")))
    _first_columns(table, summary, "stream")
    table.add_column("messages/s", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    lossy = any(row.lost_share for row in summary.of("stream"))
    crowded = lossy and bool(summary.swept(summary.of("stream")))
    if not crowded:
        table.add_column("bytes/s", justify="right", no_wrap=True)
    if lossy:
        table.add_column("lost", justify="right", no_wrap=True)
    table.add_column(f"rate × {summary.baseline}", overflow="fold")
    for first, row in grouped_digits(summary.of("stream")):
        table.add_row(
            *_head(summary, row, first),
            value_text(row.messages_per_s),
            numbers.plus_minus(row.messages_per_s),
            *([] if crowded else [numbers.bytes_a_second(row.bytes_per_s)]),
            *([f"{100 * row.lost_share:.2g} %" if row.lost_share else "0"] if lossy else []),
            numbers.ratio_text(row, summary.baseline),
        )
    return table


def _paced(summary: Summary) -> Table:
    table = _table(captions.paced_caption(summary, summary.of("paced")))
    _first_columns(table, summary, "paced")
    shares = any(row.load is not None for row in summary.of("paced"))
    if shares:
        table.add_column("load", justify="right", no_wrap=True)
    table.add_column("offered/s", justify="right", no_wrap=True)
    table.add_column("answered", justify="right", no_wrap=True)
    for p in NAMED[:-1]:
        table.add_column(name_of(p), justify="right")
    for first, row in grouped_digits(summary.of("paced")):
        cells = []
        for p in NAMED[:-1]:
            response, service = row.quantiles[name_of(p)], row.service_quantiles.get(name_of(p))
            cells.append(numbers.compact_value(response) + (f" ({numbers.compact_value(service)})" if service else ""))
        table.add_row(
            *_head(summary, row, first),
            *([numbers.share_words(row.load)] if shares else []),
            WITHHELD if row.rate is None else numbers.compact_number(row.rate),
            numbers.compact_value(row.messages_per_s) + SATURATED * row.saturated,
            *cells,
        )
    return table


def _first_columns(table: Table, summary: Summary, pattern: str) -> None:
    table.add_column("size", justify="right", no_wrap=True)
    for key in summary.swept(summary.of(pattern)):
        table.add_column(key.replace("_", " "), overflow="fold")
    table.add_column("path", overflow="fold", min_width=10)
    if _shows_wait(summary, pattern):
        table.add_column("wait", no_wrap=True)


def _shows_wait(summary: Summary, pattern: str) -> bool:
    """Not where all rows wait alike and the columns are needed for what they differ in."""
    rows = summary.of(pattern)
    crowded = bool(summary.swept(rows)) or any(row.load is not None for row in rows)
    return not crowded or len({row.wait for row in rows}) > 1


def _head(summary: Summary, row: Row, first: bool) -> list[str]:
    """The cells under `_first_columns`; a star where a round trip is not halved."""
    keys = summary.swept(summary.of(row.pattern))
    swept = [swept_cell(row.swept.get(key)) if first else "" for key in keys]
    mark = "*" if row.measures == "FULL round trip" else ""
    wait = [row.wait] if _shows_wait(summary, row.pattern) else []
    return [size_of_rows(row) if first else "", *swept, row.name + mark, *wait]
