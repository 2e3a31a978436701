"""`hwrx claims`: what textbooks and articles say of packet reception, put to the test."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from hwrx.claims import instruments, model
from hwrx.claims import run as driver
from hwrx.commands.shared.output import hostnames_option, print_json
from hwrx.errors import MachineError, UsageError
from hwrx.host import disk
from hwrx.machine import description

if TYPE_CHECKING:
    from hwrx.claims.model import Claim, Result

COLOURS = {"confirmed": "green", "refuted": "red", "depends": "blue", "not tested here": None}


class _RunByDefault(click.Group):
    """A group that runs `run` where no subcommand is named: `hwrx claims`, `hwrx claims NAME --set …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def claims() -> None:
    """What textbooks and articles say of packet reception: each claim with an experiment, and a verdict from it.

    \b
    Examples:
      hwrx claims                                   # all of them, in the lab
      hwrx claims list
      hwrx claims run skb-is-a-copy --set sizes=64,1400
      hwrx claims page runs/20260131T120000Z-claims
    """


@claims.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(as_json: bool) -> None:
    """List the claims, their experiments and parameters; nothing is measured."""
    known = model.every_claim()
    if as_json:
        print_json(list(known.values()))
        return
    chapter = ""
    for claim in known.values():
        if claim.chapter != chapter:
            chapter = claim.chapter
            click.echo(click.style(f"\n{chapter}", bold=True))
        click.echo(f"  {claim.name}: {claim.claim}")
        defaults = instruments.parameters_of(claim.instrument) | claim.parameters
        listed = " ".join(f"{key}={_brief(value)}" for key, value in defaults.items())
        click.echo(click.style(f"    {claim.instrument} on {claim.topology}: {listed}", dim=True))


@claims.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a parameter; for one claim.")
@click.option("--kernel", help="Kernel of the guest, for example 6.12.")
@click.option("--here", is_flag=True, help="On this machine's own kernel, no virtual machine.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [runs/TIME-claims].")
@click.option(
    "--log", type=click.Path(path_type=Path), help="File that gets all that the guest prints; NAME-2 the second's."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@hostnames_option
def run(
    names: tuple[str, ...],
    settings: tuple[str, ...],
    kernel: str | None,
    here: bool,
    out: Path | None,
    log: Path | None,
    as_json: bool,
    hostnames: bool,
) -> None:
    """Test the claims called NAME [all]: boot the lab, run each experiment, judge it by its figures, write the page.

    A verdict is confirmed, refuted, depends (on what), or not tested here, with the reason. The figures, the machine
    and the page are kept in a run directory. NAME may also be a file of your own (lab/claims has examples).

    \b
    Examples:
      hwrx claims run
      hwrx claims run pre-routing-before-routing --kernel 6.12
      hwrx claims run one-interrupt-many-packets --set burst=1
    """
    # pictures need Matplotlib, which takes longer to start than all else; a list needs none
    from hwrx.claims import instruments, model, page

    chosen = model.find_claim(names, model.every_claim())
    if settings and len(chosen) != 1:
        raise UsageError("--set changes one claim's experiment", remedy="name the claim: hwrx claims run NAME --set …")
    if settings:
        chosen = [model.with_parameters(chosen[0], settings, instruments.parameters_of(chosen[0].instrument))]
    for claim in chosen:
        instruments.check_claim(claim)
    if here and os.geteuid() != 0:
        raise MachineError("experiments on this machine's kernel need root", remedy="use sudo, or leave out --here")
    if here and kernel:
        raise UsageError("--kernel chooses a guest's kernel, and --here takes this machine's", remedy="leave one out")
    path = out or Path("runs", f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-claims")
    known = description.describe_machine()
    about = {"host": {key: known[key] for key in ("commit", "cpu", "kernel", "versions")}}
    with driver.Ledger.create(path, chosen, sys.argv, about) as ledger:
        say, take = _reporting(len(chosen), ledger.add, aloud=not as_json)
        try:
            if here:
                driver.run_here(chosen, say, take)
            else:
                ledger.note(machines=driver.in_lab(chosen, kernel, log, say, take))
        finally:
            ledger.results.sort(key=lambda each: [claim.name for claim in chosen].index(each.claim.name))
    told, results = _shown(driver.load_results(path)[0], ledger.results, hostnames=hostnames)
    page.write_page(path / driver.PAGE, told, results)
    if as_json:
        print_json(results)
    else:
        click.echo(f"\n{page.answer_of(ledger.results)}\npage: {path / driver.PAGE}")


@claims.command("page")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIRECTORY...")
@click.option("--to", "kind", type=click.Choice(["html", "md"]), default="html", help="What to make [html].")
@click.option("--out", type=click.Path(path_type=Path), help="File [claims.html, or claims.md, in the directory].")
@hostnames_option
def page_(directories: tuple[Path, ...], kind: str, out: Path | None, hostnames: bool) -> None:
    """Make the page of a run DIRECTORY again, from what is stored there; in Markdown also of several side by side.

    \b
    Examples:
      hwrx claims page runs/20260131T120000Z-claims
      hwrx claims page runs/A runs/B --to md --out lab/claims/RESULTS.md
    """
    # as above
    from hwrx.claims import markdown, model, page

    if kind == "html" and len(directories) > 1:
        raise UsageError("an HTML page is of one run", remedy="give one directory, or --to md")
    order = {chapter: number for number, chapter in enumerate(model.CHAPTERS)}
    loaded = [_shown(*driver.load_results(directory), hostnames=hostnames) for directory in directories]
    for _, results in loaded:
        results.sort(key=lambda each: (order.get(each.claim.chapter, len(order)), each.claim.name))
    if out is not None:
        disk.check_target(out)
    target = out or directories[0] / (driver.PAGE if kind == "html" else driver.MARKDOWN)
    if kind == "html":
        page.write_page(target, *loaded[0])
    else:
        with disk.guarded_writes(target):
            disk.replace_file(target, markdown.render_markdown(loaded).encode())
    click.echo(f"page: {target}")


def _shown(
    about: dict[str, object], results: list[Result], *, hostnames: bool
) -> tuple[dict[str, object], list[Result]]:
    """Return a ledger as its page shows it: without the names of hosts, unless they are asked for."""
    if hostnames:
        return about, results
    # a list of claims needs no Arrow
    from hwrx.report.anonymous import Names

    names = Names.of_hosts(about)
    told = names.clean_tree(msgspec.to_builtins(results))
    return names.clean_tree(about), msgspec.convert(told, list[model.Result])


def _reporting(
    total: int, keep: Callable[[Result], None], *, aloud: bool
) -> tuple[Callable[[str], None], Callable[[Result], None]]:
    """Return what says the progress, and what takes a result: it is kept, then told."""
    done = 0

    def say(words: str) -> None:
        click.echo(words, err=True)

    def take(result: Result) -> None:
        nonlocal done
        keep(result)
        done += 1
        if aloud:
            _tell(result, f"{done}/{total}")

    return say, take


def _tell(result: Result, place: str) -> None:
    claim: Claim = result.claim
    verdict = click.style(result.verdict, bold=True, fg=COLOURS[result.verdict])
    more = f" on {claim.verdict.on}" if result.verdict == "depends" and claim.verdict.on else ""
    click.echo(f"{place} {claim.name}: {verdict}{more}")
    click.echo(f"    {claim.claim}")
    click.echo(f"    {result.words or result.why}")


def _brief(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
