"""Being in another network namespace, for a while or for good: the calling thread only."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from hwrx.errors import MachineError, UsageError
from hwrx.host.outside import check_name

NAMED = Path("/run/netns")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def namespace_names() -> list[str]:
    """Return the namespaces that have a name (`ip netns`)."""
    return sorted(path.name for path in NAMED.iterdir()) if NAMED.is_dir() else []


@contextlib.contextmanager
def entered_namespace(name: str | None) -> Iterator[None]:
    """Let this thread be in the namespace called `name`, or a process's given by its PID; None: where it is.

    Sockets made inside stay in the namespace. UsageError where there is none of that name, MachineError where entering
    is not allowed.
    """
    if name is None:
        yield
        return
    target = _open(name)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set(target, name)
        try:
            yield
        finally:
            _set(home, "the one before")
    finally:
        os.close(target)
        os.close(home)


def enter_namespace(name: str) -> None:
    """Move this thread into the namespace called `name` for good; /sys stays what it was. Raises as above."""
    target = _open(name)
    try:
        _set(target, name)
    finally:
        os.close(target)


def _open(name: str) -> int:
    check_name(name, "network namespace", remedy="ip netns list")
    path = Path("/proc", name, "ns/net") if name.isdecimal() else NAMED / name
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        there = ", ".join(namespace_names()) or "none has a name here"
        raise UsageError(f"there is no network namespace '{name}'", remedy=f"ip netns list: {there}") from None
    except OSError as error:
        raise MachineError(
            f"the network namespace '{name}' cannot be opened: {error.strerror}", remedy="run it as root"
        ) from None


def _set(descriptor: int, name: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) < 0:
        code = ctypes.get_errno()
        raise MachineError(
            f"the network namespace '{name}' cannot be entered: {os.strerror(code)}", remedy="run it as root"
        )
