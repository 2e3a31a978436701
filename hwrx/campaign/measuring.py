"""A run from its plan to its directory: the testbed of each guest that it needs, its trials, their twins, one writer.

`settle_plan` says what is to be run, `measure_plan` runs it. Whoever calls says what becomes of progress and figures.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import msgspec

from hwrx.campaign import precision
from hwrx.control.guest_boot import Boot, Priced
from hwrx.control.messages import Setting
from hwrx.errors import HwrxError, StandstillError
from hwrx.host import disk
from hwrx.lab import kernel
from hwrx.lab.vm import Guest
from hwrx.machine import tune
from hwrx.machine.placement import OWN_CPUS
from hwrx.runs import capacity, estimate, fleet, lanes, planning, renewal, schedule, store, testbed
from hwrx.runs import experiment as experiments
from hwrx.runs.beds import Testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.hosts import HostsBed, Manifest
from hwrx.runs.planning import Plan
from hwrx.runs.schedule import Outcome
from hwrx.runs.testbed import Wanted
from hwrx.runs.trials import Trial
from hwrx.timelines import counted, traced

DISSECTED = 200  # messages of a setting that are taken apart: what most are like, and the states of the others


class Progress(Protocol):
    """What is told how far a run is, from any thread."""

    def stage(self, stage: str, text: str) -> None:
        """Hear what is being done before the first trial."""

    def expect(self, lane: str, total: int) -> None:
        """Hear how many trials a lane will have."""

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Hear which trial runs, of those that a lane has."""


class Quiet:
    """Nobody waits."""

    def stage(self, stage: str, text: str) -> None:
        """Nothing."""

    def expect(self, lane: str, total: int) -> None:
        """Nothing."""

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Nothing."""


class BedOpener(Protocol):
    """How a run comes by its testbed: `hwrx.runs.testbed.opened_bed` puts one up; a lab hands over the one it has."""

    def __call__(
        self,
        experiment: Experiment,
        wanted: Wanted,
        say: Callable[[str, str], None],
        *,
        boot: Boot,
        held: Callable[[Guest], contextlib.AbstractContextManager[object]],
    ) -> contextlib.AbstractContextManager[Testbed]:
        """Return the context in which the testbed is there, of guests one that was booted with `boot`."""


def settle_plan(experiment: Experiment, wanted: Wanted, say: Callable[[str, str], None]) -> Plan:
    """Decide the clock, and lay out the trials of an experiment on the testbed that is wanted.

    :param say: is told a stage and what is being done, for people who wait.
    :raises UsageError: if the testbed lacks what is asked for, or the plan does not fit into the experiment's budget.
    """
    experiment = testbed.settle_clock(experiment, wanted, say)
    testbed.check_wanted(experiment, wanted)
    layout = planning.plan_run(experiment, testbed.setting_checker(experiment, wanted))
    estimate.check_budget(layout, here=wanted.here)
    return layout


def measure_plan(
    layout: Plan,
    wanted: Wanted,
    runs: Path,
    resume: Path | None = None,
    *,
    progress: Progress | None = None,
    open_bed: BedOpener = testbed.opened_bed,
) -> tuple[Outcome, Path]:
    """Put the testbed up, run every trial, and return the outcome and the run's directory.

    :param runs: the folder that the run's directory is made in.
    :param resume: a run of the same experiment that did not end: what it lacks is run, and written into it.
    :param progress: is told how far the run is; nobody is if it is None.
    :param open_bed: is asked for a testbed, for each way in which guests are booted.
    :raises HwrxError: if there is no place for the run, the testbed cannot be put up, or an agent dies.
    """
    disk.check_place(runs if resume is None else resume, estimate.estimate_run(layout, here=wanted.here).disk)
    with contextlib.ExitStack() as kept:
        measuring = Measuring(layout, wanted, runs, resume, progress or Quiet(), kept, open_bed)
        measuring.measure_all()
        assert measuring.writer is not None  # a plan has a trial
        return measuring.total, measuring.writer.path


class Measuring:
    """A run on its way: the testbeds of all that it boots, the one writer, and how the trials went.

    The first testbed describes the machine and begins the run; those of the others wait for that, and
    measure at the same time if they are guests that count instructions and the machine has room for all.
    """

    def __init__(
        self,
        layout: Plan,
        wanted: Wanted,
        runs: Path,
        resume: Path | None,
        display: Progress,
        kept: contextlib.ExitStack,
        open_bed: BedOpener,
    ) -> None:
        self.total = Outcome()
        self.writer: store.Writer | None = None
        self._layout = layout
        self._wanted = wanted
        self._runs = runs
        self._resume = resume
        self._display = display
        self._kept = kept
        self._open_bed = open_bed
        self._wish = experiments.wish_of(layout.experiment)
        self._boots = planning.boots_of(layout)
        self._begun = threading.Event()
        self._lanes = lanes.Lanes(together=self._may_be_together())

    def measure_all(self) -> None:
        """Measure all settings, and return when all is measured and every testbed taken down."""
        if self._lanes.together:
            # one thread downloads, and can be stopped
            kernel.find_kernel(self._layout.experiment.kernel, self._display.stage)
        self._lanes.carry_out([functools.partial(self._measure, boot) for boot in self._boots])
        if self._layout.experiment.anatomy:
            self._dissect()

    def _dissect(self) -> None:
        """Take messages of the run's settings apart, in a guest whose emulator watches; the run keeps what is found.

        If that cannot be done the run says so: its figures are there.
        """
        from hwrx.anatomy import dissect, model  # few runs want it, and it brings a decoder of instructions

        assert self.writer is not None  # set by _begin
        settings = [
            msgspec.structs.replace(setting, messages=min(setting.messages, DISSECTED), check_every=0)
            for setting in dissect.dissectible(self._layout)
        ]
        try:
            found = dissect.dissect_settings(self._layout.experiment, settings, self._display.stage, copies=True)
        except HwrxError as error:
            words = f"no anatomy: {str(error).splitlines()[0]}"
            self.writer.log(words)
            self._display.stage("anatomy", words)
            return
        self.writer.add_document(model.DOCUMENT, model.to_document(found))

    def _may_be_together(self) -> bool:
        experiment, wanted = self._layout.experiment, self._wanted
        if len(self._boots) < 2 or experiment.clock != "icount" or not testbed.in_guest(experiment, wanted):
            return False
        return not (experiment.load or experiment.until) and lanes.has_room(len(self._boots), testbed.GUEST_MEMORY)

    def _measure(self, boot: Boot) -> None:
        """Put up the testbed for what is booted so, and measure all of its trials."""
        experiment, wanted = self._layout.experiment, self._wanted
        first = boot == self._boots[0]
        if wanted.log is not None and not first:  # each guest has a log of its own
            number = self._boots.index(boot) + 1
            log = wanted.log.with_name(f"{wanted.log.stem}-{number}{wanted.log.suffix}")
            wanted = msgspec.structs.replace(wanted, log=log)

        def say(stage: str, text: str) -> None:
            self._lanes.check_going()
            self._display.stage(stage, text if first else f"{text} ({boot})")

        def measure() -> None:
            with self._open_bed(experiment, wanted, say, boot=boot, held=self._lanes.held) as bed:
                if first and not self._begun.is_set():
                    self._begin(bed)
                    self._begun.set()
                else:
                    self._lanes.wait_for(self._begun)
                assert self.writer is not None  # set by _begin
                # a run that goes on may begin with a guest that was second before, and which nobody has noted
                if isinstance(bed, testbed.Booted) and not (first and self._resume is None):
                    self.writer.note(**{f"guest, {boot}": bed.describe()})
                there = {line["trial"] for line in self.writer.lines()}
                trials = [trial for trial in self._layout.trials if trial.setting.boot == boot]
                self._execute([trial for trial in trials if trial.number not in there], bed, self.writer, boot)

        try:
            measure()
        except StandstillError as error:
            words = f"{Exception.__str__(error).splitlines()[0]}; another one goes on"
            say("guest", words)
            if self.writer is not None:
                self.writer.log(words)
            measure()

    def _begin(self, bed: Testbed) -> None:
        """Describe the machine, find out what the trials depend on, and begin the run, or go on with it."""
        manifest = _manifest(bed, self._layout, self._wanted, self._display)
        if self._wish != OWN_CPUS:
            with fleet.open_agents(bed, self._wish):  # what cannot be is said before there is a run
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
        for boot in self._boots:
            self._display.expect(str(boot), sum(trial.setting.boot == boot for trial in layout.trials))

    def _priced(self, setting: Setting) -> list[Boot]:
        """Return the boots that a setting is measured in and in which only copies are priced in another way, in order.

        Its own is among them.
        """
        known = set(self._layout.settings)
        prices = (msgspec.structs.replace(setting, copies_priced=price) for price in get_args(Priced))
        mine = {each.boot for each in prices if each in known}
        return [boot for boot in self._boots if boot in mine]

    def _execute(self, trials: Sequence[Trial], bed: Testbed, writer: store.Writer, boot: Boot) -> None:
        """Run the trials of one testbed, and as many repeats more as `until` asks for."""
        experiment = self._layout.experiment

        # What one price tells of a setting is not told again: its stages, and the bytes that each of them copies, are
        # the same in both guests. The first one counts by actor, the last one traces: both have as much to do
        counts = {setting for setting in self._layout.settings if self._priced(setting)[0] == boot}
        traces = {setting for setting in self._layout.settings if self._priced(setting)[-1] == boot}

        def progress(done: int, total: int, label: str) -> None:
            self._lanes.check_going()
            self._display.trial(done, total, label, str(boot))

        with (
            traced.traced_twins(experiment, bed, writer, traces) as trace,
            counted.counted_twins(experiment, bed, writer, counts) as count,
        ):

            def twin(pair: schedule.Pair, trial: Trial, measured: schedule.Measured, writer: store.Writer) -> None:
                trace(pair, trial, measured, writer)
                count(pair, trial, measured, writer)

            for block in itertools.chain([trials], precision.repeat_blocks(self._layout, writer)):
                schedule.execute_trials(
                    block,
                    bed,
                    writer,
                    wish=self._wish,
                    progress=progress,
                    twin=twin,
                    stopped=self._lanes.stopped,
                    outcome=self.total,
                    agents=fleet.open_agents,
                )


def _find_merging(bed: Testbed, manifest: Manifest) -> list[tune.Finding]:
    """Look whether the network devices of both ends merge packets; of several machines each on its own."""
    if not isinstance(bed, HostsBed):
        return tune.find_merging(manifest["machine"], {place.netdev for place in bed.places.values() if place.netdev})
    found: dict[tune.Finding, list[str]] = {}
    for name, machine in manifest["host machines"].items():
        netdev = bed.hosts[name].netdev
        for finding in tune.find_merging(machine, {netdev} if netdev else set()):
            found.setdefault(finding, []).append(name)
    return [
        msgspec.structs.replace(finding, state=f"at {', '.join(names)} {finding.state}")
        for finding, names in found.items()
    ]


def _manifest(bed: Testbed, layout: Plan, wanted: Wanted, display: Progress) -> dict[str, Any]:
    """Describe the machine, what was asked for, and what is known to disturb the figures."""
    display.stage("manifest", "what this machine is")
    manifest = {**bed.manifest(), "command": sys.argv}
    manifest["asked"] = msgspec.to_builtins(msgspec.structs.replace(wanted, log=None))
    manifest["renewal"] = msgspec.to_builtins(
        renewal.find_renewal(
            guest=isinstance(bed, testbed.Booted),
            bound=layout.experiment.cpu != "any",
            topology=str(manifest.get("topology", layout.experiment.topology)),
        )
    )
    findings = [*tune.find_noise(), *_find_merging(bed, manifest)]
    if layout.experiment.clock == "icount":
        findings = []  # counted instructions are the same whatever else the machine does
    elif manifest["emulated"]:
        # where the processor is emulated no setting of the host means anything, but what else runs there does
        findings = [finding for finding in findings if finding.name == "other load"]
    manifest["warnings"] = [str(finding) for finding in findings]
    return manifest
