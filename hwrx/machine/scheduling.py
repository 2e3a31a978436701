"""How the kernel's scheduler treats the two ends of a trial: one state for all of its messages, or as it comes.

Under SCHED_OTHER (`normal`) a thread that is woken interrupts the one that runs, or does not, as their past shares of
the CPU have it. On one CPU a sender then finds the answer without having gone to sleep, or it does not, for a whole
trial, and that is a thousand instructions a message. Under SCHED_BATCH (`batch`) an end interrupts nobody.

The kernel's own threads (ksoftirqd, the workers of rxe) are SCHED_OTHER, and interrupt an end by the same history; and
later kernels place a thread that wakes, and leave one queued that goes to sleep, by that history, too. In a guest of
the lab `batch` therefore also switches off those features of the scheduler (kernel/sched/features.h). On any other
machine they are not touched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

FEATURES = Path("/sys/kernel/debug/sched/features")
# PLACE_LAG came with commit 86bfbb7ce4f6 (sched/fair: Add lag based placement), DELAY_DEQUEUE with 152e11f6df29
# (sched/fair: Implement delayed dequeue)
BY_HISTORY = ("WAKEUP_PREEMPTION", "DELAY_DEQUEUE", "PLACE_LAG")


@contextlib.contextmanager
def scheduled_as(policy: str) -> Iterator[None]:
    """Let this thread run under a policy of sched(7): `normal`, or `batch`."""
    if policy == "normal":
        yield
        return
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


def settle_features(policy: str, file: Path = FEATURES) -> list[str]:
    """In a guest of the lab, let the features be as a policy needs them; return those that were switched off.

    `batch`: what goes by history is off. `normal`: it is on, also if an agent was killed before it could do that.
    """
    if os.environ.get("HWRX_IN_GUEST") != "1":
        return []
    if policy == "normal":
        switch_features_on(features_off(file), file)
        return []
    found = [name for name in BY_HISTORY if name in _words(file)]
    for name in found:
        file.write_text(f"NO_{name}", encoding="utf-8")
    return found


def switch_features_on(names: Iterable[str], file: Path = FEATURES) -> None:
    """Switch on again what `settle_features` returned."""
    for name in names:
        file.write_text(name, encoding="utf-8")


def features_off(file: Path = FEATURES) -> list[str]:
    """Return which of the features that go by history are off; none if the kernel does not tell."""
    words = _words(file)
    return [name for name in BY_HISTORY if f"NO_{name}" in words]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:  # not root, no debugfs, a kernel without CONFIG_SCHED_DEBUG
        return []
