"""`hwrx memory`: what becomes of the physical pages under a buffer."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, get_args

import click
from rich.table import Table

from hwrx.commands.shared.numbers import whole_number
from hwrx.commands.shared.output import print_json
from hwrx.control.messages import Clock
from hwrx.errors import UsageError
from hwrx.host import disk
from hwrx.host.console import OutsideConsole, open_console
from hwrx.memory.everything import Request, in_guest, measure_everything

if TYPE_CHECKING:
    from hwrx.memory.everything import Everything
    from hwrx.memory.measuring import Fate, Measured
    from hwrx.memory.pages import Faults

PICTURES = (".svg", ".pdf", ".png")


@click.command()
@click.option(
    "--pages",
    type=whole_number(1, 1 << 20),
    default=512,
    show_default=True,
    help="Pages of 4 KiB that are taken of each kind.",
)
@click.option("--device", help="Verbs device that memory is registered with [the first].")
@click.option("--nic", help="NIC that memory is mapped for: it is taken from the kernel for so long.")
@click.option("--guest", is_flag=True, help="In a virtual machine, which has SoftRoCE, a NIC and an IOMMU.")
@click.option("--kernel", help="Kernel of the guest, for example 6.1.")
@click.option("--clock", type=click.Choice(get_args(Clock)), default="wall", help="icount: guest instructions.")
@click.option("--picture", type=click.Path(path_type=pathlib.Path, dir_okay=False), help="SVG, PDF or PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def memory(
    pages: int,
    device: str | None,
    nic: str | None,
    guest: bool,
    kernel: str | None,
    clock: Clock,
    picture: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Show which pages the kernel moves and pages out: ordinary, locked, registered (RDMA), mapped for a NIC, huge.

    Pages of all kinds are taken side by side; then the kernel compacts its memory, and a memory limit pages out what it
    can. Also: page faults, what getting hold of memory costs, and what happens at its limits. Needs root. Swap on
    zram, a cgroup, reserved huge pages and a sysctl are put up for it and taken down.

    \b
    Examples:
      hwrx memory --guest --picture pages.svg
      hwrx memory --device rxe0 --json
      hwrx memory --guest --kernel 6.12 --clock icount
    """
    if picture is not None and picture.suffix not in PICTURES:
        raise UsageError(f"a picture is {' or '.join(PICTURES)}, not '{picture.suffix}'")
    if picture is not None:
        disk.check_target(picture)
    if pages < 1:
        raise UsageError("at least one page has to be measured")
    # the clock is the guest's, and there its name is all that is wanted
    if guest or kernel or (clock == "icount" and os.environ.get("HWRX_IN_GUEST") != "1"):
        if device or nic:
            raise UsageError(
                f"{'--device' if device else '--nic'} is of this machine, and the guest has its own",
                remedy="leave it out, or measure here: without --guest, --kernel and --clock icount",
            )
        found = in_guest(Request(pages, clock), kernel, _quiet if as_json else _aloud)
    else:
        say = (lambda text: None) if as_json else (lambda text: _aloud("memory", text))
        found = measure_everything(pages=pages, device=device, nic=nic, clock=clock, say=say)
    if picture is not None:
        # Matplotlib takes longer to start than all else, and a guest draws nothing
        from hwrx.memory.picture import draw_pages

        draw_pages(found.pages, picture)
    if as_json:
        print_json(found)
    else:
        _print(found)
        if picture is not None:
            click.echo(f"picture: {picture}")


def _aloud(stage: str, text: str) -> None:
    click.echo(f"{stage}: {text}", err=True)


def _quiet(stage: str, text: str) -> None:
    """Say nothing: standard output is for JSON."""


def _print(found: Everything) -> None:
    console = open_console()
    _print_pages(console, found.pages, found.strict)
    _print_holding(console, found)
    _print_limits(console, found)
    for what, why in (found.pages.unavailable | found.unavailable).items():
        console.print(f"{what}: not here: {why}")


def _print_pages(console: OutsideConsole, measured: Measured, strict: Measured) -> None:
    table = _table(
        "what becomes of the pages",
        "kind", "who holds it", "pages", "in pieces", "VmLck", "VmPin", "faults: holding", "receiving",
        "moved by compaction", "moved, locked ones barred", "paged out", "faults: receiving again", "damaged",
    )  # fmt: skip
    others = {row.kind: row for row in strict.rows}
    for row in measured.rows:
        again = others.get(row.kind)
        table.add_row(
            row.kind, row.sentence, f"{row.pages:,} of {row.page_size >> 10} KiB", f"{row.extents:,}",
            _size(row.locked), _size(row.pinned), _faults(row.holding), _faults(row.receiving),
            _moved(row.compaction), _moved(again.compaction if again else None),
            "–" if row.pressure is None else f"{row.pressure.swapped:,}", _faults(row.again), f"{row.damaged:,}",
        )  # fmt: skip
    console.print(table)
    if measured.swap:
        console.print(f"paged out to {measured.swap}; faults are minor, or minor + major")
    if strict.unevictable is None:
        console.print("this kernel cannot be told to leave locked pages alone (no vm.compact_unevictable_allowed)")
    console.print()


def _print_holding(console: OutsideConsole, found: Everything) -> None:
    unit = "instructions" if found.clock == "icount" else "µs"
    table = _table("getting hold of memory", "how", "size", "pages", "in pieces", "faults", unit)
    for one in found.holding:
        cost = f"{one.ns:,}" if found.clock == "icount" else f"{one.ns / 1000:,.1f}"
        pages = f"{one.pages:,} of {one.page_size >> 10} KiB"
        table.add_row(one.what, _size(one.size), pages, f"{one.extents:,}", _faults(one.faults), cost)
    console.print(table)
    console.print()


def _print_limits(console: OutsideConsole, found: Everything) -> None:
    table = _table("at the limits, without CAP_IPC_LOCK", "limit", "call", "allowed", "asked", "outcome", "in words")
    for one in found.limits:
        words = one.said.replace("\n ", ";")
        table.add_row(one.limit, one.call, _size(one.allowed), _size(one.asked), one.outcome, words)
    console.print(table)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        words = heading in ("kind", "who holds it", "how", "limit", "call", "outcome", "in words")
        table.add_column(heading, justify="left" if words else "right")
    return table


def _size(size: int) -> str:
    return f"{size >> 20:,} MiB" if size >= 1 << 20 and size % (1 << 20) == 0 else f"{size >> 10:,} KiB"


def _faults(faults: Faults) -> str:
    return f"{faults.minor:,} + {faults.major:,}" if faults.major else f"{faults.minor:,}"


def _moved(fate: Fate | None) -> str:
    return "–" if fate is None else f"{fate.moved:,}"
