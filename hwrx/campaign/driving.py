"""A campaign from its first cell to its last: what is to be done, by an engine, written down as it goes.

A cell that fails is a cell: the others go on. What was under way when the driver was killed is found by its result, or
still running (on a cluster), or is attempted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from hwrx.campaign.book import Attempt, Book, Standing, time_now
from hwrx.campaign.cells import Cell
from hwrx.campaign.engines import Engine, UnansweredError, Work
from hwrx.errors import HwrxError, MachineError, UsageError
from hwrx.host.outside import clean_text
from hwrx.runs import experiment as experiments
from hwrx.runs import planning, testbed
from hwrx.runs.experiment import Experiment
from hwrx.runs.planning import Plan
from hwrx.runs.testbed import Wanted

ATTEMPTS = 2  # of a cell whose attempt left no result, or failed in a way that another time might not
INTERRUPTED = "interrupted"  # what an attempt says that its driver ended: it does not count
_APPEARS_WITHIN = 5.0  # seconds: a file that another node has written, on a file system that both share
_TOLD_EVERY = 1.0

Settle = Callable[[Experiment, Wanted, Callable[[str, str], None]], Plan]
Told = Callable[[int, int, str], None]  # cells that ended, of all, and a line


def drive_campaign(
    book: Book,
    engine: Engine,
    told: Told,
    *,
    retry: bool = False,
    attempts: int = ATTEMPTS,
    only: set[int] | None = None,
) -> None:
    """Carry out all cells that have not ended, and return when all have.

    :param book: whose process this is the only one to drive (`Book.driven`).
    :param told: is told how far the campaign is, each time a cell begins or ends.
    :param retry: attempt cells that have failed before once more.
    :param attempts: of a cell that is not known to fail each time.
    :param only: numbers of the cells to carry out; None: all.
    :raises KeyboardInterrupt: passed on, when all cells that were under way have ended, or cannot be ended.
    :raises UnansweredError: if the engine cannot say how its jobs are: they go on, and stay running in the book.
    """
    drive = _Drive(book, engine, told, attempts, only)
    drive.take_up(retry=retry)
    try:
        drive.carry_out()
    except UnansweredError:
        raise  # the jobs are not ours to end: who asks again later finds them
    except BaseException:
        drive.leave()
        raise
    book.content.ended = time_now()
    book.save()


class _Drive:
    def __init__(self, book: Book, engine: Engine, told: Told, attempts: int, only: set[int] | None) -> None:
        self._book = book
        self._engine = engine
        self._told = told
        self._attempts = attempts
        self._only = only
        self._missing: dict[int, float] = {}  # cell -> since when its job has ended without a result

    def take_up(self, *, retry: bool) -> None:
        """Bring the book up to what is there: results of cells that were under way, jobs that still are."""
        running = [each for each in self._cells if each.state == "running"]
        # processes of this machine have ended with the driver that started them
        there = self._engine.standing([each.attempts[-1].job for each in running])
        for each in running:
            if self._book.result(each) is None and each.attempts[-1].job not in there:
                self._close(each, INTERRUPTED)
                each.state = "planned"
        for each in self._cells:
            if each.state == "failed" and retry:
                each.state, each.reason = "planned", ""
        self._book.content.ended = ""
        self._book.content.engine = self._engine.name
        self._book.save()

    def carry_out(self) -> None:
        """Start cells as there is room, and see to those that have ended."""
        told = 0.0
        while True:
            changed = self._start()
            changed |= self._look()
            if changed:
                self._book.save()
            running = [each for each in self._cells if each.state == "running"]
            if changed or (running and time.monotonic() - told > _TOLD_EVERY):
                told = time.monotonic()
                self._tell(running)
            if not running and not self._planned():
                return
            time.sleep(self._engine.looks_every)

    def leave(self) -> None:
        """End what is under way, and write down that it was. What could not be ended is still running."""
        running = [each for each in self._cells if each.state == "running"]
        going = self._engine.end([each.attempts[-1].job for each in running])
        for each in running:
            if self._book.result(each) is None and each.attempts[-1].job not in going:
                self._close(each, INTERRUPTED)
                each.state = "planned"
        self._book.save()

    @property
    def _cells(self) -> list[Standing]:
        return self._book.content.cells

    def _planned(self) -> list[Standing]:
        mine = [each for each in self._cells if self._only is None or each.cell.number in self._only]
        return [each for each in mine if each.state == "planned"]

    def _start(self) -> bool:
        take = self._planned()[: max(0, self._engine.room())]
        if not take:
            return False
        for each in take:  # a driver that is killed now does not give their numbers, and folders, a second time
            each.attempts.append(Attempt(job="", began=time_now()))
            each.state = "running"
        self._book.save()
        work = [
            Work(cell=self._book.folder(each.cell).resolve(), attempt=len(each.attempts), host=each.cell.host)
            for each in take
        ]
        for each, job in zip(take, self._engine.start(work), strict=True):
            each.attempts[-1].job = job
        self._book.save()  # before anything is asked of them: a driver that ends now leaves jobs that are found again
        return True

    def _look(self) -> bool:
        """See which cells have ended."""
        running = [each for each in self._cells if each.state == "running"]
        there = self._engine.standing([each.attempts[-1].job for each in running])
        changed = False
        for each in running:
            attempt = each.attempts[-1]
            where = there.get(attempt.job)
            if where and where != attempt.where:
                attempt.where, changed = where, True
            result = self._book.result(each)
            if result is not None:
                self._close(each, result.error)
                again = result.state == "failed" and not result.lasting and self._may_try(each)
                each.state = "planned" if again else result.state
                each.reason = "" if again else result.error
            elif where is not None:
                self._missing.pop(each.cell.number, None)
                continue
            elif time.monotonic() - self._missing.setdefault(each.cell.number, time.monotonic()) < _APPEARS_WITHIN:
                continue
            else:
                self._close(each, f"it ended without a result: {last_words(self._book.attempt_folder(each))}")
                again = self._may_try(each)
                each.state = "planned" if again else "failed"
                each.reason = "" if again else each.attempts[-1].error
            self._missing.pop(each.cell.number, None)
            changed = True
        return changed

    def _may_try(self, each: Standing) -> bool:
        return sum(attempt.error != INTERRUPTED for attempt in each.attempts) < self._attempts

    def _close(self, each: Standing, error: str) -> None:
        each.attempts[-1].ended = time_now()
        each.attempts[-1].error = error

    def _tell(self, running: Sequence[Standing]) -> None:
        ended = sum(each.state in ("done", "failed", "left out") for each in self._cells)
        words = [f"{each.cell.name} ({last_words(self._book.attempt_folder(each), 40)})" for each in running[:2]]
        words += [f"and {len(running) - 2} more"] if len(running) > 2 else []
        self._told(ended, len(self._cells), "; ".join(words))


def take_apart(book: Book, engine: Engine, wanted: Mapping[int, Sequence[str]], told: Told) -> None:
    """Take messages of cells apart, and return when that has been done or has failed: each leaves its result.

    :param wanted: labels of settings, by the number of the cell.
    """
    left = [_anatomy_work(book, number, labels) for number, labels in wanted.items()]
    all_of_it = len(left)
    under_way: dict[str, Work] = {}
    try:
        while left or under_way:
            take = left[: max(0, engine.room())]
            left = left[len(take) :]
            under_way |= zip(engine.start(take), take, strict=True) if take else {}
            there = engine.standing(list(under_way))
            under_way = {job: work for job, work in under_way.items() if job in there}
            names = [f"anatomy of {work.cell.name} ({last_words(work.folder, 40)})" for work in under_way.values()]
            told(all_of_it - len(left) - len(under_way), all_of_it, "; ".join(names[:2]))
            time.sleep(engine.looks_every)
    finally:
        engine.end(list(under_way))


def _anatomy_work(book: Book, number: int, labels: Sequence[str]) -> Work:
    cell = book.content.cells[number - 1].cell
    folder = book.folder(cell).resolve()
    return Work(cell=folder, attempt=len(list(folder.glob("anatomy-*"))) + 1, host=cell.host, labels=tuple(labels))


class Able(Struct, frozen=True, kw_only=True):
    """A cell that can run: how many guests of one CPU it boots at a time, and whether it counts their instructions."""

    guests: int
    counted: bool


def leave_out(book: Book, settle: Settle, say: Callable[[str, str], None]) -> list[Able]:
    """Find the cells that cannot run, as far as that is known before anything is downloaded or booted.

    They are left out, with the reason. One that was left out before is looked at again: what it lacked may be there.

    :param settle: lays out the trials of an experiment (`hwrx.campaign.measuring.settle_plan`).
    :return: the cells that can run and are not done, in order: those under way, and those that failed, among them.
    """
    able = []
    for standing in book.content.cells:
        if standing.state == "left out":
            standing.state, standing.reason = "planned", ""
        if standing.state == "done":
            continue
        found = plan_or_reason(standing.cell, settle, say)
        if isinstance(found, Plan):
            counted = found.experiment.clock == "icount" and testbed.in_guest(found.experiment, Wanted())
            able.append(Able(guests=len(planning.boots_of(found)), counted=counted))
        elif standing.state == "planned":
            standing.state, standing.reason = "left out", found
    return able


def plan_or_reason(cell: Cell, settle: Settle, say: Callable[[str, str], None]) -> Plan | str:
    """Return the plan of a cell, or why it cannot run, as far as that is known now."""
    experiment = experiments.parse_experiment(cell.experiment, source=cell.name)
    try:
        return settle(experiment, Wanted(), say)
    except (UsageError, MachineError) as error:
        return str(error)


def need_some(book: Book) -> None:
    """See that there is a cell that can run.

    :raises HwrxError: if all are left out; it has the first one's reason.
    """
    cells = book.content.cells
    if all(each.state == "left out" for each in cells):
        raise UsageError(f"none of the {len(cells)} cells can run; {cells[0].cell.name}: {cells[0].reason}")


def failures(book: Book) -> HwrxError | None:
    """Return the error that a campaign ends with if cells of it failed, None if none did."""
    failed = [each for each in book.content.cells if each.state == "failed"]
    if not failed:
        return None
    first = failed[0]
    return HwrxError(
        f"{len(failed)} of {len(book.content.cells)} cells failed, the first, {first.cell.name}: "
        f"{first.reason.splitlines()[0] if first.reason else ''}",
        remedy=f"each has its log in {book.path}/cells; --retry attempts them once more",
    )


def last_words(attempt: Path, room: int = 300) -> str:
    """Return the last line of an attempt's log, as far as there is room for it."""
    try:
        with (attempt / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - 4096))
            text = log.read().decode(errors="replace")
    except OSError:
        return "it said nothing"
    return clean_text(
        next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing"),
        most=room,
        lines=False,
    )
