"""How a machine's clock is kept: by what, and what the kernel itself takes its error for.

hwrx never subtracts the clock of one machine from another's: times of two hosts are compared by round trips alone. What
is said here is for those who want to know how far apart two hosts' clocks may be.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

Timekeeping = dict[str, Any]  # what `describe_timekeeping` returns
KEEPERS = ("ptp4l", "phc2sys", "ts2phc", "chronyd", "ntpd", "systemd-timesyn")  # names of processes, cut at 15
STA_UNSYNC, STA_NANO = 0x0040, 0x2000  # <linux/timex.h>


class _Timex(ctypes.Structure):
    """`struct timex` of <linux/timex.h>; the rest of it, beyond what is read here, is padding."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def describe_timekeeping(root: Path = Path("/")) -> Timekeeping:
    """Return how this machine's clock is kept.

    :return: `synchronised` (None: the kernel does not say), `max_error_us` and `offset_ns` of adjtimex(2), the
        `keepers` that run, and `hardware_clocks`, the PTP clocks that there are
    """
    found: dict[str, Any] = {
        "synchronised": None,
        "max_error_us": None,
        "offset_ns": None,
        "keepers": _find_keepers(root),
        "hardware_clocks": sorted(path.name for path in (root / "sys/class/ptp").glob("ptp*")),
    }
    state = _Timex()  # modes 0: nothing is set
    if ctypes.CDLL(None).adjtimex(ctypes.byref(state)) >= 0:
        found["synchronised"] = not state.status & STA_UNSYNC
        found["max_error_us"] = int(state.maxerror)
        found["offset_ns"] = int(state.offset) * (1 if state.status & STA_NANO else 1000)
    return found


def timekeeping_words(found: Timekeeping) -> str:
    """Say in a few words how a clock is kept."""
    if not found:
        return "not known"
    keepers = ", ".join(found.get("keepers", [])) or "nothing"
    if not found.get("synchronised"):
        return f"not synchronised; kept by {keepers}"
    return f"synchronised to ±{found['max_error_us']} µs as the kernel has it, kept by {keepers}"


def _find_keepers(root: Path) -> list[str]:
    names = set()
    for entry in os.scandir(root / "proc"):
        if entry.name.isdecimal():
            try:
                names.add(Path(entry.path, "comm").read_text(encoding="utf-8", errors="replace").strip())
            except OSError:
                continue
    return [keeper for keeper in KEEPERS if keeper in names]
