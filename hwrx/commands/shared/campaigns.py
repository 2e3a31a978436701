"""A campaign from its cells to the printed table, with its progress for the person who waits."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from hwrx.campaign import book as books
from hwrx.campaign import cells, driving, engines, matrix, matrix_text, measuring, slurm
from hwrx.campaign.book import Book
from hwrx.campaign.cells import Axes, Cell
from hwrx.commands.shared.display import Display
from hwrx.commands.shared.numbers import real_number, whole_number
from hwrx.errors import UsageError
from hwrx.host import disk, strict_json
from hwrx.host.console import open_console
from hwrx.report.headline import Headline
from hwrx.runs import experiment as experiments
from hwrx.runs.experiment import Experiment

FOLDER = Path("campaigns")


class Way(Struct, frozen=True, kw_only=True):
    """How a campaign is carried out: see the options of the same names."""

    out: Path | None
    jobs: int | None
    slurm: bool
    sbatch: tuple[str, ...]
    attempts: int
    retry: bool
    over: float
    dry_run: bool
    as_json: bool


over_option = click.option(
    "--over",
    type=real_number(0, 1000),
    default=matrix.OVER,
    show_default=True,
    help="Share by which a figure moves before it is said.",
)


def campaign_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options of `Way`."""
    options = [
        click.option(
            "--out",
            type=click.Path(path_type=Path, file_okay=False),
            help="The campaign's folder [campaigns/NAME]. If it holds this campaign, that goes on.",
        ),
        click.option("--jobs", type=whole_number(1, 1000), help="Cells at a time [as many as cores and memory allow]."),
        click.option("--slurm", is_flag=True, help="Cells are jobs of a Slurm cluster, which shares this folder."),
        click.option("--sbatch", multiple=True, metavar="WORDS", help="More words for sbatch: '--partition=lab'."),
        click.option("--attempts", type=whole_number(1, 20), default=driving.ATTEMPTS, help="Attempts of a cell."),
        click.option("--retry", is_flag=True, help="Attempt once more the cells that have failed."),
        over_option,
        click.option("--dry-run", is_flag=True, help="Say which cells there are, and which cannot run."),
        click.option("--json", "as_json", is_flag=True, help="Print the table as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_campaign(experiment: Experiment, axes: Axes, way: Way, source: str) -> None:
    """Carry a campaign out, or go on with it, and print its table.

    :raises HwrxError: if a cell failed, after the table.
    """
    if way.sbatch and not way.slurm:
        raise UsageError("--sbatch has words for a cluster, and the cells run on this machine", remedy="add --slurm")
    if axes.hosts and not way.slurm:
        raise UsageError(f"{source}: hosts are nodes of a cluster", remedy="add --slurm, or leave out hosts")
    planned = _plan_cells(experiment, axes, source)
    # the seed of an experiment without one is drawn: it tells no campaign from another
    asked = books.fingerprint(experiments.dump_experiment(experiment), axes)
    if way.dry_run:
        _print_plan(planned, way)
        return
    found = _open_book(way.out or FOLDER / experiment.name, experiment, axes, planned, asked)
    with found.driven(), Display() as display:
        able = driving.leave_out(found, measuring.settle_plan, display.stage)
        found.save()
        driving.need_some(found)
        engine = _engine(found, way, able)
        driving.drive_campaign(found, engine, display.cell, retry=way.retry, attempts=way.attempts)
        name_moved(found, engine, way.over, display)
    print_campaign(found, way.over, as_json=way.as_json)
    if error := driving.failures(found):
        raise error


def _open_book(path: Path, experiment: Experiment, axes: Axes, planned: list[Cell], asked: str) -> Book:
    if (path / books.MANIFEST).exists():
        found = Book.open(path)
        books.need_same(found, asked)
        return found
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{path} is not empty, and holds no campaign", remedy="--out ELSEWHERE")
    with disk.guarded_writes(path):
        path.mkdir(parents=True, exist_ok=True)
    return Book.create(
        path, name=experiment.name, question=experiment.question, asked=asked, axes=axes.names,
        anatomy=experiment.anatomy, cells=planned,
    )  # fmt: skip


def _plan_cells(experiment: Experiment, axes: Axes, source: str) -> list[Cell]:
    """Plan cells that are measured without an anatomy: it is made of what moves, when that is known."""
    return cells.plan_cells(msgspec.structs.replace(experiment, anatomy=False), axes, source)


def name_moved(found: Book, engine: engines.Engine, over: float, display: Display) -> None:
    """Take apart the messages of the figures that moved, if that is asked for and was not done."""
    if found.content.anatomy:
        wanted = matrix.to_take_apart(found, matrix.read_matrix(found, over).moved)
        if wanted:
            display.stage("anatomy", f"taking messages apart whose figure moved, in {len(wanted)} cells")
        driving.take_apart(found, engine, wanted, display.cell)


def _engine(found: Book, way: Way, able: list[driving.Able]) -> engines.Engine:
    counted = all(each.counted for each in able)  # those that count would be in the figures of one that measures time
    if way.slurm:
        words = [word for each in way.sbatch for word in shlex.split(each)]
        return slurm.Slurm(found.path, words, at_once=way.jobs, alone=not counted)
    guests = max((each.guests for each in able), default=1)
    return engines.Local(engines.cells_at_once(guests, counted=counted, wanted=way.jobs))


def _print_plan(planned: list[Cell], way: Way) -> None:
    listed = []
    with Display() as display:
        for cell in planned:
            settled = driving.plan_or_reason(cell, measuring.settle_plan, display.stage)
            listed.append((cell, settled if isinstance(settled, str) else ""))
    if way.as_json:
        plan = [{"cell": cell.name, "values": cell.values, "left_out": reason} for cell, reason in listed]
        click.echo(strict_json.to_json(plan, indent=2))
        return
    for cell, reason in listed:
        click.echo(f"{cell.number:4}  {cell.name}{f': left out: {reason}' if reason else ''}")
    able = sum(not reason for _, reason in listed)
    click.echo(f"{len(listed)} cells, {able} of which can run as far as that is known before anything is booted")


def open_search(experiment: Experiment, axes: Axes, out: Path | None, source: str) -> Book:
    """Open the folder of a search over kernels, a campaign of which only some cells will be carried out."""
    planned = _plan_cells(experiment, axes, source)
    asked = books.fingerprint(experiments.dump_experiment(experiment), axes)
    return _open_book(out or FOLDER / f"bisect-{experiment.name}", experiment, axes, planned, asked)


def measure_one(found: Book, place: int, display: Display) -> tuple[list[Headline], str]:
    """Carry out one cell of a campaign, if that was not done before; return its figures, or none and why."""
    standing = found.content.cells[place]
    display.stage("kernel", standing.cell.name)
    driving.drive_campaign(found, engines.Local(1), lambda done, total, line: None, only={standing.cell.number})
    result = found.result(standing)
    if standing.state != "done" or result is None:
        return [], standing.reason
    return result.figures, ""


def steps_of(found: Book, places: list[int], display: Display) -> list[matrix.Step]:
    """Return what moved from one cell to another, with its functions if an anatomy is asked for."""

    def steps() -> list[matrix.Step]:
        lines = matrix.read_matrix(found).lines
        return matrix.steps_between(found, lines[places[0]], lines[places[1]], matrix.OVER)

    if found.content.anatomy:
        driving.take_apart(found, engines.Local(1), matrix.to_take_apart(found, steps()), display.cell)
    return steps()


def print_campaign(found: Book, over: float, *, as_json: bool) -> None:
    """Print a campaign's table, or the same as JSON."""
    table = matrix.read_matrix(found, over)
    if as_json:
        click.echo(strict_json.to_json(msgspec.to_builtins(table), indent=2))
    else:
        matrix_text.show_matrix(table, open_console())
        click.echo(found.path)
