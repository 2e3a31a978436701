"""How to undo what was done to the machine: written down before it is done, so that anybody can, also after a kill.

Each `Undo` has a journal beneath /run/hwrx that names its process. Leaving the context undoes what the journal says. If
the process was killed, the next one that starts an `Undo` does it (`mend`), and so does `hwrx lab down`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from hwrx.errors import MachineError
from hwrx.host import tools

JOURNALS = Path("/run/hwrx")
SYSCTL = Path("/proc/sys")


class Journal(Struct):
    """What a process changed. `started` tells it from a later one with the same pid."""

    pid: int
    started: int
    what: str
    entries: list[list[str]]  # commands that undo, or `sysctl NAME VALUE`, in the order of doing


class Undo:
    """A context that undoes, backwards, what was planned in it.

    An entry that has become impossible (the link went with its namespace) is passed over: undoing is about what is
    left.
    """

    def __init__(self, what: str) -> None:
        self.token = f"{os.getpid()}-{os.urandom(2).hex()}"  # for names: says whose they are, and is unique
        self._path = JOURNALS / f"{self.token}.json"
        self._journal = Journal(os.getpid(), process_start(os.getpid()) or 0, what, [])

    def __enter__(self) -> Self:
        mend_leftovers()
        return self

    def __exit__(self, *exc: object) -> None:
        with hold_signals():
            undo_journal(self._journal)
            self._path.unlink(missing_ok=True)

    def plan(self, *command: str) -> None:
        """Write down how to undo what is done next."""
        self._journal.entries.append(list(command))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(self._journal))
        draft.rename(self._path)

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl, named by its path below /proc/sys, and plan to set it back."""
        file = SYSCTL / name
        try:
            before = file.read_text().strip()
            if before != value:
                self.plan("sysctl", name, before)
                file.write_text(value)
        except OSError as error:
            raise MachineError(f"cannot set the sysctl {name} to {value}: {error.strerror}") from None


def mend_leftovers() -> list[str]:
    """Undo what processes that are dead have left behind; returns a line for each."""
    mended = []
    for path in sorted(JOURNALS.glob("*.json")) if JOURNALS.is_dir() else []:
        try:
            journal = msgspec.json.decode(path.read_bytes(), type=Journal)
        except (OSError, msgspec.MsgspecError):
            continue  # gone meanwhile, or of another version
        if process_start(journal.pid) != journal.started:
            undo_journal(journal)
            path.unlink(missing_ok=True)
            mended.append(f"{journal.what}, left by process {journal.pid}")
    return mended


def undo_journal(journal: Journal) -> None:
    """Carry the entries out, last first."""
    for command in reversed(journal.entries):
        if command[0] == "sysctl":
            with contextlib.suppress(OSError):  # of a netdev that is gone
                (SYSCTL / command[1]).write_text(command[2])
        else:
            with contextlib.suppress(MachineError):  # the thing is gone already
                tools.run_tool(*command)


def process_start(pid: int) -> int | None:
    """Return when a process was started, in ticks since boot (field 22 of /proc/PID/stat); None where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the second field, the name in parentheses, may hold anything, blanks and parentheses too
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(rest[18])


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let a second Ctrl-C or SIGTERM wait: what is being taken down is taken down whole."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
