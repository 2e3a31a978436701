"""`hwrx drops`: where packets die."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.table import Table

from hwrx.commands.shared.display import Display
from hwrx.commands.shared.numbers import whole_number
from hwrx.commands.shared.output import print_json
from hwrx.drops import provoke, run
from hwrx.drops.places import PLACES
from hwrx.host.console import open_console

if TYPE_CHECKING:
    from hwrx.drops.books import Balance, Row


@click.command()
@click.argument("places", nargs=-1, metavar="[PLACE]...")
@click.option("--list", "listing", is_flag=True, help="The places, in the order of a packet's way, and stop.")
@click.option(
    "--messages",
    type=whole_number(1, 10**7),
    default=10_000,
    show_default=True,
    help="Messages sent in each experiment.",
)
@click.option("--guest", is_flag=True, help="In a virtual machine: there every place can be provoked.")
@click.option("--kernel", help="Kernel of the guest, for example 6.1.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def drops(
    places: tuple[str, ...], listing: bool, messages: int, guest: bool, kernel: str | None, as_json: bool
) -> None:
    """Provoke each PLACE [all] in turn and close its balance: sent = delivered + lost, every loss at its place.

    Two network namespaces are made for it and taken down, and a pair of SoftRoCE devices for RDMA's places. Exit code
    1: something was lost that no place explains.

    \b
    Examples:
      hwrx drops
      hwrx drops receive-buffer no-socket --messages 1000000
      hwrx drops --guest --kernel 6.12
    """
    if listing:
        rows = [msgspec.to_builtins(place) for place in PLACES]
        if as_json:
            click.echo(msgspec.json.encode(rows).decode())
        else:
            _print_places(rows)
        return
    request = run.Request(list(places or provoke.PLACES), messages)
    run.check_place(request.places, messages)
    with Display() as display:
        maker = (
            run.in_guest(request, kernel, display.stage) if guest or kernel else run.drops_here(request, display.stage)
        )
        found = list(maker)
    results = [(each.place, each.balance) for each in found if each.balance is not None]
    refused = {each.place: each.refused for each in found if each.balance is None}
    if as_json:
        content = {
            "balances": {place: msgspec.to_builtins(balance) for place, balance in results},
            "not here": refused,
            "seconds": {each.place: each.seconds for each in found if each.balance is not None},
        }
        print_json(content)
    else:
        _print(results, refused)
    sys.exit(1 if any(balance.unexplained for _, balance in results) else 0)


def _print_places(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("place", "what happens", "the kernel's reasons", "its counter"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["name"], row["sentence"], " ".join(sorted(row["reasons"])), row["witness"])
    open_console().print(table)


def _print(results: list[tuple[str, Balance]], refused: dict[str, str]) -> None:
    console = open_console()
    table = Table(box=None, pad_edge=False)
    table.add_column("provoked")
    for heading in ("sent", "delivered", "lost", "unexplained"):
        table.add_column(heading, justify="right")
    table.add_column("at", no_wrap=False)
    table.add_column("the kernel's counter", justify="right")
    for place, balance in results:
        rows: list[Row] = [*balance.rows, *balance.beside]
        figures = [f"{balance.sent:,}", f"{balance.delivered:,}", f"{balance.lost:,}", f"{balance.unexplained:,}"]
        if not rows:
            table.add_row(place, *figures, "", "")
        for row in rows:
            beside = " (not lost)" if row in balance.beside else ""
            where = f"{row.place}{beside} {row.count:,}: {'; '.join(row.how) or row.sentence}"
            witness = "" if row.witness is None else f"{row.counter} {row.witness:,}"
            table.add_row(place, *figures, where, witness)
            place, figures = "", [""] * 4
    console.print(table)
    for place, why in refused.items():
        console.print(f"{place} cannot be provoked here: {why}")
