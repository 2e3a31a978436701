"""`hwrx drill`: the rules of RDMA's reliable transport, each put to a queue pair."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from hwrx.commands.shared.output import print_json
from hwrx.drill import model, page
from hwrx.drill import run as driver
from hwrx.drill.page import Report
from hwrx.errors import UsageError
from hwrx.host import disk

COLOURS = {"kept": "green", "broken": "red", "not tested": None}


@click.group()
def drill() -> None:
    """The rules of the reliable transport (InfiniBand specification, chapter 9), each put to a queue pair.

    A drill loses, repeats, delays, swaps, cuts, spoils or changes one packet of a connection, and judges by a
    predicate what the peer answers and completes. lab/drills has a file for each.

    \b
    Examples:
      hwrx drill list
      hwrx drill run                               # hwrx's own queue pair, in memory
      hwrx drill run --peer rxe --kernel 6.12      # the kernel's SoftRoCE, in a virtual machine
    """


@drill.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(as_json: bool) -> None:
    """List the rules; nothing is done."""
    known = model.every_drill()
    if as_json:
        print_json(list(known.values()))
        return
    chapter = ""
    for one in known.values():
        if one.chapter != chapter:
            chapter = one.chapter
            click.echo(click.style(f"\n{chapter}", bold=True))
        click.echo(f"  {one.name}: {one.rule}")
    click.echo(f"\n{len(known)} rules")


@drill.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--peer",
    type=click.Choice(["hwrx", "rxe"]),
    default="hwrx",
    show_default=True,
    help="Whose queue pair: hwrx's own in memory, or SoftRoCE's in a virtual machine.",
)
@click.option("--kernel", help="Kernel of the guest, for example 6.12.")
@click.option("--device", help="A verbs device of this machine instead, as root; needs --address, --netdev.")
@click.option("--address", help="IPv4 address of --device.")
@click.option("--netdev", help="Network device that leads to --device.")
@click.option("--beneath", help="Network device that --device stands on, if this machine's kernel has it.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the report in this file, for `hwrx drill page`.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(
    names: tuple[str, ...],
    peer: str,
    kernel: str | None,
    device: str | None,
    address: str | None,
    netdev: str | None,
    beneath: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Put a queue pair to the drills called NAME [all]. A NAME may also be a file of your own.

    The exit code is 1 if a rule is broken.

    \b
    Examples:
      hwrx drill run
      hwrx drill run gap-is-refused-once --json
      hwrx drill run --peer rxe --kernel 6.12 --out rxe-6.12.json
      hwrx drill run --device rxe1 --address 198.18.77.2 --beneath hwrx1 --netdev hwrx0
    """
    chosen = model.find_drills(names, model.every_drill())
    if kernel and peer != "rxe":
        raise UsageError("--kernel chooses a guest's kernel", remedy="add --peer rxe, or leave it out")
    if device and not (address and netdev and beneath):
        raise UsageError("--device needs --address, --netdev and --beneath", remedy="see the example of --help")
    if out is not None:
        disk.check_target(out)
    about: dict[str, str] = {}
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if device:
        request = driver.Request(chosen, device, str(address), str(beneath), str(netdev))
        about["kernel"] = driver.kernel_here()
        found = driver.drills_here(request, _say)
    elif peer == "rxe":
        found = driver.in_guest(driver.Request(chosen), kernel, _say, about)
    else:
        found = driver.drills_in_memory(chosen)
    results = list(_told(found, aloud=not as_json))
    report = Report(device or peer, about.get("kernel", ""), "emulated" in about, _commit(), started, sys.argv, results)
    if out is not None:
        with disk.guarded_writes(out):
            disk.replace_file(out, msgspec.json.format(msgspec.json.encode(report), indent=1))
    if as_json:
        print_json(report)
    else:
        click.echo(page.answer_of(report))
    click.get_current_context().exit(1 if any(result.verdict == "broken" for result in results) else 0)


@drill.command("page")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="REPORT...")
@click.option("--out", type=click.Path(path_type=Path), help="File [standard output].")
def page_(reports: tuple[Path, ...], out: Path | None) -> None:
    """Make a page in Markdown of one or more reports, side by side.

    \b
    Example:
      hwrx drill page hwrx.json rxe-6.1.json rxe-6.12.json --out lab/drills/RESULTS.md
    """
    text = page.render_page([page.load_report(path) for path in reports], model.every_drill())
    if out is None:
        click.echo(text, nl=False)
        return
    disk.check_target(out)
    with disk.guarded_writes(out):
        disk.replace_file(out, text.encode())
    click.echo(f"page: {out}")


def _say(stage: str, text: str) -> None:
    click.echo(f"{stage}: {text}", err=True)


def _told(found: Iterator[model.Result], *, aloud: bool) -> Iterator[model.Result]:
    for result in found:
        if aloud:
            verdict = click.style(result.verdict, bold=True, fg=COLOURS[result.verdict])
            click.echo(f"{result.name}: {verdict}\n    {result.words}")
        yield result


def _commit() -> str:
    # a drill of our own queue pair needs nothing of the machine
    from hwrx.machine.description import find_commit

    found = find_commit()
    return f"{found['id'][:7]}{', and changes' if found.get('changed') else ''}" if found else "?"
