"""`hwrx compare`: one experiment, from a file or from options, on a testbed."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hwrx.campaign import precision
from hwrx.control.messages import Priced
from hwrx.errors import HwrxError, UsageError
from hwrx.host import disk, strict_json
from hwrx.lab import kernel
from hwrx.machine import tune
from hwrx.machine.placement import OWN_CPUS
from hwrx.runs import capacity, estimate, lanes, planning, reading, renewal, schedule, store, testbed
from hwrx.runs import experiment as experiments
from hwrx.runs.experiment import Experiment
from hwrx.runs.planning import Plan, Trial
from hwrx.runs.schedule import Outcome
from hwrx.runs.testbed import Wanted
from hwrx.timelines import counted, traced


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
        experiment = testbed.settle_clock(experiment, wanted, display.stage)
    testbed.check_wanted(experiment, wanted)
    layout = planning.plan_run(experiment, testbed.setting_checker(experiment, wanted))
    estimate.check_budget(layout)
    if dry_run:
        print_plan(layout, as_json)
        return None
    disk.check_place(runs if resume is None else resume, estimate.estimate_run(layout).disk)
    outcome, directory = measure_plan(layout, wanted, runs, resume)
    print_report(directory, as_json=as_json)
    if outcome.failed:
        raise HwrxError(
            f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}",
            remedy=f"each failure stands in {directory / 'log.txt'}",
        )
    return directory


def measure_plan(layout: Plan, wanted: Wanted, runs: Path, resume: Path | None = None) -> tuple[Outcome, Path]:
    """Put the testbed up, run every trial, and return the outcome and the run's directory.

    `resume` is a run of the same experiment that did not end: what it lacks is run, and written into it.
    """
    with Display() as display, contextlib.ExitStack() as kept:
        measuring = Measuring(layout, wanted, runs, resume, display, kept)
        measuring.measure_all()
        assert measuring.writer is not None  # a plan has a trial
        return measuring.total, measuring.writer.path


class Measuring:
    """A run on its way: the testbeds of all its prices, the one writer, and how the trials went.

    The testbed of the first price describes the machine and begins the run; those of the others wait for that, and
    measure at the same time if they are guests that count instructions and the machine has room for all.
    """

    def __init__(
        self,
        layout: Plan,
        wanted: Wanted,
        runs: Path,
        resume: Path | None,
        display: Display,
        kept: contextlib.ExitStack,
    ) -> None:
        self.total = Outcome()
        self.writer: store.Writer | None = None
        self._layout = layout
        self._wanted = wanted
        self._runs = runs
        self._resume = resume
        self._display = display
        self._kept = kept
        self._wish = experiments.wish_of(layout.experiment)
        self._prices = planning.prices_of(layout)
        self._begun = threading.Event()
        self._lanes = lanes.Lanes(together=self._may_be_together())

    def measure_all(self) -> None:
        """Measure all prices, and return when all is measured and every testbed taken down."""
        if self._lanes.together:
            kernel.find_kernel(
                self._layout.experiment.kernel, self._display.stage
            )  # one thread downloads, and can be stopped
        self._lanes.carry_out([functools.partial(self._measure, price) for price in self._prices])

    def _may_be_together(self) -> bool:
        experiment, wanted = self._layout.experiment, self._wanted
        if len(self._prices) < 2 or experiment.clock != "icount" or not testbed.in_guest(experiment, wanted):
            return False
        return not (experiment.load or experiment.until) and lanes.has_room(len(self._prices), testbed.GUEST_MEMORY)

    def _measure(self, price: Priced) -> None:
        """Put up the testbed of one price, and measure all of its trials."""
        experiment, wanted = self._layout.experiment, self._wanted
        first = price == self._prices[0]
        if wanted.log is not None and not first:  # each guest has a log of its own
            log = wanted.log.with_name(f"{wanted.log.stem}-{price}{wanted.log.suffix}")
            wanted = msgspec.structs.replace(wanted, log=log)

        def say(stage: str, text: str) -> None:
            self._lanes.check_going()
            self._display.stage(stage, text if first else f"{text} (copies priced by the {price})")

        with testbed.opened_bed(experiment, wanted, say, copies_priced=price, held=self._lanes.held) as bed:
            if first:
                self._begin(bed)
                self._begun.set()
            else:
                self._lanes.wait_for(self._begun)
            assert self.writer is not None  # set by _begin
            if not first and isinstance(bed, testbed.GuestBed):
                self.writer.note(**{f"guest, copies priced by the {price}": bed.describe()})
            trials = [trial for trial in self._layout.trials if trial.setting.copies_priced == price]
            self._execute(trials, bed, self.writer, price)

    def _begin(self, bed: schedule.Testbed) -> None:
        """Describe the machine, find out what the trials depend on, and begin the run, or go on with it."""
        manifest = _manifest(bed, self._layout, self._wanted, self._display)
        if self._wish != OWN_CPUS:
            with schedule.Pair(bed, self._wish):  # what cannot be is said before there is a run
                pass
        check = testbed.setting_checker(self._layout.experiment, self._wanted)
        layout = capacity.calibrate_plan(self._layout, bed, check=check, say=self._display.stage)
        if self._resume is None:
            self.writer = store.Writer.create(self._runs, layout, manifest)
        else:
            self.writer, layout = store.Writer.resume(self._resume, manifest)
            for words in self.writer.manifest["resumed"][-1]["damage"]:
                self._display.stage("damaged", words)
        self._kept.enter_context(self.writer)
        for skip in layout.skipped:
            self.writer.log(f"left out: {skip.label}: {skip.reason}")
        self._layout = layout
        for price in self._prices:
            self._display.expect(price, sum(trial.setting.copies_priced == price for trial in layout.trials))

    def _execute(self, trials: Sequence[Trial], bed: schedule.Testbed, writer: store.Writer, price: Priced) -> None:
        """Run the trials of one testbed, and as many repeats more as `until` asks for."""
        experiment = traces = self._layout.experiment
        if price != self._prices[0]:
            # of two prices one is traced: the stages and the bytes that each copies are the same in both guests
            traces = msgspec.structs.replace(experiment, trace=False)
        last = self._prices[-1]
        elsewhere = {setting for setting in self._layout.settings if setting.copies_priced == last != price}

        def counts(trial: Trial) -> bool:
            # and the other one is counted by actor, so that both guests have as much to do
            return msgspec.structs.replace(trial.setting, copies_priced=last) not in elsewhere

        def progress(done: int, total: int, label: str) -> None:
            self._lanes.check_going()
            self._display.trial(done, total, label, price)

        with (
            traced.traced_twins(traces, bed, writer) as trace,
            counted.counted_twins(experiment, bed, writer, counts) as count,
        ):

            def twin(pair: schedule.Pair, trial: Trial, measured: schedule.Measured, writer: store.Writer) -> None:
                trace(pair, trial, measured, writer)
                count(pair, trial, measured, writer)

            for block in itertools.chain([trials], precision.repeat_blocks(self._layout, writer)):
                outcome = schedule.execute_trials(
                    block, bed, writer, wish=self._wish, progress=progress, twin=twin, stopped=self._lanes.stopped
                )
                self.total.measured += outcome.measured
                self.total.failed += outcome.failed


def _manifest(bed: schedule.Testbed, layout: Plan, wanted: Wanted, display: Display) -> dict[str, Any]:
    """Describe the machine, what was asked for, and what is known to disturb the figures."""
    display.stage("manifest", "what this machine is")
    manifest = {**bed.manifest(), "command": sys.argv}
    manifest["asked"] = msgspec.to_builtins(msgspec.structs.replace(wanted, log=None))
    manifest["renewal"] = msgspec.to_builtins(
        renewal.find_renewal(
            guest=isinstance(bed, testbed.GuestBed),
            bound=layout.experiment.cpu != "any",
            topology=str(manifest.get("topology", layout.experiment.topology)),
        )
    )
    netdevs = {place.netdev for place in bed.places.values() if place.netdev}
    findings = [*tune.find_noise(), *tune.find_merging(manifest["machine"], netdevs)]
    if layout.experiment.clock == "icount":
        findings = []  # counted instructions are the same whatever else the machine does
    elif manifest["emulated"]:
        # where the processor is emulated no setting of the host means anything, but what else runs there does
        findings = [finding for finding in findings if finding.name == "other load"]
    manifest["warnings"] = [str(finding) for finding in findings]
    return manifest


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


class Display:
    """What a person who waits sees: the stages of getting ready, then a bar over the trials; plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("getting ready", total=None)
        self._told = -1
        self._counts: dict[str, tuple[int, int]] = {}  # by lane: trials done, and in all
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def stage(self, stage: str, text: str) -> None:
        """Say what is being done before the first trial."""
        self._progress.update(self._task, description=f"{stage}: {text}")
        if not self._console.is_terminal:
            self._console.print(f"{stage}: {text}", highlight=False, soft_wrap=True)

    def expect(self, lane: str, total: int) -> None:
        """Say how many trials a lane will have."""
        with self._lock:
            self._counts[lane] = (0, total)

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Say which trial runs, of those that a lane has; what is shown is the sum of all lanes."""
        with self._lock:
            self._counts[lane] = (done, total)
            done, total = (sum(counts) for counts in zip(*self._counts.values(), strict=True))
            self._progress.update(self._task, description=label or "done", completed=done, total=total)
            tenth = done * 10 // max(total, 1)  # one stopped between its last trial and its end has none left
            if not self._console.is_terminal and tenth != self._told:
                self._told = tenth
                self._console.print(f"trial {done} of {total} {label}".rstrip(), highlight=False, soft_wrap=True)


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
