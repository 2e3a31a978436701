"""`hwrx devices`, `hwrx doctor`, `hwrx rxe`: what this machine has, and can do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table
from rich.text import Text

from hwrx.commands.shared.bench_options import bench_option, find_peer
from hwrx.commands.shared.output import print_json
from hwrx.control.environment import Host
from hwrx.control.messages import Describe, Described
from hwrx.control.peers import Peer
from hwrx.errors import MachineError, PeerError, UsageError
from hwrx.host.console import open_console
from hwrx.lab import doctor as checks
from hwrx.verbs import devices as verbs
from hwrx.verbs import rxe as softroce

if TYPE_CHECKING:
    import pyudev


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one object a line.")
@click.option("--watch", is_flag=True, help="Then tell of devices that come and go, until Ctrl-C.")
@click.option("--peer", metavar="PEER", help="Of a host of the inventory, or of netns:NAME, ssh:HOST, a command.")
@bench_option
def devices(as_json: bool, watch: bool, peer: str | None, bench: Path | None) -> None:
    """List the verbs devices: ports, GIDs, MTU, limits, and the netdev under each.

    \b
    Examples:
      hwrx devices
      hwrx devices --json | jq '.[].ports[].gids'
      hwrx devices --peer ssh:other
    """
    if peer is not None:
        if watch:
            raise UsageError("--watch listens to this machine's kernel", remedy="leave out --watch or --peer")
        found = ask_devices(find_peer(peer, bench))
        print_json(found) if as_json else _show(found)
        return
    heard = open_events() if watch else iter(())  # before the list: who comes after it is told of
    found = verbs.verbs_devices()
    if as_json and watch:
        click.echo(msgspec.json.encode({"event": "present", "devices": found}).decode())
    elif as_json:
        print_json(found)
    else:
        _show(found)
    _tell(heard, as_json)


def ask_devices(host: Host) -> list[verbs.Device]:
    """Return the verbs devices of another machine, as an agent there finds them."""
    with Peer.start(host, host.name) as peer:
        machine = peer.ask(Describe(), Described).machine
    try:
        return msgspec.convert(machine.get("verbs"), list[verbs.Device])
    except msgspec.ValidationError as error:
        raise PeerError(f"{host.name}: its devices cannot be read: {error}", remedy="install the same hwrx") from None


def _show(found: list[verbs.Device]) -> None:
    console = open_console(soft_wrap=True)
    if not found:
        click.echo(
            "no verbs device\n  put SoftRoCE on a netdev: hwrx rxe up NETDEV; or use the virtual machine: lab/run"
        )
    for device in found:
        kind = "software: the CPU stands in for the adapter" if device.software else f"firmware {device.firmware}"
        console.print(Text(device.name, "bold"), Text(f"  {device.driver}, {kind}"))
        if device.note:
            console.print(f"  from /sys only: {device.note}")
        for port in device.ports:
            mtu = f", MTU {port.active_mtu} of at most {port.max_mtu}" if port.active_mtu else ""
            on = f" on {port.netdev}" if port.netdev else ""
            console.print(f"  port {port.number}: {port.state}, {port.link_layer}{on}, {port.rate}{mtu}")
            table = Table(box=None, pad_edge=False, show_header=False)
            for gid in port.gids:
                table.add_row("   ", str(gid.index), gid.type, gid.address, gid.netdev or "")
            if port.gids:
                console.print(table)
        if device.limits:
            console.print("  limits: " + ", ".join(f"{name} {value}" for name, value in device.limits.items()))


def _tell(heard: Iterator[tuple[float, str, str, str]], as_json: bool) -> None:
    for moment, action, subsystem, name in heard:
        if as_json:
            line = {"time": moment, "event": action, "subsystem": subsystem, "name": name}
            click.echo(msgspec.json.encode(line).decode())
        else:
            click.echo(f"{time.strftime('%H:%M:%S', time.localtime(moment))} {action} {subsystem} {name}")
        sys.stdout.flush()


def open_events() -> Iterator[tuple[float, str, str, str]]:
    """Listen from now on to verbs and network devices that come and go.

    :return: (seconds since the epoch, action, subsystem, name) of each event, for ever.
    :raises MachineError: if the kernel's messages cannot be listened to.
    """
    try:
        import pyudev

        context = pyudev.Context()
        # the kernel's own messages, which need no udev daemon: there is none in a container or in the lab's guest
        monitor = pyudev.Monitor.from_netlink(context, source="kernel")
        monitor.filter_by("infiniband")
        monitor.filter_by("net")
        monitor.start()
    except (ImportError, OSError) as error:
        raise MachineError(f"devices cannot be watched: {error}", remedy="apt-get install libudev1") from None
    return _hear(monitor)


def _hear(monitor: pyudev.Monitor) -> Iterator[tuple[float, str, str, str]]:
    while True:
        event = monitor.poll(timeout=None)
        if event is not None:
            yield time.time(), event.action, event.subsystem, event.sys_name


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and for what it cannot the command that mends it.

    Exit code 0: all that the main job (lab/run) needs is there.
    """
    console = open_console(stderr=True)
    with console.status("looking") as status:
        findings = checks.examine_machine(lambda _, text: status.update(Text(f"looking at: {text}")))
    if as_json:
        print_json({"healthy": checks.is_healthy(findings), "findings": findings})
    else:
        _show_findings(findings)
    if not checks.is_healthy(findings):
        sys.exit(MachineError.exit_code)


def _show_findings(findings: list[checks.Finding]) -> None:
    console = open_console(soft_wrap=True)
    for part, sentence in checks.PARTS.items():
        console.print(Text(sentence, "bold"))
        for finding in findings:
            if finding.part != part:
                continue
            mark = Text("yes", "green") if finding.fine else Text("no ", "red" if part == "main" else "yellow")
            console.print(Text("  "), mark, Text(f" {finding.name}: {finding.seen}"), sep="")
            if finding.remedy:
                console.print(Text(f"        {finding.remedy}", "dim"))


@click.group()
def rxe() -> None:
    """Put a SoftRoCE device on a netdev, or take it away."""


@rxe.command()
@click.argument("netdev")
@click.option("--name", help="Name of the verbs device; the first free of rxe0, rxe1, … otherwise.")
def up(netdev: str, name: str | None) -> None:
    """Put a SoftRoCE device on NETDEV. It stays until `hwrx rxe down` or a reboot."""
    click.echo(f"{softroce.put_up(netdev, name)} on {netdev}")


@rxe.command()
@click.argument("name", metavar="NETDEV|DEVICE")
def down(name: str) -> None:
    """Take a SoftRoCE device away, named itself or by its netdev."""
    click.echo(f"{softroce.take_down(name)} is gone")
