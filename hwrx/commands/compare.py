"""`hwrx compare`: one experiment, from a file or from options, on a testbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from hwrx.campaign import measuring
from hwrx.commands.display import Display
from hwrx.errors import HwrxError, UsageError
from hwrx.host import strict_json
from hwrx.runs import estimate, reading
from hwrx.runs import experiment as experiments
from hwrx.runs.experiment import Experiment
from hwrx.runs.planning import Plan
from hwrx.runs.testbed import Wanted


class Many(click.ParamType[Any]):
    """Several values in one option, separated by commas."""

    def __init__(self, kind: type[int] | type[str], metavar: str) -> None:
        self.kind = kind
        self.name = metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split at commas; each part is of the wanted kind."""
        if not isinstance(value, str):
            return value
        try:
            return [self.kind(part) for part in value.split(",") if part]
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers, such as 64,1400", param, ctx)


class Cpus(click.ParamType[Any]):
    """The CPUs of both ends, or the word "any"."""

    name = "CLIENT[,SERVER]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """One or two numbers, or "any"."""
        if not isinstance(value, str) or value == "any":
            return value
        parts = value.split(",")
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not CLIENT or CLIENT,SERVER, such as 2,3, and not the word any", param, ctx)
        return [int(part) for part in parts]


def experiment_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe an experiment, or change what a file describes."""
    options = [
        click.option("--paths", type=Many(str, "PATH,…"), help="Delivery paths, for example udp,rdma-send."),
        click.option("--size", "sizes", type=Many(int, "BYTES,…"), help="Message sizes in bytes."),
        click.option("--pattern", "patterns", type=Many(str, "NAME,…"), help="pingpong, stream, paced."),
        click.option("--wait", "waits", type=Many(str, "NAME,…"), help="poll, event; sockets also block, epoll, …"),
        click.option("--budget", type=float, help="Seconds that the whole run may take."),
        click.option("--messages", type=int, help="Measured messages of a trial."),
        click.option("--repeats", type=int, help="How often each setting is measured."),
        click.option("--rate", type=float, help="paced: messages a second."),
        click.option("--window", type=int, help="Messages that may be outstanding, where a path reads it."),
        click.option("--batch", type=int, help="Most messages in one post or receive."),
        click.option("--signal-every", type=int, help="verbs: one signalled send in so many."),
        click.option("--inline", type=int, help="verbs: send inline up to so many bytes."),
        click.option("--check-every", type=int, help="Check each N-th message to its last byte; 0: headers only."),
        click.option("--socket-buffer", type=int, help="SO_SNDBUF and SO_RCVBUF in bytes."),
        click.option("--zerocopy-send/--no-zerocopy-send", default=None, help="udp, tcp: send with MSG_ZEROCOPY."),
        click.option(
            "--zerocopy-receive/--no-zerocopy-receive", default=None, help="tcp: map pages (TCP_ZEROCOPY_RECEIVE)."
        ),
        click.option("--mtu", type=int, help="verbs: path MTU (256, 512, 1024, 2048, 4096)."),
        click.option("--gid-index", type=int, help="verbs: which GID, instead of the one that hwrx chooses."),
        click.option("--huge-pages/--no-huge-pages", default=None, help="Buffers in huge pages."),
        click.option("--limit", type=float, help="Seconds without any message that end a trial."),
        click.option(
            "--clock",
            type=click.Choice(["wall", "icount", "auto"]),
            help="icount: guest instructions; auto: those where the guest is emulated.",
        ),
        click.option(
            "--copies-priced", type=click.Choice(["byte", "word"]), help="icount: an instruction a copied byte or word."
        ),
        click.option("--kernel", help="Kernel of the guest, for example 6.12."),
        click.option("--wire-mtu", type=int, help="MTU of the wire of netns, pair and nic [1500]."),
        click.option("--seed", type=int, help="Seed of the order of trials."),
        click.option("--cpu", type=Cpus(), help="CPUs of the ends [of their own]; any: let the scheduler choose."),
        click.option("--numa", type=click.IntRange(0), metavar="NODE", help="NUMA node from which CPUs are taken."),
        click.option(
            "--trace/--no-trace", default=None, help="Stamp each message's stages, count time by actor (needs root)."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[EXPERIMENT]")
@experiment_options
@click.option("--topology", type=click.Choice(["here", "netns", "pair", "nic"]), help="What lies between the two ends.")
@click.option("--here", is_flag=True, help="Use this machine's own kernel and devices, no virtual machine.")
@click.option("--device", type=Many(str, "DEV[,DEV]"), help="Verbs devices of client and server on this machine.")
@click.option("--peer", help="Where the other end runs: local, netns:NAME, ssh:HOST, or a command with {agent}.")
@click.option("--peer-device", help="Verbs device at the peer.")
@click.option("--peer-address", help="IP address of the peer, for sockets.")
@click.option("--address", help="The client's own IP address, for sockets [the one that leads to the peer's].")
@click.option("--log", type=click.Path(path_type=Path), help="File that gets all that a guest prints.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Where run directories go.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that did not end.")
@click.option("--dry-run", is_flag=True, help="Say what would be run, how long and how much disk it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def compare(
    file: Path | None,
    topology: str | None,
    here: bool,
    device: list[str] | None,
    peer: str | None,
    peer_device: str | None,
    peer_address: str | None,
    address: str | None,
    log: Path | None,
    runs: Path,
    resume: Path | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare delivery paths: run EXPERIMENT, or the one that the options describe.

    Options change what the file says. Without a file, --paths is needed.

    \b
    Examples:
      hwrx compare lab/experiments/first.toml
      hwrx compare --paths udp,tcp --size 64,1400 --topology netns
      hwrx compare lab/experiments/first.toml --device mlx5_0,mlx5_1
      hwrx compare --paths rdma-send --device mlx5_0 --peer ssh:other --peer-device mlx5_0
      hwrx compare --paths udp --peer ssh:other --peer-address 192.0.2.7 --cpu 2,2
    """
    wanted = Wanted(
        here=here,
        devices=tuple(device or ()),
        peer=peer,
        peer_device=peer_device,
        peer_address=peer_address,
        address=address,
        log=log,
    )
    if resume is not None:
        if file is not None or any(value is not None for value in options.values()):
            raise UsageError("--resume goes on with a run as it was begun: give neither a file nor options with it")
        experiment = reading.load_run(resume).experiment
        run_and_report(experiment, wanted, runs=runs, dry_run=dry_run, as_json=as_json, resume=resume)
        return
    experiment = described_experiment(file, {**options, "topology": topology or ("hosts" if wanted.explicit else None)})
    run_and_report(experiment, wanted, runs=runs, dry_run=dry_run, as_json=as_json)


def described_experiment(file: Path | None, options: dict[str, Any]) -> Experiment:
    """Return the experiment of a file with options put over it, or the one that the options alone describe."""
    if file is None:
        return experiments.from_options(**options)
    return experiments.override_experiment(experiments.load_experiment(file), **options)


def run_and_report(
    experiment: Experiment, wanted: Wanted, *, runs: Path, dry_run: bool, as_json: bool, resume: Path | None = None
) -> Path | None:
    """Plan, run with a progress display, and end with the table and the path of the report.

    Return the run's directory; None after a dry run.
    """
    with Display() as display:
        layout = measuring.settle_plan(experiment, wanted, display.stage)
    if dry_run:
        print_plan(layout, as_json)
        return None
    with Display() as display:
        outcome, directory = measuring.measure_plan(layout, wanted, runs, resume, progress=display)
    print_report(directory, as_json=as_json)
    if outcome.failed:
        raise HwrxError(
            f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}",
            remedy=f"each failure stands in {directory / 'log.txt'}",
        )
    return directory


def print_report(directory: Path, *, as_json: bool) -> None:
    """Write report.html, print the table and where the report is; with `as_json` print the summary as JSON instead."""
    import hwrx
    from hwrx.report import tables, write_report
    from hwrx.report.summary import summarise_runs

    summary = summarise_runs([hwrx.load(directory)])
    written = write_report(summary, ("html",) if as_json else ("table", "html"), directory)
    if as_json:
        click.echo(tables.to_json(summary))
    else:
        for path in written:
            click.echo(path)


def print_plan(layout: Plan, as_json: bool) -> None:
    """Say what a run of the plan would be."""
    guess = estimate.estimate_run(layout)
    if as_json:
        plan = {
            "estimate": msgspec.to_builtins(guess),
            "trials": [trial.label for trial in layout.trials],
            "skipped": [msgspec.to_builtins(skip) for skip in layout.skipped],
        }
        click.echo(strict_json.to_json(plan, indent=2))
        return
    click.echo(
        f"{layout.experiment.name}: {guess.trials} trials, {guess.samples} messages, about {guess.seconds:.0f} s and "
        f"{guess.disk / 1e6:.1f} MB ({guess.basis})"
    )
    for trial in sorted(layout.trials, key=lambda trial: trial.label)[:: max(1, layout.experiment.repeats)]:
        click.echo(f"  {trial.label}")
    for skip in layout.skipped:
        click.echo(f"  left out: {skip.label}: {skip.reason}")
