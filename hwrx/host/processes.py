"""What the kernel says of a process in /proc/PID/stat."""

from __future__ import annotations

import os
import re
from pathlib import Path


def process_start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the boot (field 22 of proc_pid_stat(5)).

    Together with its number that tells it from a later one with the same number. None if there is none, or it has ended
    and waits for its parent.
    """
    fields = _stat_fields(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds: utime and stime of proc_pid_stat(5); 0 if it is gone."""
    fields = _stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat_fields(pid: int) -> list[bytes]:
    """Return the fields behind the name, the state first; none if there is no such process."""
    try:
        # the second field, the name in parentheses, may hold anything, blanks, parentheses and any byte
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def killed_for_memory() -> int:
    """Return how many processes the kernel has ended since it booted because memory was short; 0 if it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0
