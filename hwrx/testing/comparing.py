"""What a test compares, and what it is held against: the objects behind the fixtures hwrx_compare and hwrx_baseline."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from hwrx.errors import UnavailableError, UsageError
from hwrx.report.holding import Baseline, Scaled
from hwrx.report.path_figures import PathFigures
from hwrx.report.reported import ReportedRun
from hwrx.scripting.lab import Lab, StrPath
from hwrx.testing.stored import Shelf

Record = Callable[[str, object], None]


class Comparison:
    """Runs comparisons in a test's lab, and remembers the runs: `hwrx_compare(paths=["udp"], sizes=[64])`."""

    def __init__(self, lab: Lab, folder: Path, test: str, record: Record) -> None:
        self.lab = lab
        self.runs: list[ReportedRun] = []
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", test.rpartition("/")[2]).strip("-.")
        self._folder = folder / words
        self._record = record

    def __call__(self, experiment: StrPath | None = None, **options: object) -> ReportedRun:
        """Run an experiment in the test's lab; see `hwrx.Lab.compare`. The report of the test names the run."""
        run = self.lab.compare(experiment, runs=self._folder, **options)  # type: ignore[arg-type]
        self.runs.append(run)
        self._record("hwrx run", str(run.path))
        for found in run:
            try:
                self._record(f"hwrx {found.name} [{found.figure_unit}]", found.figure.value)
            except UnavailableError as error:
                self._record(f"hwrx {found.name}", str(error.args[0]))
        return run

    def forget(self) -> None:
        """Remove the directories of the runs: they are not wanted any more."""
        for run in self.runs:
            shutil.rmtree(run.path, ignore_errors=True)
        latest = self._folder / "latest"
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


class TestBaseline(Baseline):
    """The runs that this test made before: what the fixture hwrx_baseline is."""

    __test__ = False  # no test, whatever its name begins with
    remedy = "pytest --hwrx-save adds a run to the baseline: have it two or three times"

    def __init__(self, comparison: Comparison, shelf: Shelf, *, only_saving: bool) -> None:
        super().__init__()
        self._comparison = comparison
        self._shelf = shelf
        self._only_saving = only_saving

    def __repr__(self) -> str:
        return f"<baseline {self._shelf.name}>"

    @property
    def anew(self) -> str:
        """The remedy if its runs are of something else."""
        return self._shelf.anew

    def runs_for(self, run: ReportedRun) -> Sequence[ReportedRun]:
        """Return the runs that a run of this test is held against: those of the same number within the test."""
        __tracebackhide__ = True  # pytest's: a test's traceback ends in the test
        return self._shelf.find_runs(self._number_of(run), run)

    def __mul__(self, factor: float) -> Scaled:
        return Accepting(float(factor), self) if self._only_saving else super().__mul__(factor)

    __rmul__ = __mul__

    def _number_of(self, run: ReportedRun) -> int:
        paths = [each.path for each in self._comparison.runs]
        if run.path not in paths:
            raise UsageError(
                f"{run.path.name} was not made by this test, and its baseline is of the test's own runs",
                remedy="make it with the fixture hwrx_compare; hwrx.Baseline(run, …) holds any runs",
            )
        return paths.index(run.path)


class Accepting(Scaled):
    """What stands in the place of a baseline while one is saved: nothing is held against anything."""

    def holds_for(self, found: PathFigures, sign: str) -> bool:
        """Whatever was found is what later runs are held against."""
        return True
