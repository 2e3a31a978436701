"""`hwrx flood`: what happens when many packets arrive at once, or more than a machine takes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import click
import msgspec

from hwrx import paths
from hwrx.commands.shared.display import Display
from hwrx.commands.shared.floods import report_flood
from hwrx.commands.shared.numbers import BYTES, CPUS, real_number, whole_number
from hwrx.commands.shared.output import hostnames_option
from hwrx.errors import StandstillError, UsageError
from hwrx.flood import keep, scene
from hwrx.flood.model import PATHS, Spec
from hwrx.host import disk
from hwrx.lab.vm import Guest
from hwrx.machine import description
from hwrx.runs.testbed import GuestBed
from hwrx.wires import topology
from hwrx.wires.topology import ON_ONE_KERNEL

if TYPE_CHECKING:
    from hwrx.flood.model import Flood
    from hwrx.flood.scene import Made

Say = Callable[[str, str], None]
# seconds that a guest's flood may say nothing: an emulated CPU sends some ten thousand messages a second
SILENCE = 180.0


class FloodOptions(TypedDict):
    """What the command line says of floods, as it says it: `specs_of` makes them of it."""

    burst: int | None
    sustained: float | None
    rate: str | None
    rps: str
    work: float
    size: int
    sockets: int
    batch: int
    receive_buffer: int | None
    read: str
    receives: int | None
    completions: int | None
    send_cpu: int | None
    read_cpu: int | None
    topology: str | None


@click.command()
@click.argument("target", metavar="PATH|RUN")
@click.option("--burst", type=whole_number(1, 2**31 - 1), help="So many messages at once [100000].")
@click.option("--sustained", type=real_number(0.001, 600), help="For so many seconds, instead.")
@click.option("--rate", help="Messages a second, or max; several, with commas, make a curve [max].")
@click.option("--size", type=whole_number(16, 65507), default=64, show_default=True, help="Bytes of a message.")
@click.option(
    "--sockets",
    type=whole_number(1, 16),
    default=1,
    show_default=True,
    help="udp, tcp: receiving sockets, a thread each.",
)
@click.option("--batch", type=whole_number(1, 256), default=64, show_default=True, help="Most messages of one post.")
@click.option(
    "--receive-buffer", type=whole_number(1, BYTES - 1), help="udp, tcp: SO_RCVBUF in bytes [the kernel's default]."
)
@click.option("--read", type=click.Choice(["always", "after"]), default="always", help="after: when all is sent.")
@click.option(
    "--work", type=real_number(0, 1e6), default=0.0, help="Microseconds of the reader's own work with each message [0]."
)
@click.option(
    "--receives",
    type=whole_number(1, 2**31 - 1),
    help="rdma-send, rdma-ud: receive requests kept posted [512]; rdma-write: slots of memory [4096].",
)
@click.option(
    "--completions",
    type=whole_number(1, 2**31 - 1),
    help="rdma-send, rdma-ud: entries of the receiver's completion queue [enough].",
)
@click.option("--rps", type=click.Choice(["off", "on", "both"]), default="off", help="Protocol work on another CPU.")
@click.option("--send-cpu", type=whole_number(0, CPUS), help="CPU of the sender [the last].")
@click.option("--read-cpu", type=whole_number(0, CPUS), help="CPU of the readers [the first].")
@click.option("--topology", type=click.Choice(list(ON_ONE_KERNEL)), help="What lies between [what PATH needs].")
@click.option("--here", is_flag=True, help="On this machine's own kernel, also where PATH has a guest for it.")
@click.option("--guest", is_flag=True, help="In a virtual machine.")
@click.option("--kernel", help="Kernel of the guest, for example 6.12.")
@click.option("--out", type=click.Path(path_type=pathlib.Path, file_okay=False), default=pathlib.Path("runs"),
              help="Where run directories go [runs].")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@hostnames_option
def flood(
    target: str,
    here: bool,
    guest: bool,
    kernel: str | None,
    out: pathlib.Path,
    as_json: bool,
    hostnames: bool,
    **options: Unpack[FloodOptions],
) -> None:
    """Flood PATH (udp, tcp, packet-ring, xdp, nic-ring, rdma-send, rdma-ud, rdma-write), or show a RUN directory again.

    Says how many packets an interrupt, a poll and a run of net_rx_action bring, who runs it, whose each CPU's time is
    (all of it), how long the queues get, where loss begins, how fair sockets are served. Needs root. Exit code 1:
    something was lost that no place explains.

    \b
    What a receiver without room does, over verbs:
      rdma-send   says so (RNR NAK): the sender waits and sends again, and its send queue fills up
      rdma-ud     drops the datagram and says nothing: the place no-receive
      rdma-write  has no say: it sees memory, where later messages are written over earlier ones (overwritten)

    \b
    Examples:
      hwrx flood udp
      hwrx flood udp --rps both --burst 100000 --guest
      hwrx flood udp --sustained 2 --rate 20000,50000,100000,max
      hwrx flood udp --topology nic
      hwrx flood udp --topology queues --sockets 8
      hwrx flood rdma-send --work 50 --receives 64
      hwrx flood rdma-ud --work 50 --receives 64
      hwrx flood rdma-write --read after --receives 256
      hwrx flood runs/latest
    """
    if target not in PATHS and (os.sep in target or pathlib.Path(target).exists()):
        directory = pathlib.Path(target).resolve()
        report_flood(directory, as_json=as_json, hostnames=hostnames)
        return
    specs = specs_of(target, **options)
    if here and (guest or kernel):
        raise UsageError("--here is this machine's kernel, --guest another one", remedy="give one of them")
    directory, floods = run_floods(specs, "here" if here else "guest" if guest or kernel else None, kernel, out)
    report_flood(directory, as_json=as_json, hostnames=hostnames)
    if any(each.loss.unexplained for each in floods):
        sys.exit(1)


def specs_of(
    path: str,
    *,
    burst: int | None,
    sustained: float | None,
    rate: str | None,
    rps: str,
    work: float,
    **same: object,
) -> list[Spec]:
    """Return the floods that the options describe: one for each rate, with RPS off and on where both are wanted."""
    if burst is not None and sustained is not None:
        raise UsageError("a flood is a burst, or sustained", remedy="give one of --burst and --sustained")
    rates = [_rate(word) for word in (rate or "max").split(",")]
    specs: list[Spec] = []
    for steered in {"off": (False,), "on": (True,), "both": (False, True)}[rps]:
        for each in rates:
            content = {
                "path": path, "seconds": sustained, "rate": each, "rps": steered, "work": work / 1e6,
                "burst": None if sustained else burst or 100_000, "trial": len(specs) + 1, **same,
            }  # fmt: skip
            try:
                specs.append(msgspec.convert(content, Spec))
            except msgspec.ValidationError as error:
                said = str(error).replace("`", "").replace("$.", "--").replace("_", "-")
                raise UsageError(f"there is no such flood: {said}") from None
    scene.check_words(specs)
    return specs


def _rate(word: str) -> float | None:
    if word.strip() == "max":
        return None
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"'{word}' is no rate", remedy="messages a second, or max: --rate 10000,50000,max") from None


# --- making them ------------------------------------------------------------------------------------------------------


def run_floods(
    specs: list[Spec], where: Literal["here", "guest"] | None, kernel: str | None, out: pathlib.Path
) -> tuple[pathlib.Path, list[Flood]]:
    """Make the floods, and write the run directory; return it and what was found."""
    disk.check_place(out, 1 << 20)
    if where is None:
        name = specs[0].topology or paths.default_topology(specs[0].path)
        inside = os.environ.get("HWRX_IN_GUEST") == "1"
        where = "guest" if topology.find_topology(name).where == "guest" and not inside else "here"
    with Display() as display:
        maker = in_guest(specs, kernel, display.stage) if where == "guest" else on_host(specs, display.stage)
        with maker as (manifest, floods), keep.create_run(out, specs, manifest) as writer:
            found: list[Flood] = []
            for number, each in enumerate(floods):
                keep.add_flood(writer, number, each.flood, each.sent, each.taken)
                found.append(each.flood)
                keep.finish_run(writer, found)
    return writer.path, found


@contextlib.contextmanager
def on_host(specs: list[Spec], say: Say) -> Iterator[tuple[dict[str, Any], Iterator[Made]]]:
    """Make the floods on this kernel: the manifest, and one after the other."""
    for spec in specs:
        scene.check_spec(spec)
    with scene.flood_wire(specs[0]) as bed:
        manifest = {"emulated": False, "wire": bed.wire, "machine": description.describe_machine()}
        yield manifest, (scene.made_wire(spec, bed, lambda text: say("flood", text)) for spec in specs)


@contextlib.contextmanager
def in_guest(specs: list[Spec], kernel: str | None, say: Say) -> Iterator[tuple[dict[str, Any], Iterator[Made]]]:
    """The same in a virtual machine, which prints each flood as a line."""
    name = specs[0].topology or paths.default_topology(specs[0].path)
    with Guest(name, kernel=kernel, progress=say) as machine:
        yield GuestBed(machine).manifest(), _floods(machine, specs, say)


def _floods(machine: Guest, specs: list[Spec], say: Say) -> Iterator[Made]:
    made = 0
    try:
        for flood in _floods_once(machine, specs, say):
            made += 1
            yield flood
    except StandstillError as error:
        machine.boot_again(error)
        yield from _floods_once(machine, specs[made:], say)


def _floods_once(machine: Guest, specs: list[Spec], say: Say) -> Iterator[Made]:
    for line in machine.lines("hwrx.flood.inside", msgspec.json.encode(specs), silence=SILENCE, who="the flood"):
        if line.startswith(b"say "):
            say("flood", line[4:].decode(errors="replace"))
        else:
            yield keep.unpack_flood(line)


# --- telling ----------------------------------------------------------------------------------------------------------
