"""`hwrx anatomy`: each instruction of a message, by layer and function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.table import Table

from hwrx import paths
from hwrx.anatomy.dissect import dissect_paths
from hwrx.anatomy.flame import draw_charts
from hwrx.anatomy.stacks import fold_pieces
from hwrx.commands.shared.numbers import BYTES, whole_number
from hwrx.commands.shared.options import Many, machine_options
from hwrx.host import disk, strict_json
from hwrx.host.console import OutsideConsole, open_console
from hwrx.report import machine_costs
from hwrx.report.moved import moved_parts
from hwrx.runs import experiment as experiments
from hwrx.wires.topology import WITH_IOMMU

if TYPE_CHECKING:
    from hwrx.anatomy.model import Dissection, Handling, MachineEvents

TCG_PRICES = (
    "the emulator counts REP MOVS as an instruction a byte, a price and not a measurement; --copies-priced byte,word"
    " is the cross-check, by a processor without ERMS and FSRM"
)
SHOWN_HITS = 8  # messages that are named
_HUGE = {"off": False, "on": True}


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="PATH...")
@click.option("--size", type=whole_number(8, BYTES), default=64, show_default=True, help="Bytes of the message.")
@click.option(
    "--messages", type=whole_number(10, 10**4), default=200, show_default=True, help="Messages that are taken apart."
)
@click.option("--topology", help="What lies between the two ends [netns for sockets, else pair].")
@click.option("--kernel", help="Kernel of the guest, for example 6.1.")
@machine_options
@click.option("--huge-pages", type=Many(str, "off,on"), help="Buffers in huge pages, or not.")
@click.option("--copies", is_flag=True, help="Follow each byte of a message by its physical address, too.")
@click.option("--stages", is_flag=True, help="Show the stages that a message passes, each to the instruction.")
@click.option("--functions", type=whole_number(0, 10**4), default=25, show_default=True, help="Rows for each path.")
@click.option("--svg", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Where flame charts go.")
@click.option("--folded", type=click.Path(path_type=Path, dir_okay=False), help="Where stacks go, for other tools.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON: all functions, all states.")
def anatomy(
    names: tuple[str, ...],
    size: int,
    messages: int,
    topology: str | None,
    kernel: str | None,
    copies: bool,
    stages: bool,
    functions: int,
    picture: Path | None,
    folded: Path | None,
    as_json: bool,
    **machine: list[str] | list[int] | None,
) -> None:
    """Show what a message of PATH is made of: its instructions, by layer and by function, exactly.

    A guest is emulated, and its emulator writes down what the processor executes between the two readings of the
    clock. Several paths stand side by side. The guest does not notice: its figures are those of `hwrx compare`.
    Of several values of --iommu, --mitigations, --init-on-alloc, --copies-priced or --huge-pages each has a guest,
    and what the others add to the first is said by function.

    \b
    Examples:
      hwrx anatomy udp
      hwrx anatomy udp tcp rdma-send --topology pair --size 1024
      hwrx anatomy udp rdma-send --svg flames.svg
      hwrx anatomy rdma-send roce-send --topology nic --copies
      hwrx anatomy udp tcp --stages --functions 0
      hwrx anatomy udp --topology nic --iommu off,passthrough,lazy,strict
      hwrx anatomy udp --folded udp.folded --json > udp.json
    """
    for target in (picture, folded):
        if target is not None:
            disk.check_target(target)
    verbs = [name for name in names if paths.find_path(name).needs == "verbs"]
    default = WITH_IOMMU[0] if machine["iommu"] else paths.default_topology((verbs or names)[0])
    single, swept = experiments.split_axes(machine)
    huge = [_HUGE.get(word, word) for word in single.pop("huge_pages") or ()]
    plan = experiments.from_options(
        name="anatomy",
        paths=list(dict.fromkeys(names)),
        sizes=[size],
        messages=messages,
        topology=topology or default,
        kernel=kernel,
        clock="icount",
        repeats=1,
        sweep={**swept, **({"huge_pages": huge} if huge else {})} or None,
        **single,
    )
    found = dissect_paths(plan, _quiet if as_json else _aloud, copies=copies)
    if picture is not None:
        _draw(found, picture)
    if folded is not None:
        folded.write_text("".join(fold_pieces(one.path, one.pieces) for one in found), encoding="utf-8")
    if as_json:
        click.echo(strict_json.to_json(msgspec.to_builtins(found), indent=2))
        return
    console = open_console(piped=120)
    console.print("instructions of half a round trip")
    console.print(_layers(found))
    console.print(f"  {TCG_PRICES}", soft_wrap=True)
    if copies:
        _print_copies(console, found)
    if stages:
        for one in found:
            _print_stages(console, one)
    for one in found:
        console.print()
        _print_path(console, one, functions)
    for added in machine_costs.added_by_machine(found):
        console.print()
        _print_added(console, added, functions)


def _aloud(stage: str, text: str) -> None:
    click.echo(f"{stage}: {text}", err=True)


def _quiet(stage: str, text: str) -> None:
    """Say nothing: standard output is for JSON, and nobody waits at a terminal."""


def _draw(found: list[Dissection], picture: Path) -> None:
    """Flame charts of all; and beside them, named after what the machine has, one of what that adds."""
    charts = [(f"{one.path}, {one.size:,} B{_axes(one)}: a message and its answer", one.pieces) for one in found]
    picture.write_text(draw_charts(charts), encoding="utf-8")
    for added in machine_costs.added_by_machine(found):
        name = f"{picture.stem}-{added.after.path}-{added.words.replace(' ', '-')}{picture.suffix}"
        picture.with_name(name).write_text(machine_costs.difference_of(added), encoding="utf-8")


def _axes(one: Dissection) -> str:
    """What its machine has of what is compared."""
    return "".join(f" {word}" for word in one.label.split() if word.split("=")[0] in machine_costs.AXES)


def _print_added(console: OutsideConsole, added: machine_costs.Added, functions: int) -> None:
    table = Table(title=f"what the machine adds: {added.title}", title_justify="left", header_style="bold")
    table.add_column("more", justify="right")
    for column in ("function", "of", "layer"):
        table.add_column(column)
    for each in moved_parts(added.before, added.after)[: functions or machine_costs.SHOWN]:
        table.add_row(f"{each.after - each.before:+,.0f}", each.function, each.of, each.layer)
    console.print(table)


def _layers(found: list[Dissection]) -> Table:
    """Instructions by layer, the paths side by side."""
    table = Table(header_style="bold")
    table.add_column("layer")
    for one in found:
        table.add_column(one.path + (" (whole)" if one.whole else "") + _axes(one), justify="right")
    layers = dict.fromkeys(layer for one in sorted(found, key=lambda one: -len(one.layers)) for layer in one.layers)
    for layer in sorted(layers, key=lambda layer: -max(one.layers.get(layer, 0.0) for one in found)):
        table.add_row(layer, *(_number(one.layers.get(layer, 0.0)) for one in found))
    table.add_section()
    table.add_row("all", *(_number(one.instructions) for one in found), style="bold")
    return table


def _print_stages(console: OutsideConsole, one: Dissection) -> None:
    """The stages of a message on its way there, and beside them those of its answer."""
    back = {stamp.stage: stamp for stamp in one.stamps if stamp.direction == "back"}
    table = Table(
        title=f"{one.path}, {one.size:,} B{_axes(one)}: stages of one message",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("stage")
    for column in ("since the one before", "since posted", "of the answer"):
        table.add_column(column, justify="right")
    for stamp in one.stamps:
        if stamp.direction == "there":
            answer = f"{back[stamp.stage].since:,}" if stamp.stage in back else ""
            table.add_row(stamp.stage, f"{stamp.since:,}", f"{stamp.at:,}", answer)
    console.print()
    console.print(table)


def _print_copies(console: OutsideConsole, found: list[Dissection]) -> None:
    table = Table(
        title="copies and passes of each byte of payload, sender + receiver, by physical address",
        title_justify="left",
        header_style="bold",
    )
    for column, justify in (("path", "left"), ("copies", "right"), ("passes", "right"), ("by", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    said = []
    for one in found:
        if one.copies is None:
            table.add_row(one.path + _axes(one), "", "", "no message was seen to be filled and verified")
            continue
        copies = one.copies
        table.add_row(
            one.path + _axes(one),
            f"{copies.sender:.3g} + {copies.receiver:.3g}",
            f"{copies.sender_passes:.3g} + {copies.receiver_passes:.3g}",
            "\n".join(_handling_words(each) for each in copies.handled),
        )
        landed = f", {100 * copies.landed:.3g} % of it brought by a device" if copies.landed else ""
        said.append(
            f"{one.path}{_axes(one)}: each byte told from where it came in {copies.in_place} of {copies.messages}"
            f" messages, {copies.alike} of them alike{landed}"
        )
    console.print()
    console.print(table)
    for line in said:
        console.print(f"  {line}", soft_wrap=True)


def _handling_words(each: Handling) -> str:
    parts = [(each.copied, "copied"), (each.passed, "read")]
    done = ", ".join(f"{share:.2g} {word}" for share, word in parts if share)
    return f"{each.side}: {each.function} {each.of if each.of != 'vmlinux' else ''}".rstrip() + f" {done}"


def _print_path(console: OutsideConsole, one: Dissection, functions: int) -> None:
    most = max((state.messages for state in one.states), default=0)
    size, instructions = f"{one.size:,} B", _number(one.instructions)
    table = Table(
        title=f"{one.path}, {size}{_axes(one)}: {instructions} instructions in {most} of {one.messages} messages",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("instructions", justify="right")
    table.add_column("share", justify="right")
    table.add_column("function")
    table.add_column("of")
    table.add_column("layer")
    for part in one.parts[:functions]:
        share = f"{100 * part.instructions / one.instructions:.1f} %"
        table.add_row(_number(part.instructions), share, part.function, part.of, part.layer)
    if functions:
        console.print(table)
    if rest := one.parts[functions:]:
        console.print(
            f"  and {len(rest)} more functions with {_number(sum(part.instructions for part in rest))} (--functions)"
        )
    for line in _words(one):
        console.print(f"  {line}", soft_wrap=True)


def _words(one: Dissection) -> list[str]:
    """What is to be known of the figures: whether they are right, and what other messages were like."""
    said = [
        f"the sum is what the guest's clock says in {one.exact} of the {one.awake} messages in which the processor did"
        f" not stop; {100 * one.named:.2f} % of it is named, {100 * one.layered:.2f} % is in a layer"
    ]
    if one.halted:
        said.append(
            f"in {one.messages - one.awake} messages the processor stopped and waited: {one.halted:,.0f} ns on average"
            + (f", and in {one.beyond} of them the sum was more than the clock says" if one.beyond else "")
        )
    if one.unmatched:
        said.append(f"{one.unmatched} returns in {one.calls} calls are from what was not seen called")
    if one.lost:
        missing = f"the last {one.unseen:,} messages are" if one.unseen else "what other messages are made of is"
        said.append(f"the plugin's file was full, and {missing} not here: take fewer (--messages)")
    for state in one.states[1:4]:
        came = [f"{handler} came" for handler in state.interrupts]
        moved = ", ".join([*came, *(f"{part.function} {part.instructions:+,.0f}" for part in state.moved[:3])])
        said.append(f"{state.messages} messages had {_number(state.instructions)}: {moved or 'in another order'}")
    return [*said, *(_machine_words(one.machine, one.messages) if one.machine else [])]


def _machine_words(machine: MachineEvents, messages: int) -> list[str]:
    """What of the machine the messages met, of each message and its answer."""
    said = [f"of a message and its answer: {machine.cr3_loads:.3g} loads of CR3, {machine.ports:.3g} accesses to ports"]
    for each in machine.interrupts:
        vector = f"vector {each.vector:#x}, " if each.vector is not None else ""
        hit = sorted(set(each.messages))
        which = (
            f"messages {', '.join(map(str, hit))}" if len(hit) <= SHOWN_HITS else f"{len(hit)} of {messages} messages"
        )
        said.append(f"interrupted by {vector}{each.handler}: {_times(len(each.messages))}, in {which}")
    for touched in machine.touched:
        did = "stored to" if touched.store else "loaded from"
        where = f"{touched.address:#x} ({touched.device})"
        said.append(f"{did} {where} by {touched.function}: {_times(touched.times)}")
    return said


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:,.3g} times"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
