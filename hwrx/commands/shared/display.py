"""How far a long command is: a bar on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import threading
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hwrx.host.console import open_console
from hwrx.runs.lanes import LaneCounts


class Display:
    """What a person who waits sees: the stages of getting ready, then a bar over the trials; plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = open_console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
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
        self._counts = LaneCounts()
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
            self._console.print(f"{stage}: {text}", soft_wrap=True)

    def expect(self, lane: str, total: int) -> None:
        """Say how many trials a lane will have."""
        with self._lock:
            self._counts.expect(lane, total)

    def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
        """Say which trial runs, of those that a lane has; what is shown is the sum of all lanes."""
        with self._lock:
            done, total = self._counts.count(lane, done, total)
            self._progress.update(self._task, description=label or "done", completed=done, total=total)
            tenth = done * 10 // max(total, 1)  # one stopped between its last trial and its end has none left
            if not self._console.is_terminal and tenth != self._told:
                self._told = tenth
                self._console.print(f"trial {done} of {total} {label}".rstrip(), soft_wrap=True)

    def cell(self, done: int, total: int, line: str) -> None:
        """Say how many cells of a campaign have ended, and what the others do; elsewhere when one has ended."""
        self._progress.update(self._task, description=line or "done", completed=done, total=total)
        if not self._console.is_terminal and done != self._told:
            self._told = done
            self._console.print(f"cell {done} of {total} ended{f'; {line}' if line else ''}", soft_wrap=True)
