"""Which kernel of a list is the first bad one, in as few boots as can be; and whether one that was just built is bad.

Of n kernels the first is good and the last is bad, as the user says. The good one is measured, for what the others are
held against, and then the middle of what is left, as `git bisect` does: 1 + log2(n - 1) boots, 5 for 17 kernels. The
bad one is measured only if it comes out as the first bad one. A kernel that cannot boot is passed over.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from hwrx.campaign import measuring
from hwrx.campaign.condition import Condition, NoFigureError
from hwrx.errors import GuestError, HwrxError, PeerError, UsageError
from hwrx.lab import kernel, kernel_needs
from hwrx.report.headline import Headline, headlines_of
from hwrx.report.moved import Moved
from hwrx.report.reported import ReportedRun
from hwrx.runs import experiment as experiments
from hwrx.runs.experiment import Experiment
from hwrx.runs.testbed import Wanted

Verdict = Literal["good", "bad", "skip"]
GOOD, BAD, SKIP, ABORT = 0, 1, 125, 128  # what `git bisect run` makes of an exit code; see git-bisect(1)


class Judged(Struct, frozen=True, kw_only=True):
    """A kernel that was looked at. `ratio`: of its figure to the good one's."""

    kernel: str
    verdict: Verdict
    value: float
    ratio: float
    reason: str = ""  # of one that was passed over


class Found(Struct, frozen=True, kw_only=True):
    """Where the change is: between `last_good` and `first_bad`. `between`: kernels that could not be looked at."""

    condition: str
    last_good: str
    first_bad: str
    between: list[str]
    boots: int
    judged: list[Judged]  # in the order in which they were
    moved: list[Moved] = []


class AbortError(HwrxError):
    """What ends a `git bisect run`: it would be the same with every commit."""

    exit_code = ABORT


def find_first_bad(count: int, judge: Callable[[int], Verdict]) -> tuple[int, int]:
    """Return the last good and the first bad of `count` things of which the first is good and the last is bad.

    :param judge: says of a place what is there. It is asked of the last only if all before it are good, or skipped.
    :raises UsageError: if the last one turns out to be good.
    """
    low, high = 0, count - 1
    skipped: set[int] = set()
    while left := [place for place in range(low + 1, high) if place not in skipped]:
        middle = min(left, key=lambda place: abs(2 * place - low - high))
        verdict = judge(middle)
        if verdict == "skip":
            skipped.add(middle)
        elif verdict == "bad":
            high = middle
        else:
            low = middle
    if high == count - 1:
        last = judge(high)
        if last != "bad":
            raise UsageError(
                "the kernel that is said to be bad " + ("is good" if last == "good" else "cannot be looked at"),
                remedy="another --bad, or another --test",
            )
    return low, high


class Search:
    """A search over kernels, with what was found of each."""

    def __init__(
        self, kernels: Sequence[str], condition: Condition, measure: Callable[[int], tuple[list[Headline], str]]
    ) -> None:
        """Take a list of kernels, the good one first.

        :param measure: boots a kernel of the list; returns its figures, or none and why.
        """
        self._kernels = kernels
        self._condition = condition
        self._measure = measure
        self.judged: list[Judged] = []

    def carry_out(self) -> Found:
        """Search.

        :raises UsageError: if the condition does not tell the good kernel from the bad one.
        :raises HwrxError: if the good kernel cannot be measured.
        """
        figures, reason = self._measure(0)
        if not figures:
            raise HwrxError(f"the good kernel {self._kernels[0]} cannot be measured: {reason}")
        reference = self._condition.value(figures)
        value, _ = self._condition.values(reference, reference)
        wrong = self._condition.is_bad(reference, reference)
        self._note(0, "bad" if wrong else "good", value, 1.0)
        if wrong:
            raise UsageError(
                f"the good kernel {self._kernels[0]} is bad by '{self._condition.text}': its figure is {value:,.6g}",
                remedy="another --good, or another --test",
            )
        low, high = find_first_bad(len(self._kernels), lambda place: self._judge(place, reference))
        return Found(
            condition=self._condition.text,
            last_good=self._kernels[low],
            first_bad=self._kernels[high],
            between=list(self._kernels[low + 1 : high]),
            boots=len(self.judged),
            judged=self.judged,
        )

    def _judge(self, place: int, reference: Headline) -> Verdict:
        figures, reason = self._measure(place)
        try:
            if not figures:
                raise NoFigureError(reason)
            found = self._condition.value(figures)
            value, held = self._condition.values(found, reference)
            verdict: Verdict = "bad" if self._condition.is_bad(found, reference) else "good"
        except NoFigureError as error:
            self._note(place, "skip", float("nan"), float("nan"), str(error))
            return "skip"
        self._note(place, verdict, value, value / held)
        return verdict

    def _note(self, place: int, verdict: Verdict, value: float, ratio: float, reason: str = "") -> None:
        self.judged.append(
            Judged(kernel=self._kernels[place], verdict=verdict, value=value, ratio=ratio, reason=reason)
        )


def between(kernels: Sequence[str], good: str, bad: str) -> list[str]:
    """Return the kernels of a list from the good one to the bad one, whichever is first on it.

    :raises UsageError: if one is not on the list, or both are one.
    """
    places = []
    for name in (good, bad):
        fits = [place for place, each in enumerate(kernels) if each in (name, f"{name}-amd64")]
        if not fits:
            raise UsageError(
                f"the kernel {name} is not on the list of --kernels", remedy=f"one of: {', '.join(kernels)[:1500]}"
            )
        places.append(fits[0])
    if places[0] == places[1]:
        raise UsageError(f"{good} is to be good and bad", remedy="two kernels: --good K --bad K")
    step = 1 if places[0] < places[1] else -1
    return [kernels[place] for place in range(places[0], places[1] + step, step)]


def judge_build(
    experiment: Experiment,
    condition: Condition,
    *,
    build: str,
    tree: Path,
    reference: Path | None,
    runs: Path,
    progress: measuring.Progress,
) -> tuple[int, str]:
    """Build the kernel of a git tree, measure it, and return what `git bisect run` is to hear, and why.

    :param build: a command of the user's, for the shell, in the tree.
    :param reference: a run on the good kernel, if the condition is about its figures.
    :raises AbortError: if it would be the same with every commit.
    """
    held = _reference(condition, reference)
    progress.stage("build", build)
    done = subprocess.run(build, shell=True, cwd=tree, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        return SKIP, f"the build failed (exit code {done.returncode})"
    built = f"{tree.resolve()}/"
    try:
        kernel_needs.need_bootable(kernel.find_kernel(built), [experiment.topology])
    except HwrxError as error:
        return SKIP, str(error)
    try:
        mine = experiments.override_experiment(experiment, kernel=built)
        layout = measuring.settle_plan(mine, Wanted(), progress.stage)
        outcome, directory = measuring.measure_plan(layout, Wanted(), runs, progress=progress)
        if outcome.failed:
            return SKIP, f"a trial failed: {outcome.failed[0]}"
        found = condition.value(headlines_of(ReportedRun.open(directory).summary()))
        value, reference_value = condition.values(found, held)
        bad = condition.is_bad(found, held)
    except (GuestError, PeerError, NoFigureError) as error:  # it does not come up, or not through its trials
        return SKIP, str(error)
    except HwrxError as error:
        raise AbortError(str(error)) from error
    ratio = f", {value / reference_value:.4f} times the good one's" if condition.relative else ""
    return (BAD if bad else GOOD), f"{condition.text}: {value:,.6g}{ratio}"


def _reference(condition: Condition, run: Path | None) -> Headline | None:
    if not condition.relative:
        return None
    if run is None:
        raise AbortError(
            f"'{condition.text}' is about the good kernel's figure, and no run on it is given",
            remedy="hwrx compare EXPERIMENT --kernel ~/linux at the good commit, then --reference RUN; or a unit in "
            "--test",
        )
    try:
        return condition.value(headlines_of(ReportedRun.open(run).summary()))
    except HwrxError as error:
        raise AbortError(f"--reference {run}: {error}") from error
