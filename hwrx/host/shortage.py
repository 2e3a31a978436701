"""What mends that the kernel has refused something for want of something else: descriptors, processes, memory, room."""

from __future__ import annotations

import errno
import resource

FEWEST = 4096  # open files to ask for: an agent takes two


def shortage_remedy(code: int | None) -> str:
    """Return what to type where an error's number says that something is short; "" if it says something else."""
    if code == errno.EMFILE:
        return _more_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    if code == errno.ENFILE:
        return "all programs together have more open files than this machine allows: sysctl fs.file-max"
    if code == errno.EAGAIN:
        return "more processes are needed than are allowed: ulimit -u, or pids.max of the control group"
    if code == errno.ENOMEM:
        return "there is no memory for it: end what else runs"
    if code == errno.ENOSPC:
        return "the disk is full: df -h"
    return ""


def _more_files(soft: int, hard: int) -> str:
    """Say what allows more open files than now, which `soft` says; above `hard` only root may go."""
    wanted = max(FEWEST, 2 * soft)
    if soft != hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    whose = ", and root alone may allow more" if soft == hard else ""
    return f"more open files are needed than the {soft} that are allowed{whose}: ulimit -n {wanted}"
