"""How to undo what was done to the machine: written down before it is done, so that anybody can, also after a kill.

Each `Undo` has a journal beneath /run/hwrx that names its process. Leaving the context undoes what the journal says. If
the process is killed, its keeper does it: a shell that waits for the end of a pipe whose other end is the process's, so
that it ends only after that, and that costs nothing meanwhile. If the keeper was killed, too, the next one that starts
an `Undo` does it (`mend_leftovers`), and so does `hwrx lab down`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from hwrx.errors import HwrxError, MachineError
from hwrx.host import tools
from hwrx.host.decoding import UNREADABLE
from hwrx.host.interruption import hold_signals
from hwrx.host.processes import process_start

JOURNALS = Path("/run/hwrx")
SYSCTL = Path("/proc/sys")
DIES_WITHIN = 10.0  # seconds between the end of a process's descriptors and its own
# $1: folder of journals, $2: pid, then what undoes, with both. `read` is the shell's own: there may be no PATH
KEEPER = (
    "trap '' INT TERM HUP QUIT; cd /; while read -r line; do :; done; "
    'journals=$1 pid=$2; shift 2; for each in "$journals/$pid"-*.json; do '
    'if [ -e "$each" ]; then exec "$@" "$journals" "$pid"; fi; done'
)


class Journal(Struct):
    """What a process changed. `started` tells it from a later one with the same pid.

    `spaces` are the PID and the network namespace that pid and commands mean: elsewhere they mean something else.
    """

    pid: int
    started: int
    what: str
    entries: list[list[str]]  # commands that undo, `sysctl NAME VALUE` or `call MODULE FUNCTION ARG…`, as done
    spaces: list[str] = []


class Undo:
    """A context that undoes, backwards, what was planned in it.

    An entry that has become impossible (the link went with its namespace) is passed over: undoing is about what is
    left.
    """

    def __init__(self, what: str) -> None:
        self.token = f"{os.getpid()}-{os.urandom(2).hex()}"  # for names: says whose they are, and is unique
        self._path = JOURNALS / f"{self.token}.json"
        self._journal = Journal(os.getpid(), process_start(os.getpid()) or 0, what, [], _spaces())
        self._here: dict[int, Callable[[], object]] = {}  # entry to what this process itself does instead

    def __enter__(self) -> Self:
        mend_leftovers()
        return self

    def __exit__(self, *exc: object) -> None:
        with hold_signals():
            try:
                undo_journal(self._journal, self._here)
            finally:
                self._path.unlink(missing_ok=True)

    def plan(self, *command: str, here: Callable[[], object] | None = None) -> None:
        """Write down how to undo what is done next.

        :param command: what undoes it, whoever does it.
        :param here: what this process does instead, if it comes to that; its errors leave the context.
        :raises MachineError: if it cannot be written down. Nothing is to be done then.
        """
        if here is not None:
            self._here[len(self._journal.entries)] = here
        self._journal.entries.append(list(command))
        draft = self._path.with_suffix(".new")
        try:
            own_folder(self._path.parent)
            draft.write_bytes(msgspec.json.encode(self._journal))
            draft.chmod(0o600)  # whatever the umask: what others may have written is not executed
            draft.rename(self._path)
        except OSError as error:
            self._journal.entries.pop()
            raise MachineError(
                f"how to undo {self._journal.what} cannot be written down: {error.strerror} ({error.filename})",
                remedy=f"make room beneath {JOURNALS.parent}, and let root write there",
            ) from None
        _start_keeper()

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl, named by its path below /proc/sys, and plan to set it back."""
        file = SYSCTL / name
        try:
            before = file.read_text(encoding="utf-8").strip()
            if before != value:
                self.plan("sysctl", name, before)
                file.write_text(value)
        except OSError as error:
            raise MachineError(f"cannot set the sysctl {name} to {value}: {error.strerror}") from None


def own_folder(folder: Path) -> None:
    """Make a folder beneath /run, or see that nobody else may write to the one that is there.

    :raises MachineError: if somebody else may: root would carry out what they put there.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise MachineError(
            f"{folder} is not this user's alone, and what is undone by what stands there may be anybody's command",
            remedy=f"look at it (ls -ld {folder}; ls -l {folder}), then remove it",
        )


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of this name, and hold it. Its file goes with the context.

    :raises MachineError: if its file cannot be made.
    """
    while True:
        # an ordinary user, in a folder of root's: that it is root's is right
        if path.parent.exists() and not os.access(path.parent, os.W_OK, effective_ids=True):
            raise MachineError(f"cannot make {path}: {path.parent} may not be written to", remedy="run as root")
        try:
            own_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise MachineError(f"cannot make {path}: {error.strerror}", remedy="run as root") from None
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:
                continue  # the one who held it has removed it: the next may hold another file of this name
            stack.callback(path.unlink, missing_ok=True)  # before it is closed
            yield
            return


# --- the keeper ----------------------------------------------------------------------------------------------------

_kept: dict[int, int] = {}  # pid to its end of the pipe: a child that was forked is not its parent


def _start_keeper() -> None:
    """Start the process that outlives this one, once; without a shell there is none, and the next start mends."""
    shell = shutil.which("sh", path="/bin:/usr/bin")
    pid = os.getpid()
    if pid in _kept or shell is None:
        return
    undoes = [sys.executable, "-P", "-m", __name__]
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    try:
        os.posix_spawn(
            shell,
            ["sh", "-c", KEEPER, "hwrx-keeper", str(JOURNALS), str(pid), *undoes],
            {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if Path(path).is_absolute())},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
    finally:
        os.close(theirs)
    _kept[pid] = ours


def need_no_keeper() -> None:
    """Say that what this process leaves behind goes with the machine that it runs in: a guest's first program."""
    _kept[os.getpid()] = -1


def keep_for(pid: int) -> None:
    """What a keeper does after the end of process `pid`'s pipe: wait for its end, then undo what it has left."""
    with contextlib.suppress(OSError):
        deadline = time.monotonic() + DIES_WITHIN
        journals = [journal for _, journal in _journals() if journal.pid == pid]
        while any(_is_alive(journal) for journal in journals) and time.monotonic() < deadline:
            time.sleep(0.01)
    mend_leftovers()


# --- undoing what others have left ---------------------------------------------------------------------------------


def mend_leftovers() -> list[str]:
    """Undo what processes that are dead have left behind in these namespaces; returns a line for each.

    :raises MachineError: if the folder of the journals is not this user's alone.
    """
    mended = []
    for path, journal in _journals():
        if not _is_alive(journal) and _undo_alone(path, journal):
            mended.append(f"{journal.what}, left by process {journal.pid}")
    return mended


def _journals() -> list[tuple[Path, Journal]]:
    """Return what can be read of this user's journals, as far as it means the namespaces that we are in."""
    if os.geteuid() != 0 or not JOURNALS.is_dir() or not any(JOURNALS.glob("*.json")):
        return []  # who is not root has left nothing that only root can undo
    own_folder(JOURNALS)
    found = []
    for path in sorted(JOURNALS.glob("*.json")):
        try:
            journal = msgspec.json.decode(_read_own(path), type=Journal)
        except (OSError, *UNREADABLE):
            continue  # gone meanwhile, of another version, or no journal (`tune` keeps its notes there)
        if not journal.spaces or journal.spaces == _spaces():
            found.append((path, journal))
    return found


def _is_alive(journal: Journal) -> bool:
    return process_start(journal.pid) == journal.started


def _undo_alone(path: Path, journal: Journal) -> bool:
    """Undo a dead process's journal, unless another one does; say whether it was we."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # goes with whoever has it, also if that is killed
        if os.fstat(descriptor).st_nlink == 0:
            return False
        undo_journal(journal)
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _read_own(path: Path) -> bytes:
    """Read a journal, whose commands are about to be executed; OSError unless only this user can have written it."""
    for each in (path.parent, path):
        found = each.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or stat.S_ISLNK(found.st_mode):
            raise PermissionError(f"{each} is not this user's alone")
    return path.read_bytes()


def undo_journal(journal: Journal, here: dict[int, Callable[[], object]] | None = None) -> None:
    """Carry the entries out, last first; `here`: what is called in an entry's place."""
    errors = []
    for number, command in reversed(list(enumerate(journal.entries))):
        if here and number in here:
            try:
                here[number]()
            except HwrxError as error:
                errors.append(error)
        elif command[0] == "sysctl":
            with contextlib.suppress(OSError):  # of a netdev that is gone
                (SYSCTL / command[1]).write_text(command[2])
        elif command[0] == "call":  # in this process: another Python takes a second to start where it is emulated
            with contextlib.suppress(HwrxError, OSError):  # of a NIC that is gone
                getattr(importlib.import_module(command[1]), command[2])(*command[3:])
        else:
            with contextlib.suppress(MachineError):  # the thing is gone already
                tools.run_tool(*command)
    if errors:
        raise errors[0]


def _spaces() -> list[str]:
    """Return the names of the PID and the network namespace of this thread, as `/proc` has them."""
    found = []
    for name in ("pid", "net"):
        with contextlib.suppress(OSError):  # no /proc
            found.append(str(Path(f"/proc/thread-self/ns/{name}").readlink()))
    return found


if __name__ == "__main__":
    JOURNALS = Path(sys.argv[1])
    keep_for(int(sys.argv[2]))
