"""Files that are written whole or not at all, and what the file system refuses, in words."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from hwrx.errors import StoreError

_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM})


@contextlib.contextmanager
def replacing(target: pathlib.Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is whole and on the disk."""
    fresh = target.with_name(f".{target.name}.part")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def replace(target: pathlib.Path, content: bytes) -> None:
    """Put `content` into the place of the file, in one step."""
    with replacing(target) as file:
        file.write(content)


def append(path: pathlib.Path, content: bytes) -> None:
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
def guarded(path: pathlib.Path) -> Iterator[None]:
    """Turn what the file system says into words."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in _FAULTS and not isinstance(
            error, FileNotFoundError | FileExistsError | NotADirectoryError
        ):
            raise
        remedy = "what was written before it stays readable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"make room, or choose another place with --runs; {remedy}"
        raise StoreError(f"cannot write the run in {path}: {reason(error)}", remedy=remedy) from error


def reason(error: OSError) -> str:
    """What the system says, without the number."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if error.errno == errno.EFBIG:
        return "the limit on the size of a file (ulimit -f) is reached"
    return os.strerror(error.errno).lower() if error.errno else str(error)
