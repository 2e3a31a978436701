"""Waiting until there is something to read, whatever the numbers of the descriptors."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Readable(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """Return it."""


File = TypeVar("File", bound=int | Readable)


def wait_to_read(files: Iterable[File], seconds: float | None) -> list[File]:
    """Wait until one of the files can be read, and return those that can; one that has ended, or is closed, is ready.

    select(2) knows descriptors below 1024 alone (FD_SETSIZE), which an agent at each of some 500 ends uses up.

    :param seconds: after which none is returned; None: never
    """
    poll = select.poll()
    by_number = {file if isinstance(file, int) else file.fileno(): file for file in files}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(None if seconds is None else 1000 * max(0.0, seconds))]
