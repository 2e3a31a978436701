"""`hwrx drops`: where packets die."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from hwrx.errors import MachineError, UsageError

if TYPE_CHECKING:
    from hwrx.drops.books import Balance, Row


@click.command()
@click.argument("places", nargs=-1, metavar="[PLACE]...")
@click.option("--list", "listing", is_flag=True, help="The places, in the order of a packet's way, and stop.")
@click.option("--messages", default=10_000, show_default=True, help="Messages sent in each experiment.")
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
    from hwrx.drops import provoke
    from hwrx.drops.places import PLACES

    if listing:
        rows = [msgspec.to_builtins(place) for place in PLACES]
        if as_json:
            click.echo(msgspec.json.encode(rows).decode())
        else:
            _print_places(rows)
        return
    unknown = [place for place in places if place not in provoke.PLACES]
    if unknown:
        raise UsageError(f"'{unknown[0]}' cannot be provoked", remedy=f"choose of: {', '.join(provoke.PLACES)}")
    if messages < 1:
        raise UsageError("at least one message has to be sent")
    if guest or kernel:
        sys.exit(_in_guest(places, messages, kernel, as_json))
    results, refused, seconds = [], {}, {}
    with provoke.wire() as names:
        for number, place in enumerate(places or provoke.PLACES):
            if not as_json:
                click.echo(f"provoking: {place}", err=True)
            since = time.monotonic()
            try:
                results.append((place, provoke.provoke(place, names, messages, number + 1)))
                seconds[place] = round(time.monotonic() - since, 3)
            except MachineError as error:
                refused[place] = error.args[0].splitlines()[0]
    if as_json:
        found = {
            "balances": {place: msgspec.to_builtins(each) for place, each in results},
            "not here": refused,
            "seconds": seconds,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        _print(results, refused)
    sys.exit(1 if any(balance.unexplained for _, balance in results) else 0)


def _in_guest(places: tuple[str, ...], messages: int, kernel: str | None, as_json: bool) -> int:
    from hwrx import topology
    from hwrx.vm import Guest

    words = [sys.executable, "-m", "hwrx", "drops", *places, "--messages", str(messages)]
    words += ["--json"] if as_json else []
    nics = topology.find("nic")  # beside the pair of SoftRoCE devices
    with Guest(
        "pair",
        kernel=kernel,
        append=nics.append,
        qemu=nics.hardware,
        progress=lambda stage, text: click.echo(f"{stage}: {text}", err=True),
    ) as machine:
        done: subprocess.CompletedProcess[str] = machine.run(words, limit=60.0 + messages * 0.02)
    click.echo(done.stdout.rstrip())
    return done.returncode


def _print_places(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("place", "what happens", "the kernel's reasons", "its counter"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["name"], row["sentence"], " ".join(sorted(row["reasons"])), row["witness"])
    Console(highlight=False, width=None if Console().is_terminal else 160).print(table)


def _print(results: list[tuple[str, Balance]], refused: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 160)
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
        console.print(f"{place} cannot be provoked here: {why}", markup=False)
