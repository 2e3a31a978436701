"""`hwrx stages`: the catalogue, and what this kernel allows of it. `hwrx export`: timelines for other programs."""

from __future__ import annotations

import pathlib
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from hwrx import paths
from hwrx import stages as catalogue
from hwrx.commands.shared.numbers import whole_number
from hwrx.errors import MachineError, UsageError
from hwrx.host import disk, strict_json
from hwrx.host.console import open_console


@click.command()
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
@click.option("--no-probe", is_flag=True, help="Only the catalogue: do not ask this kernel.")
def stages(path: str | None, as_json: bool, no_probe: bool) -> None:
    """List the stages that a message passes, in packet order, and what this kernel allows to be stamped.

    \b
    Example:
      hwrx stages udp
      hwrx stages rdma-send --json
    """
    if path is not None and path not in _known():
        known = sorted(_known())
        raise UsageError(f"the catalogue has no path '{path}'", remedy=f"choose of: {', '.join(known)}")
    chosen = catalogue.way_stages(_known()[path]) if path else list(catalogue.STAGES)
    states, problem = ({}, "") if no_probe else _ask(path)
    rows = [_row(stage, states) for stage in chosen]
    if as_json:
        click.echo(strict_json.to_json({"path": path, "problem": problem, "stages": rows}, indent=2))
        return
    _print(rows, path, problem, asked=not no_probe and not problem)


def _known() -> dict[str, str]:
    """The ways of the catalogue by the names that the user gives: paths', and those of the ways that no path goes."""
    ways = {path.name: path.way for path in paths.PATHS.values()}
    others = set().union(*(stage.ways for stage in catalogue.STAGES)) - set(ways.values())
    return ways | {way: way for way in others}


def _ask(path: str | None) -> tuple[dict[str, Any], str]:
    """What became of each stage here, by name; or why nothing can be said."""
    # libbpf and BTF are for who asks this kernel: a list of stages starts without
    from hwrx.probes.recording import Ledger

    try:
        with Ledger(None if path is None else [_known()[path]]) as ledger:
            return {found.stage.name: found for found in ledger.found}, ""
    except MachineError as error:
        return {}, str(error)


def _row(stage: catalogue.Stage, states: dict[str, Any]) -> dict[str, Any]:
    found = states.get(stage.name)
    probe = found.probe if found else None
    return {
        "number": stage.number,
        "name": stage.name,
        "sentence": stage.sentence,
        "side": stage.side,
        "actor": stage.actor,
        "paths": sorted(name for name, way in _known().items() if way in stage.ways),
        "unless": stage.unless,
        "in_chain": stage.chain,
        "handles": stage.handles,
        "probes": [{"kind": p.kind, "target": p.target, "stand_in": p.stand_in} for p in stage.probes],
        "available": None if found is None else probe is not None,
        "probe": None if probe is None else f"{probe.kind} {probe.target}",
        "stand_in": probe.stand_in if probe else "",
        "reason": found.reason if found else "",
    }


def _print(rows: list[dict[str, Any]], path: str | None, problem: str, *, asked: bool) -> None:
    console = open_console()
    table = Table(title=f"stages of {path}" if path else "stages of every path", header_style="bold", expand=True)
    for heading in ("stage", "side", "actor", "what happens"):
        table.add_column(heading, no_wrap=heading == "stage")
    table.add_column("here" if asked else "probes, best first")
    side = None
    for row in rows:
        if side is not None and row["side"] != side:
            table.add_section()
        side = row["side"]
        happens = Text(row["sentence"]).append(f" (not if {row['unless']})" if row["unless"] else "", "dim")
        if row["available"]:
            state = Text(row["probe"], "green").append(f" ({row['stand_in']})" if row["stand_in"] else "", "default")
        elif asked:
            state = Text("unavailable", "yellow").append(f": {row['reason']}", "default")
        else:
            state = Text("\n".join(f"{p['kind']} {p['target']}" for p in row["probes"]) or "none")
        table.add_row(row["name"], row["side"], row["actor"], happens, state)
    console.print(table)
    if problem:
        console.print(f"This machine was not asked: {problem}")


@click.command()
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--perfetto", is_flag=True, required=True, help="Timelines for ui.perfetto.dev.")
@click.option(
    "--out", type=click.Path(path_type=pathlib.Path, dir_okay=False), help="File [timelines.json in the run]."
)
@click.option(
    "--messages",
    type=whole_number(1, 10**7),
    default=200,
    show_default=True,
    help="Most messages of a trial and direction.",
)
def export(run: pathlib.Path, perfetto: bool, out: pathlib.Path | None, messages: int) -> None:
    """Write the timelines of a traced RUN, or of one whose messages were taken apart, in another program's format.

    \b
    Example:
      hwrx export --perfetto runs/latest
    """
    # a list of stages starts without Arrow
    from hwrx.report.journeys import exact_messages
    from hwrx.report.published import open_published
    from hwrx.timelines import perfetto as format_

    found = open_published(run)
    path = out or found.path / "timelines.json"
    disk.check_target(path)
    count = format_.export_timelines(found, path, messages, exact_messages(found))
    click.echo(f"{path}: {count:,} messages; open it at ui.perfetto.dev")
