"""Which processes hold a socket: every descriptor beneath /proc that names its inode."""

from __future__ import annotations

import contextlib
import pwd
from collections.abc import Collection
from pathlib import Path

from msgspec import Struct

from hwrx.host.outside import clean_name


class Owner(Struct, frozen=True):
    """A process that has the socket open, under which descriptor."""

    pid: int
    descriptor: int
    name: str


def owners_of(inodes: Collection[int]) -> dict[int, list[Owner]]:
    """Return the owners of each inode. Processes of others are seen by root alone, and those that end are passed over.

    A socket of the kernel's own (rxe's, a tunnel's) has no owner.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, list[Owner]] = {inode: [] for inode in inodes}
    for folder in Path("/proc").glob("[0-9]*") if wanted else ():
        with contextlib.suppress(OSError):
            for entry in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = wanted.get(str(entry.readlink()))
                    if inode is not None:
                        name = clean_name((folder / "comm").read_bytes().removesuffix(b"\n"))
                        found[inode].append(Owner(int(folder.name), int(entry.name), name))
    return found


def user_of(uid: int) -> str:
    """Return a user's name, or the number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
