"""`hwrx lab`: run experiments, commands or a shell where the hardware is."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

import click
from click.core import ParameterSource
from rich.table import Table
from rich.text import Text

from hwrx.commands.shared.numbers import LONG, real_number, whole_number
from hwrx.commands.shared.options import experiment_options
from hwrx.commands.shared.running import run_and_report
from hwrx.control.environment import parse_environment
from hwrx.control.messages import Clock
from hwrx.errors import UsageError
from hwrx.host import tools, undo
from hwrx.host.console import open_console
from hwrx.lab import kernel, terminal
from hwrx.lab.kernel import Progress
from hwrx.lab.vm import Guest
from hwrx.nic import pci
from hwrx.runs.experiment import described_experiment
from hwrx.runs.testbed import Wanted
from hwrx.wires import topology


@click.group()
def lab() -> None:
    """Virtual machines and namespaces that have the hardware."""


@lab.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="EXPERIMENT")
@experiment_options
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Where run directories go.")
@click.option("--log", type=click.Path(path_type=Path), help="File that gets all that the guest prints.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, how long and how much disk it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def run(file: Path, runs: Path, log: Path | None, dry_run: bool, as_json: bool, **options: object) -> None:
    """Run EXPERIMENT in the lab: its topology is put up in a virtual machine where it needs one.

    \b
    Examples:
      hwrx lab run lab/experiments/first.toml
      hwrx lab run lab/experiments/stages.toml --kernel 6.12
    """
    experiment = described_experiment(file, options)
    run_and_report(experiment, Wanted(log=log), runs=runs, dry_run=dry_run, as_json=as_json)


class GuestOptions(TypedDict):
    """Options of a guest that go to it as they are: see `hwrx.lab.vm.Guest`."""

    clock: Clock
    cpus: int
    memory: str
    accelerator: Literal["auto", "kvm", "tcg"]
    writable: tuple[Path, ...]
    limit: float
    log: Path | None


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="TOPOLOGY", type=click.Choice(list(topology.ON_ONE_KERNEL)))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--guest/--host", "in_guest", default=None, help="Where; by default where the topology belongs.")
@click.option(
    "--kernel", "wanted_kernel", help="Kernel of the guest: 6.12, 6.12-rt, or the path of a vmlinuz or of a built tree."
)
@click.option("--clock", type=click.Choice(get_args(Clock)), default="wall", help="icount: guest instructions.")
@click.option("--cpus", type=whole_number(1, 64), default=2, help="CPUs of the guest.")
@click.option("--memory", default="2G", help="Memory of the guest.")
@click.option("--accelerator", type=click.Choice(["auto", "kvm", "tcg"]), default="auto")
@click.option(
    "--mtu",
    type=whole_number(1280, 65535),
    help="MTU of the wire (netns, pair, nic): 1500 gives verbs 1024, 4200 gives 4096.",
)
@click.option("--append", multiple=True, help="More words for the guest's kernel command line.")
@click.option("--qemu", multiple=True, help="More words for QEMU, for example '-device e1000e'.")
@click.option(
    "--rw",
    "writable",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the guest may write to.",
)
@click.option("--limit", type=real_number(0.001, LONG), default=180.0, help="Seconds for the guest to come up.")
@click.option("--log", type=click.Path(path_type=Path), help="File that gets all that the guest prints.")
def shell(
    name: str,
    command: tuple[str, ...],
    in_guest: bool | None,
    wanted_kernel: str | None,
    mtu: int | None,
    append: tuple[str, ...],
    qemu: tuple[str, ...],
    **options: Unpack[GuestOptions],
) -> None:
    """Put TOPOLOGY up and start a shell in it, or COMMAND; take it down when that ends.

    The guest sees this machine's files at the same paths. What it writes is lost, but for the folders given with --rw.
    With HWRX_QEMU_USER=nobody in the environment, root starts QEMU as that user, who then has to be able to read hwrx.
    On the host, the shell of `netns` is in the client's namespace; $SERVER_NETNS names the other.

    \b
    Examples:
      hwrx lab shell pair
      hwrx lab shell pair -- ibv_devinfo
      hwrx lab shell netns -- iperf3 --client 198.18.77.2
    """
    more = {"mtu": mtu} if mtu else {}
    if mtu and name not in topology.WITH_MTU:
        raise UsageError(f"--mtu is for the wire of {', '.join(topology.WITH_MTU)}", remedy="leave it out")
    if in_guest is None:
        in_guest = topology.find_topology(name).where == "guest"
    if not in_guest:
        _refuse_ignored()
        sys.exit(_on_host(name, command, more))
    with _progress() as progress:
        guest = Guest(
            name,
            kernel=wanted_kernel,
            options=more,
            append=append,
            qemu=[word for words in qemu for word in shlex.split(words)],
            progress=progress,
            **options,
        )
        stack = contextlib.ExitStack()
        stack.enter_context(guest)
    with stack:
        sys.exit(terminal.run_attached(guest, command) if command else terminal.open_shell(guest))


def _refuse_ignored() -> None:
    """UsageError if an option was given that only a guest could heed."""
    context = click.get_current_context()
    heeded = ("name", "command", "in_guest", "mtu")
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in heeded:
            raise UsageError(
                f"{parameter.opts[0]} is for a guest, and this topology is put up on this machine",
                remedy="add --guest, or leave it out",
            )


def _on_host(name: str, command: tuple[str, ...], options: dict[str, Any]) -> int:
    with topology.build_topology(name, **options) as made:
        spaces = {end: parse_environment(peer).netns or "" for end, peer in made.peers.items()}
        words = list(command) or [os.environ.get("SHELL", "/bin/sh")]
        if spaces["client"]:
            words = ["ip", "netns", "exec", spaces["client"], *words]
        environment = os.environ | {"CLIENT_NETNS": spaces["client"], "SERVER_NETNS": spaces["server"]}
        try:
            return subprocess.run(words, env=environment, check=False).returncode
        except OSError as error:
            raise UsageError(f"cannot run {words[0]}: {error.strerror}") from None


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Show the stages on standard error: a line that moves on a terminal, plain lines elsewhere."""
    console = open_console(stderr=True)
    if not console.is_terminal:
        yield lambda stage, text: console.print(f"{stage}: {text}", soft_wrap=True)
        return
    with console.status("getting ready") as status:
        yield lambda stage, text: status.update(Text(f"{stage}: {text}"))


@lab.command()
def down() -> None:
    """Take down what killed runs have left on this machine: namespaces, veth pairs, rxe devices, settings, NICs.

    \b
    Example:
      hwrx lab down
    """
    tools.need_root("taking down what is left")
    mended = undo.mend_leftovers()
    for line in mended:
        click.echo(f"taken down: {line}")
    bound = pci.list_kept()
    for nic in bound:
        click.echo(
            f"bound to {nic.driver} (hwrx nic bind): {nic.address}; `hwrx nic unbind {nic.address}` gives it back"
        )
    if not mended and not bound:
        click.echo("nothing is left over")


@lab.command()
@click.option(
    "--fetch",
    metavar="VERSION",
    is_flag=False,
    flag_value="",
    help="Download a kernel, without a version the distribution's default.",
)
def kernels(fetch: str | None) -> None:
    """List the cached kernels. They are unpacked, never installed.

    A run uses the kernel that is cached; --fetch gets the distribution's newest.
    """
    if fetch is not None:
        with _progress() as progress:
            kernel.find_kernel(fetch or None, progress, update=True)
    found = kernel.cached_kernels()
    table = Table(box=None, pad_edge=False)
    for column in ("version", "package", "chosen by"):
        table.add_column(column)
    chosen = kernel.kernel_choices()
    for each in found:
        table.add_row(each.version, each.package, ", ".join(chosen.get(each.package, [])))
    if found:
        open_console(soft_wrap=True).print(table)
    else:
        click.echo("no kernel is cached; the first run, or --fetch, downloads one")
