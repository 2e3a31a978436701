"""One attempt at a cell, in a process of its own: measured as `hwrx compare` does, with what came of it as a file."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from hwrx.campaign import book, measuring
from hwrx.errors import HwrxError, MachineError, UsageError
from hwrx.host.interruption import run_beneath
from hwrx.report.headline import headlines_of
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs import testbed
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


def attempt_cell(cell: Path, number: int) -> int:
    """Measure a cell, and leave its result in its folder, whatever comes of it but a signal.

    :param cell: the cell's folder.
    :param number: of the attempt. What an attempt of the same number has left, that was killed, stays beside its run.
    :return: the exit code: 0 if the cell is done.
    """
    folder = cell / f"attempt-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    done = book.read_result(folder)
    if done is None:  # an engine that starts a job again does not know that it had ended
        done = _measured(cell, folder, Lines())
        book.write_result(folder, done)
    if done.error:
        sys.stdout.write(f"hwrx: {done.error}\n")
    return 0 if done.state == "done" else 1


def _measured(cell: Path, folder: Path, progress: measuring.Progress) -> book.Result:
    directory: Path | None = None
    try:
        experiment = experiments.load_experiment(cell / book.EXPERIMENT)
        experiment = testbed.settle_clock(experiment, Wanted(), progress.stage)
        wanted = Wanted(log=folder / GUEST_LOG) if testbed.in_guest(experiment, Wanted()) else Wanted()
        layout = measuring.settle_plan(experiment, wanted, progress.stage)
        outcome, directory = measuring.measure_plan(layout, wanted, folder, progress=progress)
        run = ReportedRun.open(directory)
    except HwrxError as error:
        # what the machine or the kernel lacks it lacks the next time, too
        return book.Result(state="failed", error=str(error), lasting=isinstance(error, UsageError | MachineError))
    except Exception as error:  # a fault of ours: the other cells go on, and the log has where it was
        traceback.print_exc()
        return book.Result(state="failed", error=f"{type(error).__name__}: {error}", lasting=True)
    failed = f"{len(outcome.failed)} of {len(layout.trials)} trials failed, the first: {outcome.failed[0]}" if (
        outcome.failed
    ) else ""  # fmt: skip
    return book.Result(
        state="failed" if failed else "done",
        run=directory.name,
        figures=headlines_of(run.summary()),
        skipped=[f"{skip.label}: {skip.reason}" for skip in layout.skipped],
        error=failed,
        kernel=str(run.manifest.get("guest", {}).get("kernel", "")),
    )


if __name__ == "__main__":
    sys.exit(run_beneath(lambda: attempt_cell(Path(sys.argv[1]), int(sys.argv[2]))))
