"""`hwrx bench`: the hosts of a laboratory by name: what they can do, their power and console, and hwrx on them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal, cast

import click
from rich.text import Text

from hwrx.bench import check, install
from hwrx.bench.inventory import load_bench
from hwrx.commands.shared.bench_options import bench_option
from hwrx.commands.shared.numbers import real_number
from hwrx.commands.shared.output import print_json
from hwrx.errors import MachineError, PeerError, UsageError
from hwrx.host.console import OutsideConsole, open_console
from hwrx.host.outside import clean_text

COLOURS = {"yes": "green", "with care": "yellow", "no": "red"}


@click.group()
def bench() -> None:
    """Hosts by name, as an inventory has them: bench.toml, net.config of the kernel's driver tests, or labgrid's.

    \b
    A bench.toml:
      [defaults]
      reach = "ssh:root@{host}"        # local, netns:NAME, ssh:HOST, or a command with {agent}
      hwrx = "/opt/hwrx/bin/hwrx"      # where hwrx is there
      [hosts."node[1-8]"]
      address = "192.0.2.[1-8]"        # of the wire that is measured
      netdev = "eth1"
      verbs = "mlx5_0"
      power = {cycle = "ipmitool -H {host}-bmc chassis power cycle"}

    \b
    Examples:
      hwrx bench check
      hwrx bench install node3
      hwrx compare --paths udp,rdma-send --client node1 --server node2
    """


@bench.command(name="check")
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@bench_option
@click.option("--limit", type=real_number(0.1, 3600), default=60.0, help="Seconds that a host may take [60].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_bench(hosts: tuple[str, ...], bench: Path | None, limit: float, as_json: bool) -> None:
    """Say what each HOST can do [all], and which of them may be compared.

    Exit code 0: all were reached, and have what the inventory says.

    \b
    Example:
      hwrx bench check 'node[1-4]'
    """
    inventory = load_bench(bench)
    chosen = inventory.find_hosts(hosts or inventory.hosts)
    with open_console(stderr=True).status(Text(f"asking {len(chosen)} hosts")):
        reports = check.check_hosts(chosen, limit)
    pairs = check.judge_pairs(chosen, reports)
    if as_json:
        print_json({"hosts": reports, "pairs": pairs})
    else:
        _show(open_console(soft_wrap=True), reports, pairs)
    silent = [report.name for report in reports if not report.reached]
    if silent:
        raise PeerError(f"{len(silent)} of {len(reports)} hosts were not reached: {', '.join(silent)}")
    if lacking := [report for report in reports if report.lacks]:
        raise MachineError(
            f"{lacking[0].name}: {lacking[0].lacks[0]}", remedy=f"mend it there, or in {clean_text(inventory.source)}"
        )


def _show(console: OutsideConsole, reports: list[check.HostReport], pairs: list[check.PairReport]) -> None:
    for report in reports:
        console.print(Text(report.name, "bold"))
        if not report.reached:
            console.print(Text(f"  {report.error}", "red"))
            console.print(Text(f"  remedy: {report.remedy}", "dim"))
            continue
        for line in check.describe_host(report):
            console.print(Text(f"  {line}"))
        for line in report.noise:
            console.print(Text(f"  noise: {line}", "dim"))
    if pairs:
        console.print(Text("may be compared", "bold"))
    for pair in pairs:
        names = Text(f"  {pair.hosts[0]} with {pair.hosts[1]}: ")
        console.print(names, Text(pair.verdict, COLOURS[pair.verdict]), sep="")
        for reason in pair.reasons:
            console.print(Text(f"    {reason}"))


@bench.command()
@click.argument("host")
@click.argument("state", type=click.Choice(["on", "off", "cycle"]))
@bench_option
@click.option("--dry-run", is_flag=True, help="Say what would be run.")
def power(host: str, state: str, bench: Path | None, dry_run: bool) -> None:
    """Switch HOST on or off, or off and on, by the command that the inventory has for that.

    \b
    Example:
      hwrx bench power node3 cycle
    """
    found = load_bench(bench).find_host(host)
    command = getattr(found.power, cast(Literal["on", "off", "cycle"], state))
    if command is None:
        raise UsageError(
            f"the inventory has no command that switches {host} {state}", remedy=f'power = {{{state} = "COMMAND"}}'
        )
    _run_command(command, dry_run)


@bench.command()
@click.argument("host")
@bench_option
@click.option("--dry-run", is_flag=True, help="Say what would be run.")
def console(host: str, bench: Path | None, dry_run: bool) -> None:
    """Open the console of HOST, by the command that the inventory has for that.

    \b
    Example:
      hwrx bench console node3
    """
    found = load_bench(bench).find_host(host)
    if found.console is None:
        raise UsageError(f"the inventory has no console of {host}", remedy='console = "COMMAND"')
    _run_command(found.console, dry_run)


def _run_command(command: str, dry_run: bool) -> None:
    """Say what is run, and run it with this terminal; its exit code becomes ours. No shell reads it."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"`{clean_text(command)}`: {error}", remedy="close the quotation mark") from None
    if not words:
        raise UsageError("the command in the inventory is empty", remedy="leave it out, or write one")
    click.echo(f"{'would run' if dry_run else 'running'}: {clean_text(shlex.join(words), lines=False)}", err=True)
    if dry_run:
        return
    try:
        code = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise MachineError(
            f"`{clean_text(words[0])}` cannot be run: {error.strerror}", remedy=f"is {clean_text(words[0])} installed?"
        ) from None
    if code:
        sys.exit(code if code > 0 else 128 - code)


@bench.command(name="install")
@click.argument("host")
@bench_option
@click.option("--into", metavar="FOLDER", help="Folder there that gets the environment [that of `hwrx`, or ~/.hwrx].")
@click.option("--python", default="python3", help="The Python there [python3].")
@click.option("--dry-run", is_flag=True, help="Look at the host, and say what would be done.")
def install_hwrx(host: str, bench: Path | None, into: str | None, python: str, dry_run: bool) -> None:
    """Put this hwrx and all that it needs onto HOST, over the way that its agent is started by.

    The host needs no network of its own: what is installed there is built and collected here, and goes over that way.

    \b
    Example:
      hwrx bench install node3 --into /opt/hwrx --dry-run
    """
    found = load_bench(bench).find_host(host).host
    stage = open_console(stderr=True)
    done = install.install_host(found, into, python, dry_run=dry_run, say=lambda words: stage.print(Text(words)))
    click.echo(done)
