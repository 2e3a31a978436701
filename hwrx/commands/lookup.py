"""`hwrx lookup`: whose packet is it."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec
from rich.table import Table

from hwrx.commands.shared.numbers import whole_number
from hwrx.errors import MachineError, UsageError
from hwrx.host import netns
from hwrx.host.console import open_console
from hwrx.host.outside import check_name
from hwrx.lookup import answer, prove
from hwrx.lookup.winner import Packet

if TYPE_CHECKING:
    from hwrx.lookup.answer import Answer, Audit
    from hwrx.lookup.hashes import Address
    from hwrx.lookup.prove import Proof
    from hwrx.lookup.table import Protocol

PROVED = {"proved": 0, "refuted": 1, "cannot be proved": 5}


@click.command()
@click.argument("target", required=False, metavar="ADDRESS:PORT")
@click.option("--tcp/--udp", "tcp", default=False, help="Which protocol [UDP].")
@click.option("--from", "source", metavar="ADDRESS:PORT", help="The sender: for connections and SO_REUSEPORT groups.")
@click.option("--device", help="The network device that the packet comes in by.")
@click.option("--netns", "namespace", help="Network namespace: its name, or the PID of a process in it [this one].")
@click.option("--seed", metavar="HEX", help="Compute with this hash_mix, and do not ask the kernel [0].")
@click.option("--slots", type=whole_number(1, 1 << 24), help="Of the table, for such a computation [1024].")
@click.option("--all", "everything", is_flag=True, help="Hold every socket of the namespace against the computation.")
@click.option("--prove", "prove_it", is_flag=True, help="Send the packet, and see who gets it; programs do get it.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def lookup(
    target: str | None,
    tcp: bool,
    source: str | None,
    device: str | None,
    namespace: str | None,
    seed: str | None,
    slots: int | None,
    everything: bool,
    prove_it: bool,
    as_json: bool,
) -> None:
    """Find the socket of a packet to ADDRESS:PORT as the kernel does, and show the kernel's own tables beside it.

    Exit code 0: found, and the computed slots agree with the kernel's; 1: they differ; 4: nobody is there. With
    --prove 0: proved; 1: refuted; 5: it cannot be proved, with the reason.

    \b
    Examples:
      hwrx lookup 127.0.0.1:53
      hwrx lookup --tcp [::1]:8080 --from [::1]:41234 --netns blue
      hwrx lookup [fe80::1%eth0]:5353
      hwrx lookup --prove 127.0.0.1:8080
      hwrx lookup --all --tcp --json
    """
    protocol: Protocol = "tcp" if tcp else "udp"
    stated = seed is not None or slots is not None
    if everything:
        if target is not None or prove_it or stated:
            raise UsageError("--all looks at every socket of the kernel's, so that neither an address, --prove, --seed"
                             " nor --slots is to be given beside it")  # fmt: skip
        _show_audit(protocol, namespace, as_json)
    if target is None:
        raise UsageError("whose packet? Give ADDRESS:PORT", remedy="for example: hwrx lookup 127.0.0.1:53")
    if stated and (namespace or prove_it):
        raise UsageError(
            "--seed and --slots are for a computation that does not ask the kernel, and --netns and --prove ask it",
            remedy="leave out one or the other",
        )
    packet = _packet(target, source, device, namespace)
    if prove_it:
        _show_proof(prove.prove_packet(protocol, packet, namespace), as_json)
    found = _answer(protocol, packet, namespace, seed, slots)
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode()) if as_json else _print(found)
    sys.exit({"differs": 1, "nobody": 4}.get(found.verdict, 0))


def _show_audit(protocol: Protocol, namespace: str | None, as_json: bool) -> NoReturn:

    audit = answer.audit_tables(protocol, namespace)
    click.echo(msgspec.json.encode(audit).decode() if as_json else _audit_words(audit))
    sys.exit(1 if audit.differ else 0)


def _show_proof(proof: Proof, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(proof), indent=2).decode())
    else:
        for name, sockets in (("predicted", proof.expected), ("got it", proof.got)):
            listed = "; ".join(f"{each.local}, inode {each.inode}" for each in sockets)
            click.echo(f"{name}: {listed or 'nobody'}") if proof.sent else None
        click.echo(proof.sent) if proof.sent else None
        click.echo(f"{proof.verdict}{f': {proof.reason}' if proof.reason else ''}")
    sys.exit(PROVED[proof.verdict])


def _answer(protocol: Protocol, packet: Packet, namespace: str | None, seed: str | None, slots: int | None) -> Answer:
    """Ask the kernel, or compute with what is stated: because it is, or where the kernel may not be asked."""

    why = "--seed or --slots states a table that is not this kernel's"
    if seed is None and slots is None:
        try:
            return answer.ask_tables(protocol, packet, namespace)
        except MachineError as error:
            if namespace is not None:
                raise
            why = str(error)
    slots = 1024 if slots is None else slots
    if slots < 1 or slots & slots - 1:
        raise UsageError(f"a table has a power of two of slots, not {slots}")
    try:
        mix = int(seed or "0", 16)
    except ValueError:
        raise UsageError(f"'{seed}' is not a hexadecimal number", remedy="for example: --seed 1f2e3d4c") from None
    if not 0 <= mix <= 0xFFFFFFFF:
        raise UsageError(f"{seed} is not a hash_mix", remedy="32 bits: --seed 0 to --seed ffffffff")
    return answer.compute_answer(protocol, packet, mix, slots, why)


def _packet(target: str, source: str | None, device: str | None, namespace: str | None) -> Packet:
    """Return the packet that the words describe; the device may stand behind an address's %, too."""

    address, port = parse_endpoint(target)
    sender: tuple[Address | None, int] = parse_endpoint(source) if source else (None, 0)
    if sender[0] is not None and sender[0].version != address.version:
        raise UsageError(f"{source} and {target} are of two families")
    if device is not None:
        check_name(device, "network device", remedy="ip link")
    named = {name for name in (device, _scope(address), _scope(sender[0])) if name}
    if len(named) > 1:
        raise UsageError(f"a packet comes in by one device, not by {' and '.join(sorted(named))}")
    with netns.entered_namespace(namespace):
        index = _index(next(iter(named), None))
    if not index and (address.is_link_local and address.version == 6):
        raise UsageError(f"{address} is on every link", remedy=f"say which: [{address}%eth0]:{port}, or --device eth0")
    if not index and address.is_multicast:
        raise UsageError(
            f"who listens to {address} depends on the device that the packet comes in by", remedy="--device eth0"
        )
    bare = None if sender[0] is None else ipaddress.ip_address(sender[0].packed)
    return Packet(ipaddress.ip_address(address.packed), port, bare, sender[1], index)


def _scope(address: Address | None) -> str | None:
    return address.scope_id if isinstance(address, ipaddress.IPv6Address) else None


def parse_endpoint(text: str) -> tuple[Address, int]:
    """Return address and port of `1.2.3.4:5`, `[::1]:5` or `[fe80::1%eth0]:5`.

    :return: the address with its device behind %, as it was written; of a v4-mapped address the one within, because
        what is sent to it is an IPv4 packet
    :raises UsageError: if it is not an address and a port
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise UsageError(
            f"'{text}' is not ADDRESS:PORT", remedy="numbers, not names: 192.0.2.1:53, or [2001:db8::1]:53"
        ) from None
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"'{port}' is not a port", remedy="1 to 65535, behind the last colon")
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
    console = open_console(piped=140)
    where = "" if found.namespace is None else f", network namespace {found.namespace}"
    console.print(f"{found.protocol.upper()} {found.address} port {found.port}{where}")
    console.print(f"hash_mix 0x{found.seed:08x}: {found.seed_from}\n")
    for look in found.looks:
        console.print(f"{look.table}: {look.sentence}", style="bold")
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
            console.print(f"  {line}")
        if look.length is not None and look.length > len(look.chain):
            console.print(f"  and {look.length - len(look.chain):,} more")
        console.print()
    for each in found.sockets:
        console.print(f"{each.local} {f'from {each.far} ' if each.far else ''}{each.state}", style="bold")
        held = ", ".join(f"{owner.name} (PID {owner.pid}, fd {owner.descriptor})" for owner in each.owners)
        console.print(f"  bound by {each.user}; inode {each.inode}; held by {held or 'nobody that can be seen'}")
        if each.group:
            console.print(f"  SO_REUSEPORT group: member {each.member} of {each.group}")
        for name, (computed, real) in each.slots.items():
            word = "not compared" if computed is None else "agrees" if computed == real else "DIFFERS"
            console.print(f"  {name}: computed {computed}, really on {real} with {each.before[name]} before it: {word}")
    console.print(f"\ngets it: {found.gets_it}")
    if found.early_demux:
        console.print(f"early demux: {found.early_demux}")
    for note in found.notes:
        console.print(f"note: {note}")
    console.print(f"verdict: {found.verdict}", style="bold")
