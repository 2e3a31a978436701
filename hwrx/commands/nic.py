"""`hwrx nic`: NICs that hwrx drives itself: list them, take them from the kernel and give them back, look at them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click
import msgspec
from rich.table import Table

from hwrx.commands.shared.numbers import LONG, real_number, whole_number
from hwrx.host import disk, strict_json, undo
from hwrx.host.console import open_console
from hwrx.nic import Access, Driver, pci
from hwrx.nic import open_nic as open_nic
from hwrx.nic.driver import Options
from hwrx.nic.pcapng import Writer
from hwrx.nic.summary import summarise_frame

if TYPE_CHECKING:
    from typing_extensions import Buffer


access_option = click.option(
    "--access",
    type=click.Choice(["auto", "vfio", "uio"]),
    default="auto",
    help="vfio needs an IOMMU; uio needs root and huge pages. By default vfio where there is an IOMMU.",
)
force_option = click.option(
    "--force", is_flag=True, help="Take it although it carries the default route, an address or a connection."
)


@click.group()
def nic() -> None:
    """NICs that hwrx drives itself, from user space.

    A NIC that hwrx drives is taken from the kernel: its network device disappears until the NIC is given back.
    """


@nic.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the NICs on the PCI bus: who drives them, and what speaks against taking them."""
    found = [(one, pci.uses_of(one)) for one in pci.list_nics()]
    if as_json:
        rows = [
            {**msgspec.to_builtins(one), "model": one.model, "supported": one.supported, "uses": uses}
            for one, uses in found
        ]
        click.echo(strict_json.to_json(rows, indent=2))
        return
    table = Table(box=None)
    for column in ("address", "model", "driver", "netdev", "MAC", "IOMMU group", "in use"):
        table.add_column(column)
    for one, uses in found:
        netdev = one.netdev or (f"was {one.was}" if one.was else "–")
        table.add_row(
            one.address,
            one.model if one.supported else f"{one.model} (no driver here)",
            one.driver or "–",
            netdev,
            one.mac or "–",
            one.group or "none",
            "; ".join(uses) or "no",
        )
    open_console().print(table)


@nic.command()
@click.argument("name", metavar="NIC")
@access_option
@force_option
def bind(name: str, access: str, force: bool) -> None:
    """Take NIC (PCI address, network device or MAC) from the kernel, for hwrx or another user-space driver.

    Refuses one that carries the default route, an address or an open connection. `hwrx nic unbind` gives it back.
    """
    undo.mend_leftovers()
    one = pci.find_nic(name)
    if access == "auto":
        access = "vfio" if one.group is not None else "uio"
    bound = pci.take_nic(one, pci.DRIVER_OF[access], force=force)
    click.echo(f"{bound.address} is bound to {bound.driver}; `hwrx nic unbind {bound.address}` gives it back")


@nic.command()
@click.argument("name", metavar="NIC")
def unbind(name: str) -> None:
    """Give NIC back to the driver it had, with its name, addresses and state; also after hwrx was killed."""
    one = pci.give_back(pci.find_nic(name).address)
    click.echo(f"{one.address} is driven by {one.driver or 'nobody'}{f' as {one.netdev}' if one.netdev else ''}")


@nic.command()
@click.argument("name", metavar="NIC")
@access_option
@force_option
@click.option("--packets", type=whole_number(0, 2**31 - 1), default=0, help="Receive so many first, and hold them.")
@click.option("--timeout", type=real_number(0, LONG), default=5.0, help="Seconds to wait for them.")
def dump(name: str, access: Access, force: bool, packets: int, timeout: float) -> None:
    """Bring NIC up and print its registers and rings, fields decoded, and the counters that are not 0."""
    with _opened(name, access, force, promiscuous=True) as one:
        held = 0
        deadline = time.monotonic() + timeout
        while held < packets and time.monotonic() < deadline:
            one.rx.wait_for(max(0.0, min(0.1, deadline - time.monotonic())))
            held += len(one.rx.receive(min(256, packets - held)))
        for line in one.dump():
            click.echo(line)
        for counter, value in one.statistics().items():
            if value:
                click.echo(f"{counter:<9}{value:>12}")
        one.rx.release(held)


@nic.command()
@click.argument("name", metavar="NIC")
@access_option
@force_option
@click.option("-n", "--count", type=whole_number(1, 2**63 - 1), help="End after so many packets.")
@click.option("--timeout", type=real_number(0, LONG), help="End after so many seconds without a packet.")
@click.option("-w", "--write", type=click.Path(path_type=Path), help="Write pcapng instead of printing.")
@click.option(
    "-s", "--snap", type=whole_number(0, 1 << 18), default=0, help="Write at most so many bytes of each packet."
)
@click.option("--own", is_flag=True, help="Only frames to the NIC's own address and broadcasts.")
@click.option("--wait", type=click.Choice(["poll", "event"]), default="event", help="Wait by interrupt or by looking.")
def recv(
    name: str,
    access: Access,
    force: bool,
    count: int | None,
    timeout: float | None,
    write: Path | None,
    snap: int,
    own: bool,
    wait: str,
) -> None:
    """Receive packets with hwrx's own driver, and print a line for each, or write them to a file.

    \b
    Examples:
      hwrx nic recv 00:04.0
      hwrx nic recv eth1 -w packets.pcapng -n 1000
    """
    if write is not None:  # before the NIC is taken
        disk.check_target(write)
    interrupt: Literal["auto"] | None = "auto" if wait == "event" else None
    with _opened(name, access, force, promiscuous=not own, interrupt=interrupt) as one:
        click.echo(f"{one.device.address} {one.mac}, link {one.link or 'down'} Mb/s", err=True)
        taken = 0
        with _sink(write, one, snap) as sink:
            for packet in one.receive(timeout=timeout):
                sink(packet.data.data, time.time_ns())
                taken += 1
                if taken == count:
                    break
        seen = one.traffic()
        click.echo(f"{taken} packets, {seen.missed + seen.no_buffer} lost in the NIC", err=True)


@contextlib.contextmanager
def _opened(name: str, access: Access, force: bool, **options: Unpack[Options]) -> Iterator[Driver]:
    with open_nic(name, access=access, force=force, **options) as one:
        yield one


@contextlib.contextmanager
def _sink(write: Path | None, one: Driver, snap: int) -> Iterator[Callable[[Buffer, int], None]]:
    """What takes each packet and its time: a file, or standard output."""
    if write is None:

        def show(frame: Buffer, at: int) -> None:
            seconds, nanoseconds = divmod(at, 1_000_000_000)
            click.echo(
                f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{nanoseconds:09} {summarise_frame(frame)}"
            )

        yield show
        return

    with write.open("wb") as out:
        writer = Writer(out, one.device.address, snap=snap)
        yield writer.packet
        seen = one.traffic()
        writer.statistics(seen.received, seen.missed, time.time_ns())
