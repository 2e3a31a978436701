"""The root of the second cgroup hierarchy, which every socket is beneath, whether it is mounted anywhere or not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

from hwrx.errors import MachineError

# asm-generic/unistd.h, the same on every architecture; linux/mount.h
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
FSCONFIG_CMD_CREATE, CLOEXEC = 6, 1
MOUNTS = Path("/proc/self/mounts")
_OCTAL = re.compile(r"\\([0-7]{3})")  # how a blank in a path is written there
_libc = ctypes.CDLL(None, use_errno=True)


def find_hierarchy() -> Path:
    """Return where the second cgroup hierarchy is mounted: /sys/fs/cgroup, or beside the first one's (hybrid).

    :raises MachineError: if it is mounted nowhere that this process reaches
    """
    for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        folder = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), words[1]))
        # a mount may be hidden beneath another one, and is listed all the same
        if words[2] == "cgroup2" and (folder / "cgroup.controllers").exists():
            return folder
    raise MachineError(
        "the second cgroup hierarchy is mounted nowhere", remedy="as root: mount -t cgroup2 none /sys/fs/cgroup"
    )


@contextlib.contextmanager
def opened_root() -> Iterator[int]:
    """Open the root. If it is mounted nowhere, a mount that nobody else sees is made, and goes with its descriptor.

    :return: a descriptor of the folder, closed on leaving
    :raises MachineError: if there is none, or mounting is not allowed
    """
    with contextlib.ExitStack() as stack:
        try:
            try:
                path = find_hierarchy()
            except MachineError:
                path = Path(f"/proc/self/fd/{_mount_apart(stack)}")
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise MachineError(
                f"the second cgroup hierarchy cannot be opened: {error.strerror}",
                remedy="as root, on a kernel with CONFIG_CGROUPS; in a container: mount -t cgroup2 none /sys/fs/cgroup",
            ) from None
        stack.callback(os.close, descriptor)
        yield descriptor


def _mount_apart(stack: contextlib.ExitStack) -> int:
    """fsopen(2), fsconfig(2), fsmount(2): a mount that is attached to no folder."""
    context = _call(FSOPEN, b"cgroup2", CLOEXEC)
    stack.callback(os.close, context)
    _call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
    mount = _call(FSMOUNT, context, CLOEXEC, 0)
    stack.callback(os.close, mount)
    return mount


def _call(number: int, *arguments: bytes | int | None) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
