"""`hwrx lookup`: whose packet is it."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from hwrx.errors import MachineError, UsageError

if TYPE_CHECKING:
    from hwrx.lookup.answer import Answer, Audit
    from hwrx.lookup.hashes import Address
    from hwrx.lookup.table import Protocol


@click.command()
@click.argument("target", required=False, metavar="ADDRESS:PORT")
@click.option("--tcp/--udp", "tcp", default=False, help="Which protocol [UDP].")
@click.option("--from", "source", metavar="ADDRESS:PORT", help="The sender: for connections and SO_REUSEPORT groups.")
@click.option("--device", help="The network device that the packet comes in by.")
@click.option("--netns", "namespace", help="Network namespace: its name, or the PID of a process in it [this one].")
@click.option("--seed", default="0", metavar="HEX", help="Of a computation without privilege [0].")
@click.option("--slots", default=1024, show_default=True, help="Of the table, in a computation without privilege.")
@click.option("--all", "everything", is_flag=True, help="Hold every socket of the namespace against the computation.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def lookup(
    target: str | None,
    tcp: bool,
    source: str | None,
    device: str | None,
    namespace: str | None,
    seed: str,
    slots: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Find the socket of a packet to ADDRESS:PORT as the kernel does, and show the kernel's own tables beside it.

    Exit code 0: found, and the computed slots agree with the kernel's; 1: they differ; 4: nobody is there.

    \b
    Examples:
      hwrx lookup 127.0.0.1:53
      hwrx lookup --tcp [::1]:8080 --from [::1]:41234 --netns blue
      hwrx lookup --all --tcp --json
    """
    from hwrx.lookup import answer, winner

    protocol: Protocol = "tcp" if tcp else "udp"
    if everything:
        if target is not None:
            raise UsageError("--all looks at every socket, so that no address is to be given beside it")
        audit = answer.audit_tables(protocol, namespace)
        click.echo(msgspec.json.encode(audit).decode() if as_json else _audit_words(audit))
        sys.exit(1 if audit.differ else 0)
    if target is None:
        raise UsageError("whose packet? Give ADDRESS:PORT", remedy="for example: hwrx lookup 127.0.0.1:53")
    address, port = parse_endpoint(target)
    sender: tuple[Address | None, int] = parse_endpoint(source) if source else (None, 0)
    if sender[0] is not None and sender[0].version != address.version:
        raise UsageError(f"{source} and {target} are of two families")
    if slots < 1 or slots & slots - 1:
        raise UsageError(f"a table has a power of two of slots, not {slots}")
    packet = winner.Packet(address, port, *sender, _index(device))
    try:
        found = answer.ask_tables(protocol, packet, namespace)
    except MachineError as error:
        if namespace is not None:
            raise
        try:
            stated = int(seed, 16)
        except ValueError:
            raise UsageError(f"'{seed}' is no hexadecimal number", remedy="for example: --seed 1f2e3d4c") from None
        found = answer.compute_answer(protocol, packet, stated & 0xFFFFFFFF, slots, str(error))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        _print(found)
    sys.exit({"differs": 1, "nobody": 4}.get(found.verdict, 0))


def parse_endpoint(text: str) -> tuple[Address, int]:
    """Return address and port of `1.2.3.4:5` or `[::1]:5`; UsageError in words."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise UsageError(
            f"'{text}' is no ADDRESS:PORT", remedy="numbers, not names: 192.0.2.1:53, or [2001:db8::1]:53"
        ) from None
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"'{port}' is no port", remedy="1 to 65535, behind the last colon")
    if address.version == 6 and host == bare:
        raise UsageError(f"'{text}': where does the address end?", remedy=f"in brackets: [{bare}]:{port}")
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return inner or address, int(port)


def _index(device: str | None) -> int:
    if device is None:
        return 0
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise UsageError(
            f"there is no network device '{device}'", remedy="ip link show names those there are"
        ) from None


def _audit_words(audit: Audit) -> str:
    lines = [
        f"{audit.protocol.upper()}, namespace {audit.namespace}: {audit.sockets:,} sockets,"
        f" {audit.agree:,} agree, {len(audit.differ):,} differ, {audit.uncompared:,} not compared"
    ]
    lines += [f"  deepest place on a chain of {table}: {most:,}" for table, most in audit.longest.items()]
    return "\n".join([*lines, *(f"  differs: {line}" for line in audit.differ[:20])])


def _print(found: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    where = "" if found.namespace is None else f", network namespace {found.namespace}"
    console.print(f"{found.protocol.upper()} {found.address} port {found.port}{where}", markup=False)
    console.print(f"hash_mix 0x{found.seed:08x}: {found.seed_from}\n", markup=False)
    for look in found.looks:
        console.print(f"{look.table}: {look.sentence}", markup=False, style="bold")
        table = Table(box=None, pad_edge=False)
        table.add_column(look.looked_for)
        table.add_column("", justify="right")
        for step in look.steps:
            table.add_row(step.what, step.text())
        console.print(table)
        chain = "" if look.length is None else f"; {look.length:,} sockets on its chain"
        console.print(
            f"slot {look.slot} of {look.slots:,}{chain}{'' if look.steady else ' (it changed while it was read)'}"
        )
        for line in look.chain:
            console.print(f"  {line}", markup=False)
        if look.length is not None and look.length > len(look.chain):
            console.print(f"  and {look.length - len(look.chain):,} more")
        console.print()
    for each in found.sockets:
        console.print(f"{each.local} {f'from {each.far} ' if each.far else ''}{each.state}", markup=False, style="bold")
        held = ", ".join(f"{owner.name} (PID {owner.pid}, fd {owner.descriptor})" for owner in each.owners)
        console.print(f"  bound by {each.user}; inode {each.inode}; held by {held or 'nobody that can be seen'}")
        if each.group:
            console.print(f"  SO_REUSEPORT group: member {each.member} of {each.group}")
        for name, (computed, real) in each.slots.items():
            word = "not compared" if computed is None else "agrees" if computed == real else "DIFFERS"
            console.print(f"  {name}: computed {computed}, really on {real} with {each.before[name]} before it: {word}")
    console.print(f"\ngets it: {found.gets_it}", markup=False)
    if found.early_demux:
        console.print(f"early demux: {found.early_demux}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"verdict: {found.verdict}", style="bold")
