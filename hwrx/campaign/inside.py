"""One attempt at a cell, in a process of its own: measured as `hwrx compare` does, with what came of it as a file."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from hwrx.campaign import book, measuring
from hwrx.errors import HwrxError, MachineError, UsageError
from hwrx.host import disk
from hwrx.host.interruption import run_beneath
from hwrx.report.headline import headlines_of
from hwrx.report.provenance import machine_of
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs import planning, testbed
from hwrx.runs.testbed import Wanted

GUEST_LOG = "guest.txt"


class Lines:
    """Progress as plain lines on standard output, which the attempt's log takes."""

    def stage(self, stage: str, text: str) -> None:
        """Say what is being done before the first trial."""
        self._say(f"{stage}: {text}")

    def expect(self, lane: str, total: int) -> None:
        """Nothing: each trial says it."""

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Say which trial runs."""
        self._say(f"trial {done} of {total} {label}".rstrip())

    def _say(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def attempt_cell(folder: Path, labels: Sequence[str] = ()) -> int:
    """Measure a cell, or take messages of it apart, and leave the result, whatever comes of it but a signal.

    :param folder: of the attempt, in the cell's. What was left there by one that was killed stays.
    :param labels: of the settings whose messages are to be taken apart; without any the cell is measured.
    :return: the exit code: 0 if it is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = book.read_result(folder)
    if done is None:  # an engine that starts a job again does not know that it had ended
        done = _attempted(
            functools.partial(_dissected, folder, labels) if labels else functools.partial(_measured, folder)
        )
        book.write_result(folder, done)
    if done.error:
        sys.stdout.write(f"hwrx: {done.error}\n")
    return 0 if done.state == "done" else 1


def _attempted(work: Callable[[Lines], book.Result]) -> book.Result:
    try:
        return work(Lines())
    except HwrxError as error:
        # what the machine or the kernel lacks it lacks the next time, too
        return book.Result(state="failed", error=str(error), lasting=isinstance(error, UsageError | MachineError))
    except Exception as error:  # a fault of ours: the other cells go on, and the log has where it was
        traceback.print_exc()
        return book.Result(state="failed", error=f"{type(error).__name__}: {error}", lasting=True)


def _measured(folder: Path, progress: Lines) -> book.Result:
    experiment = experiments.load_experiment(folder.parent / book.EXPERIMENT)
    experiment = testbed.settle_clock(experiment, Wanted(), progress.stage)
    wanted = Wanted(log=folder / GUEST_LOG) if testbed.in_guest(experiment, Wanted()) else Wanted()
    layout = measuring.settle_plan(experiment, wanted, progress.stage)
    outcome, directory = measuring.measure_plan(layout, wanted, folder, progress=progress)
    run = ReportedRun.open(directory)
    failed = ""
    if outcome.failed:
        failed = f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}"
    return book.Result(
        state="failed" if failed else "done",
        run=directory.name,
        figures=headlines_of(run.summary()),
        skipped=[f"{skip.label}: {skip.reason}" for skip in layout.skipped],
        error=failed,
        kernel=str(run.manifest.get("guest", {}).get("kernel", "")),
        machine=machine_of(run),
    )


def _dissected(folder: Path, labels: Sequence[str], progress: Lines) -> book.Result:
    # few cells want it, and it brings a decoder of instructions
    from hwrx.anatomy import dissect, model

    experiment = experiments.load_experiment(folder.parent / book.EXPERIMENT)
    layout = measuring.settle_plan(experiment, Wanted(), progress.stage)
    settings = [
        msgspec.structs.replace(setting, messages=min(setting.messages, measuring.DISSECTED), check_every=0)
        for setting in dissect.dissectible(layout)
        if planning.label_of(setting, layout.experiment) in labels
    ]
    if not settings:
        raise UsageError(f"none of its settings can be taken apart: {', '.join(labels)}")
    found = dissect.dissect_settings(layout.experiment, settings, progress.stage)
    with disk.guarded_writes(folder):
        disk.replace_file(folder / model.DOCUMENT, msgspec.json.encode(model.to_document(found)))
    return book.Result(state="done")


if __name__ == "__main__":
    sys.exit(run_beneath(lambda: attempt_cell(Path(sys.argv[1]), sys.argv[2:])))
