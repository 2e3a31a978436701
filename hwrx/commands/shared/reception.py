"""What `hwrx walk --full` prints: the steps, the frame's bytes, the page tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from hwrx.host.console import OutsideConsole, open_console
from hwrx.reception.view import table_name

if TYPE_CHECKING:
    from hwrx.reception.steps import Reception


def print_reception(found: Reception) -> None:
    """Print it as tables."""
    console = open_console(piped=170)
    request = found.request
    title = f"one datagram of {request.size:,} B over {request.topology}, Linux {found.kernel}"
    table = Table(title=title, title_justify="left", header_style="bold", expand=True)
    for heading in ("T+", "step"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what", ratio=3)
    for heading in ("µs", "CPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("context", ratio=2)
    table.add_column("seen", overflow="fold", ratio=9)
    table.add_column("read at", overflow="fold", ratio=3)
    for step in found.steps:
        table.add_row(
            step.clock,
            step.step,
            step.title,
            "" if step.at is None else f"{step.at / 1000:,.1f}",
            "" if step.cpu is None else str(step.cpu),
            f"{step.context} {step.task}".strip(),
            step.words,
            step.source,
            style=None if step.seen else "dim",
        )
    console.print(table)
    _print_frame(console, found)
    _print_tables(console, found)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for name, why in found.refused.items():
        console.print(f"not probed: {name}: {why}", soft_wrap=True, style="dim")


def _print_frame(console: OutsideConsole, found: Reception) -> None:
    table = Table(title="the frame, byte by byte (T+1)", title_justify="left", header_style="bold")
    for heading in ("bytes", "header", "field", "as they are", "value"):
        table.add_column(heading, justify="right" if heading == "bytes" else "left")
    header = ""
    for field in found.frame:
        if header and field.header != header:
            table.add_section()
        table.add_row(field.place, field.header if field.header != header else "", field.name, field.raw, field.value)
        header = field.header
    console.print(table)


def _print_tables(console: OutsideConsole, found: Reception) -> None:
    table = Table(title="who uses CR3", title_justify="left", header_style="bold")
    for heading in ("what", "who", "the article", "CR3 then", "whose table", "what was seen"):
        table.add_column(heading)
    for row in found.tables:
        table.add_row(row.what, row.who, row.said, table_name(row.table) if row.table else "", row.whose, row.verdict)
    console.print(table)
