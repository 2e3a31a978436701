"""A run held against runs that went before, in one expression: `run["udp", 64] <= 1.02 * baseline`.

What is told apart, and when a single run is no measure, is `hwrx diff`'s to say: nothing here has statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from msgspec import Struct

from hwrx.errors import UnavailableError, UsageError
from hwrx.report.diff import Diff, compare_runs, name_of_row, row_key
from hwrx.report.model import Change
from hwrx.report.numbers import number_text
from hwrx.report.path_figures import PathFigures
from hwrx.report.reported import ReportedRun


class Verdict(Struct, frozen=True, kw_only=True):
    """What a comparison found: whether it holds, the figures that it does not hold for, and the whole diff.

    `reasons`: sentences on why it does not hold besides figures.
    """

    holds: bool
    name: str
    label: str  # as the run's trials have it
    factor: float
    worse: list[Change]
    diff: Diff
    reasons: list[str] = []

    def sentences(self) -> list[str]:
        """Return a sentence for each reason for which, and each figure for which the comparison does not hold."""
        return [*self.reasons, *(_sentence(change, self.factor) for change in self.worse)]

    def moved_functions(self, most: int = 3) -> list[str]:
        """Return the functions that grew most, in words, if messages of both sides were taken apart."""
        mine = [each for each in self.diff.moved if each.setting == self.label and each.after > each.before]
        return [f"{each.function} {each.after - each.before:+,.0f} instructions" for each in mine[:most]]


class Scaled:
    """A baseline times a factor: what figures are held against.

    :raises UsageError: if the factor is not finite, or not above 0
    """

    def __init__(self, factor: float, baseline: Baseline) -> None:
        if not (math.isfinite(factor) and factor > 0):  # nothing is told to be beyond nan
            raise UsageError(f"{factor:g} times a baseline is no measure", remedy="1.02 * baseline")
        self.factor = factor
        self.baseline = baseline

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.baseline!r}"

    def __ge__(self, found: PathFigures) -> bool:
        """`found <= self`: whether no time of `found` is told to be longer than the baseline's by more than that."""
        __tracebackhide__ = True  # pytest's: a test's traceback ends in the test
        return self.holds_for(found, "<=")

    def __le__(self, found: PathFigures) -> bool:
        """`found >= self`: the same of a stream's rate, of which more is better."""
        __tracebackhide__ = True
        return self.holds_for(found, ">=")

    def holds_for(self, found: PathFigures, sign: str) -> bool:
        """Whether a comparison holds; see `judge`."""
        __tracebackhide__ = True
        return self.judge(found, sign).holds

    def judge(self, found: PathFigures, sign: str) -> Verdict:
        """Hold figures against the baseline's.

        :param found: what one run has of a path
        :param sign: "<=" of times, ">=" of a stream's rate
        :raises UsageError: if the sign or the factor is not one for this figure, or the runs cannot be compared
        :raises UnavailableError: if the baseline has no such row, or one run on either side is no measure, or an open
            loop of the baseline was saturated
        """
        __tracebackhide__ = True
        rate = found.row.pattern == "stream"
        if (sign == ">=") != rate:
            raise UsageError(
                f"{found.name} is held against a baseline by {'>=' if rate else '<='}: "
                f"{'a rate is better if it is more' if rate else 'a time is better if it is less'}",
                remedy='run["udp", 64, …] >= 0.98 * baseline' if rate else 'run["udp", 64] <= 1.02 * baseline',
            )
        over = 1 - self.factor if rate else self.factor - 1
        if over < 0:
            raise UsageError(
                f"{self.factor:g} times the baseline asks whether something is better, and a comparison finds only "
                "what is worse",
                remedy=f"a factor of {'at most' if rate else 'at least'} 1",
            )
        run = cast("ReportedRun", found.run)
        before = self.baseline.runs_for(run)
        try:
            diff = compare_runs(before, [run])
        except UsageError as error:
            if "--anyway" not in error.remedy:
                raise
            raise UsageError(str(error.args[0]), remedy=self.baseline.anew) from None  # no option of who compares here
        # by the whole setting: a name depends on what else its run swept, and may be another row's in the baseline
        key = row_key(found.row)
        mine = [change for change in diff.changes if change.key == key]
        if not mine:
            name = name_of_row(found.row)
            only = next((words for side, words in diff.only if side == "b" and words.startswith(name)), name)
            note = next((note for note in diff.notes if note.startswith(name)), f"it has no {only}")
            raise UnavailableError(f"{found.name} cannot be held against {self.baseline!r}: {note}")
        if not all(change.exact or (change.sampled and not math.isnan(change.chance)) for change in mine):
            raise UnavailableError(
                f"{found.name} cannot be held against {self.baseline!r}: one run on either side that has it does not "
                "say by how much two runs differ anyway",
                remedy=self.baseline.remedy,
            )
        # times of a saturated loop grow with the trial; its rate alone is compared, and can fall by no more than 100 %
        if any(row.saturated for of in before for row in of.summary().rows if row.digests and row_key(row) == key):
            raise UnavailableError(
                f"{found.name} cannot be held against {self.baseline!r}: it was offered more than it answered there, "
                "and its times are no measure",
                remedy="a lower rate, that the path keeps up with",
            )
        worse = [change for change in diff.failures(over) if change.key == key]
        reasons = [_saturation(found)] if found.row.saturated else []
        return Verdict(
            holds=not worse and not reasons,
            name=found.name,
            label=found.label,
            factor=self.factor,
            worse=worse,
            diff=diff,
            reasons=reasons,
        )


class Baseline:
    """Runs that others are held against: `run["udp", 64] <= 1.02 * hwrx.Baseline(before)`.

    A comparison is false if a figure of that row is worse by more than the factor, and `hwrx diff` tells it apart. One
    run is enough where instructions are counted and repeat to the digit; else it takes several, made at other times.

    :param runs: the runs, one or more
    """

    remedy = "give the baseline several runs, made at other times"

    def __init__(self, *runs: ReportedRun) -> None:
        self._runs = runs

    @property
    def anew(self) -> str:
        """The remedy if its runs are of something else."""
        return "hwrx.Baseline(run, …) of runs that measured the same, with as many messages"

    def __repr__(self) -> str:
        return f"<baseline of {', '.join(run.path.name for run in self._runs) or 'no run'}>"

    def runs_for(self, run: ReportedRun) -> Sequence[ReportedRun]:
        """Return the runs that one is held against.

        :raises UsageError: if there are none
        """
        if not self._runs:
            raise UsageError("a baseline of no runs is no measure", remedy="hwrx.Baseline(run, …)")
        return self._runs

    def __mul__(self, factor: float) -> Scaled:
        return Scaled(float(factor), self)

    __rmul__ = __mul__

    def __ge__(self, found: PathFigures) -> bool:
        __tracebackhide__ = True
        return (1.0 * self) >= found

    def __le__(self, found: PathFigures) -> bool:
        __tracebackhide__ = True
        return (1.0 * self) <= found


def _saturation(found: PathFigures) -> str:
    return (
        f"saturated, which the baseline is not: {100 * found.row.kept:.0f} % of the rate offered is answered, and "
        "times grow with the trial's length"
    )


def _sentence(change: Change, factor: float) -> str:
    if change.exact:  # µs of a guest that counts: an instruction is a nanosecond
        before, after = (f"{1000 * value:,.1f}" for value in (change.before, change.after))
        figure, ends, unit = change.figure.replace("exact µs", "exact figure"), "", " instructions"
    else:
        before, after = (number_text(value) for value in (change.before, change.after))
        low, high = (100 * (end - 1) for end in (change.ratio.low, change.ratio.high))
        figure, ends, unit = change.figure, f", 95 % interval {low:+.1f} to {high:+.1f} %", ""
    return (
        f"{figure}: {after}{unit} against {before}, {change.percent:+.2f} %{ends}: beyond {factor:g} times the baseline"
    )
