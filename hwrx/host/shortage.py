"""What mends that the kernel has refused something for want of something else: descriptors, processes, memory, room."""

from __future__ import annotations

import errno


def shortage_remedy(code: int | None) -> str:
    """Return what to type where an error's number says that something is short; "" if it says something else."""
    if code in (errno.EMFILE, errno.ENFILE):
        return "more open files are needed than are allowed: ulimit -n 1024"
    if code == errno.EAGAIN:
        return "more processes are needed than are allowed: ulimit -u, or pids.max of the control group"
    if code == errno.ENOMEM:
        return "there is no memory for it: end what else runs"
    if code == errno.ENOSPC:
        return "the disk is full: df -h"
    return ""
