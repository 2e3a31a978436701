"""Files that are written whole or not at all, and what the file system refuses, in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from hwrx.errors import StoreError
from hwrx.host.processes import process_start

WITHOUT_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of a file system


@contextlib.contextmanager
def replacing_file(target: pathlib.Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is whole and on the disk."""
    fresh = target.with_name(f".{target.name}.part")
    try:
        fresh.unlink(missing_ok=True)  # a killed writer's; or a link that somebody else has put there, to be written to
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def replace_file(target: pathlib.Path, content: bytes) -> None:
    """Put `content` into the place of the file, in one step."""
    with replacing_file(target) as file:
        file.write(content)


def write_new(target: pathlib.Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; StoreError if a link stands in its place."""
    refuse_link(target)
    replace_file(target, content.encode("utf-8") if isinstance(content, str) else content)


def refuse_link(path: pathlib.Path) -> None:
    """StoreError if a file or folder of a run directory is a symbolic link.

    The directory may be somebody else's, and what its links lead to is not to be written.
    """
    if path.is_symlink():
        raise StoreError(
            f"{path} is a symbolic link, and is not written through", remedy="take it away, or write elsewhere: --out"
        )


def check_target(path: pathlib.Path) -> None:
    """StoreError if no file could be written at `path` later; its folder is made. Called before anything is measured.

    A file that is there stays as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC))
        else:  # also a link that leads nowhere yet: its end is made, and taken away again
            end = path.resolve()
            os.close(os.open(end, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            end.unlink()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name; a circle of links
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise StoreError(f"cannot write {path}: {reason}", remedy="choose another file") from error


def append_line(path: pathlib.Path, content: bytes) -> None:
    """Append all of it or nothing."""
    with path.open("r+b", buffering=0) as file:
        before = file.seek(0, io.SEEK_END)
        try:
            written = file.write(content)
            while written < len(content):
                written += file.write(content[written:])
        except OSError:
            file.truncate(before)
            raise


@contextlib.contextmanager
def locked_directory(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder for one writer; StoreError if another has it.

    The lock is the folder's own (flock), so it needs no file, ends with the process however that ends, and stays when
    the folder is renamed. File systems that have no such locks let everybody in.
    """
    with guarded_writes(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise is_locked(folder) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: pathlib.Path, pid: int | None = None) -> StoreError:
    """Say that a run has a writer."""
    who = "another process" if pid is None else f"process {pid}"
    return StoreError(f"run {folder} is still being written by {who}", remedy="wait for it, or stop it")


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, also after a boot or when its number came again."""
    return {"pid": os.getpid(), "boot": _boot(), "began": process_start(os.getpid())}


def still_runs(process: Mapping[str, Any]) -> bool:
    """Whether the process that `this_process` told of still runs; of another machine's nothing is known: False."""
    pid = process.get("pid")
    if not isinstance(pid, int) or not process.get("boot") or process["boot"] != _boot():
        return False
    return process_start(pid) == process.get("began")


def _boot() -> str:
    with contextlib.suppress(OSError):
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def check_place(root: pathlib.Path, need: int) -> None:
    """StoreError if runs cannot be written below `root`, or `need` bytes are more than there is room for."""
    with guarded_writes(root):
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe.{os.getpid()}"
        try:
            replace_file(probe, b"\0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
        room = os.statvfs(root)
    free = room.f_bavail * room.f_frsize
    if free < need:
        raise StoreError(
            f"cannot write the run in {root}: it will take about {need / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free",
            remedy="make room, or choose another place with --runs",
        )


@contextlib.contextmanager
def guarded_writes(path: pathlib.Path) -> Iterator[None]:
    """Turn what the file system says into words."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        remedy = "what was written before it stays readable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"make room, or choose another place with --runs; {remedy}"
        raise StoreError(f"cannot write the run in {path}: {reason_of(error)}", remedy=remedy) from error


def reason_of(error: OSError) -> str:
    """What the system says, without the number."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno == errno.EFBIG:
        return "the limit on the size of a file (ulimit -f) is reached"
    return os.strerror(error.errno).lower() if error.errno else str(error)
