"""What carries cells out: this machine's cores. `hwrx.campaign.slurm` is a cluster's.

Each cell is a process of its own, `hwrx.campaign.inside`, which leaves its result as a file. An engine starts such
processes, says which of them are still there, and ends them; it does not have to know what came of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from hwrx.errors import MachineError, UsageError
from hwrx.host.interruption import hold_signals
from hwrx.runs import lanes
from hwrx.runs.testbed import GUEST_MEMORY

_TAKES_DOWN = 30.0  # seconds: what a cell has put up is taken down within


class Work(Struct, frozen=True, kw_only=True):
    """A cell to attempt: its folder, the attempt's number, and the host that it is for; "" if any will do.

    `labels`: of settings whose messages are to be taken apart; without any the cell is measured.
    """

    cell: Path
    attempt: int
    host: str = ""
    labels: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the attempt leaves what it has."""
        return self.cell / f"{'anatomy' if self.labels else 'attempt'}-{self.attempt}"

    @property
    def command(self) -> list[str]:
        """Words that carry it out."""
        return [sys.executable, "-P", "-m", "hwrx.campaign.inside", str(self.folder), *self.labels]


class UnansweredError(MachineError):
    """An engine cannot say what has become of its jobs. They go on, and it may be asked again later."""


class Engine(Protocol):
    """Carries out cells."""

    name: str
    looks_every: float  # seconds between two questions

    def room(self) -> int:
        """Return how many cells it would take now."""

    def start(self, work: Sequence[Work]) -> list[str]:
        """Start cells; return the name of each one's job."""

    def standing(self, jobs: Sequence[str]) -> dict[str, str]:
        """Return those of the jobs that have not ended, with where each is; "" if it waits.

        :raises UnansweredError: if that cannot be learned.
        """

    def end(self, jobs: Sequence[str]) -> list[str]:
        """End jobs, and return when they have ended; those that are returned could not be ended, and may go on."""


class Local:
    """This machine: as many cells at a time as it has cores and memory for."""

    name = "local"
    looks_every = 0.1

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._there: dict[str, subprocess.Popen[bytes]] = {}

    def room(self) -> int:
        """See Engine."""
        return self._at_once - len(self._there)

    def start(self, work: Sequence[Work]) -> list[str]:
        """See Engine. A cell ends in order if this process ends, however that does (`run_beneath`)."""
        if named := next((each.host for each in work if each.host), ""):
            raise UsageError(
                f"the cell is for the host {named}, and cells run on this machine", remedy="--slurm, or leave out hosts"
            )
        jobs = []
        for each in work:
            each.folder.mkdir(parents=True, exist_ok=True)
            with (each.folder / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    each.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us alone: we end it, once
                )
            jobs.append(str(process.pid))
            self._there[jobs[-1]] = process
        return jobs

    def standing(self, jobs: Sequence[str]) -> dict[str, str]:
        """See Engine."""
        for job in [job for job, process in self._there.items() if process.poll() is not None]:
            del self._there[job]
        return {job: "here" for job in jobs if job in self._there}

    def end(self, jobs: Sequence[str]) -> list[str]:
        """See Engine."""
        mine = [self._there.pop(job) for job in jobs if job in self._there]
        with hold_signals():
            for process in mine:
                process.terminate()
            for process in mine:
                try:
                    process.wait(_TAKES_DOWN)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)
                    process.wait()
        return []


def cells_at_once(guests: int, *, counted: bool, wanted: int | None = None) -> int:
    """Return how many cells this machine carries out at a time.

    :param guests: of one CPU each that a cell boots at a time.
    :param counted: whether cells count instructions. Those that measure time are carried out one after the other: each
        would be in the figures of the others.
    :param wanted: what the user asks for.
    :raises UsageError: if cells that measure time are to run side by side.
    """
    if not counted:
        if wanted is not None and wanted > 1:
            raise UsageError(
                f"--jobs {wanted}: cells that measure time would be in each other's figures",
                remedy='--jobs 1, or clock = "icount", whose figures are the same whatever else the machine does',
            )
        return 1
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0))
    fits = [count for count in range(1, cores + 1) if lanes.has_room(count * guests, GUEST_MEMORY)]
    return max(fits, default=1)
