"""`hwrx walk`: the journey of one message, as a table and a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table

from hwrx.campaign.walking import MESSAGES, describe_walk, walk_paths
from hwrx.commands.shared.numbers import BYTES, whole_number
from hwrx.commands.shared.output import print_json
from hwrx.commands.shared.reception import print_reception
from hwrx.errors import UsageError
from hwrx.host import disk, strict_json
from hwrx.host.console import OutsideConsole, open_console
from hwrx.reception import run
from hwrx.reception.picture import draw_reception
from hwrx.reception.scene import Request
from hwrx.runs import experiment as experiments
from hwrx.runs import testbed
from hwrx.timelines.walk import memory_words, on_stamps, walk_picture
from hwrx.wires.topology import NETDEVS, Topology, find_topology

if TYPE_CHECKING:
    from hwrx.timelines.exact import Exact
    from hwrx.timelines.walk import Journey

DISSECTED = 50  # messages, of which the commonest state is shown


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="PATH [PATH2]")
@click.option("--size", type=whole_number(0, BYTES), default=64, show_default=True, help="Bytes of the message.")
@click.option(
    "--messages",
    type=whole_number(1, 10**6),
    default=MESSAGES,
    show_default=True,
    help="Messages of the trial that the one is taken from.",
)
@click.option("--wait", default="event", show_default=True, help="How the reader waits; WRITE always polls.")
@click.option("--topology", help="What lies between the two ends [netns for sockets, else pair].")
@click.option("--full", is_flag=True, help="Every step from the NIC to the reader, of one datagram [udp, over nic].")
@click.option("--tap", is_flag=True, help="With --full: a packet socket listens, as tcpdump does.")
@click.option("--pio", is_flag=True, help="With --full: over NE2000s, whose frames the CPU carries.")
@click.option("--rewrite", is_flag=True, help="With --full: the router gives the packet another destination (DNAT).")
@click.option("--quiet", is_flag=True, help="With --full: no other program has the CPU when the packet comes.")
@click.option("--here", is_flag=True, help="Use this machine's own kernel and devices, no virtual machine.")
@click.option("--kernel", help="Kernel of the guest, for example 6.1.")
@click.option("--anatomy", is_flag=True, help="Stages to the instruction, by a guest more whose emulator watches.")
@click.option("--svg", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Where the picture goes.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def walk(
    names: tuple[str, ...],
    size: int,
    messages: int,
    wait: str,
    topology: str | None,
    full: bool,
    tap: bool,
    pio: bool,
    rewrite: bool,
    quiet: bool,
    here: bool,
    kernel: str | None,
    anatomy: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Follow one message of PATH from post to delivery; two paths stand side by side.

    With --full it is one datagram, and what is told is its reception in every step: the frame's bytes, the DMA address,
    the descriptor, the interrupt and the task that it stopped, the handler, the softirq, the skb, the socket with its
    port, descriptor and PID, the wake-up, the page tables (CR3), the copy, and which task goes on. What this machine
    does not let be seen says so.

    \b
    Examples:
      hwrx walk udp
      hwrx walk udp rdma-write --svg walk.svg
      hwrx walk udp --anatomy
      hwrx walk udp --full --size 1400 --tap
      hwrx walk udp --full --topology router --rewrite
    """
    if anatomy and here:
        raise UsageError(
            "--anatomy is of an emulated guest: the emulator cannot see into this machine",
            remedy="leave out --anatomy or --here",
        )
    if anatomy and full:
        raise UsageError(
            "a walk in every step is of one packet that probes follow: it takes no --anatomy",
            remedy="leave out --anatomy or --full",
        )
    ways = {"--tap": tap, "--pio": pio, "--rewrite": rewrite, "--quiet": quiet}
    if full:
        _check_full(names, messages, wait)
        request = Request(topology or "nic", size, pio=pio, tap=tap, quiet=quiet, rewrite=rewrite)
        _walk_in_full(request, here, kernel, picture, as_json)
        return
    if any(ways.values()):
        given = next(name for name, is_set in ways.items() if is_set)
        raise UsageError(f"{given} is for the walk in every step", remedy=f"hwrx walk udp --full {given}")
    plan = describe_walk(names, size=size, messages=messages, topology=topology, kernel=kernel)
    picture = picture or (None if as_json else Path("walk.svg"))
    if picture is not None:
        disk.check_target(picture)
    say = _quiet if as_json else _aloud
    with testbed.opened_bed(plan, testbed.Wanted(here=here), say) as bed:
        journeys = walk_paths(plan, bed, wait=wait, say=say)
    if anatomy:
        exact = _dissected(plan, say)
        journeys = [
            on_stamps(journey, exact[journey.path]) if journey.path in exact else journey for journey in journeys
        ]
    if as_json:
        click.echo(strict_json.to_json([journey.as_json() for journey in journeys], indent=2))
    else:
        _print(journeys)
    if picture is not None:
        picture.write_text(walk_picture(journeys), encoding="utf-8")
        if not as_json:
            click.echo(f"picture: {picture}")


def _dissected(plan: experiments.Experiment, say: Callable[[str, str], None]) -> dict[str, Exact]:
    """Take messages of the walk's paths apart, and return the way there of each path that has stages."""
    # a decoder of instructions, which few walks want
    from hwrx.anatomy.dissect import dissect_paths
    from hwrx.report.journeys import exact_of

    counted = experiments.override_experiment(plan, clock="icount", messages=DISSECTED)
    return {one.path: one for each in dissect_paths(counted, say) for one in exact_of(each) if one.direction == "there"}


def _check_full(names: tuple[str, ...], messages: int, wait: str) -> None:
    """Raise UsageError for what a walk in full does not take."""
    if names != ("udp",):
        raise UsageError(
            f"a walk in every step follows a datagram through the kernel, not {', '.join(names)}",
            remedy="hwrx walk udp --full; hwrx walk PATH shows the stages of other paths",
        )
    if messages != MESSAGES or wait != "event":
        given = "--messages" if messages != MESSAGES else "--wait"
        raise UsageError(
            f"a walk in every step follows one packet to a reader that sleeps in recv: it takes no {given}",
            remedy=f"leave out {given} or --full",
        )


def _walk_in_full(request: Request, here: bool, kernel: str | None, picture: Path | None, as_json: bool) -> None:
    if here and kernel:
        raise UsageError("--kernel is for a guest, and --here is this machine", remedy="leave out one of them")
    if picture is not None:
        disk.check_target(picture)
    say = _quiet if as_json else _aloud
    lacks = _lacks_hardware(find_topology(request.topology))
    if here and lacks:
        raise UsageError(
            f"the topology {request.topology} needs a guest's NICs", remedy="leave out --here, or --topology router"
        )
    found = run.follow_here(request, say) if here else run.follow_in_guest(request, kernel, say)
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_reception(found)
    if picture is not None:
        picture.write_text(draw_reception(found), encoding="utf-8")
        if not as_json:
            click.echo(f"picture: {picture}")


def _lacks_hardware(topology: Topology) -> bool:
    """Whether a topology's NICs are not in this machine: they are told by their MAC addresses."""
    wanted = re.findall(r"mac=([0-9a-f:]+)", " ".join(topology.hardware))
    here = {path.read_text(encoding="utf-8").strip() for path in NETDEVS.glob("*/address")}
    return not here.issuperset(wanted)


def _aloud(stage: str, text: str) -> None:
    click.echo(f"{stage}: {text}", err=True)


def _quiet(stage: str, text: str) -> None:
    """Say nothing: standard output is for JSON, and nobody waits at a terminal."""


def _print(journeys: list[Journey]) -> None:

    console = open_console(piped=170)
    for journey in journeys:
        table = Table(
            title=f"{journey.path}, {journey.size:,} B: message {journey.sequence}, {journey.one_way / 1000:,.3f} µs",
            title_justify="left",
            header_style="bold",
        )
        for heading in ("stage", "probed at", "actor"):
            table.add_column(heading, no_wrap=heading == "stage", overflow="fold")
        for heading in ("CPU", "thread", "+ µs", "since posted"):
            table.add_column(heading, justify="right")
        table.add_column("payload")
        table.add_column("skb or buffer", overflow="fold")
        side, shown = journey.steps[0].side, ""
        for step in journey.steps:
            if step.side != side:
                table.add_section()
                side = step.side
            table.add_row(
                step.stage,
                step.function,
                step.actor,
                "" if step.cpu is None else str(step.cpu),
                "" if step.tid is None else str(step.tid),
                f"{step.ns / 1000:,.3f}",
                f"{step.at / 1000:,.3f}",
                f"{step.handles} {step.bytes:,} B" if step.handles else "",
                '"' if step.object and step.object == shown else step.object,
            )
            shown = step.object
        console.print(table)
        for line in memory_words(journey):
            console.print(f"  {line}", soft_wrap=True)
        console.print()
    if len(journeys) > 1:
        _compare(console, journeys)


def _compare(console: OutsideConsole, journeys: list[Journey]) -> None:
    """Print the paths side by side: how long, through how many hands, copied how often."""
    table = Table(title="side by side", title_justify="left", header_style="bold")
    for heading in ("path", "one way µs", "stages", "CPUs", "copies a byte, sender", "receiver", "whose hands"):
        table.add_column(heading, justify="left" if heading in ("path", "whose hands") else "right")
    for journey in journeys:
        ledger = journey.ledger
        hands = dict.fromkeys(step.actor for step in journey.steps)
        table.add_row(
            journey.path,
            f"{journey.one_way / 1000:,.3f}",
            str(len(journey.steps)),
            str(len({step.cpu for step in journey.steps} - {None})),
            "" if ledger is None else f"{ledger.sender:.3f}",
            "" if ledger is None else f"{ledger.receiver:.3f}",
            ", ".join(hands),
        )
    console.print(table)
