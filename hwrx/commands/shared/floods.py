"""How floods are told: the page and the pictures written, the tables printed."""

from __future__ import annotations

import pathlib

import click
import msgspec
from rich.text import Text

from hwrx.commands.shared.output import print_json
from hwrx.host.console import open_console


def report_flood(directory: pathlib.Path, *, as_json: bool, hostnames: bool = False) -> None:
    """Write the page and the pictures, print the tables; with `as_json` print everything as JSON instead.

    :raises StoreError: if the directory holds no floods, or they are damaged
    """
    # Matplotlib takes longer to start than all else: not before something was measured
    from hwrx.flood import keep, page, words
    from hwrx.report.published import open_published

    keep.need_floods(directory)
    run = open_published(directory, hostnames=hostnames)
    floods = keep.load_floods(directory, run)
    written = page.write_page(run, floods)
    if as_json:
        content = {"run": directory.name, "floods": msgspec.to_builtins(floods)}
        print_json(content)
        return
    # Matplotlib takes longer to start than all else: not before something was measured
    from hwrx.report import terminal

    console = open_console()
    for each in floods:
        console.print(Text(words.answer_of(each), style="bold"))
    for table in [*words.tables_of(floods), *(words.kernels_account(each) for each in floods[:1])]:
        console.print()
        console.print(terminal.plain_text(table))
    console.print()
    for note in words.notes_of(floods):
        console.print(Text(f"not seen: {note}" if note.startswith("the length") else note, style="dim"))
    for path in written:
        click.echo(path)
