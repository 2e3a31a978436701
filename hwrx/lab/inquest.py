"""What became of a guest that comes up, or of a program that was to report: where it stands still, why it ended."""

from __future__ import annotations

import subprocess
import time
from typing import Protocol

from hwrx.errors import GuestError, HwrxError, UsageError

ANSWER = 30.0  # seconds that a guest has for a simple answer
# A guest that comes up uses its CPUs all the time, and prints. One that has used next to nothing for so many seconds,
# or has printed nothing for so many seconds of QEMU's CPU time (however busy the machine is), stands still.
IDLE_SILENCE = 20.0
IDLE_SHARE = 0.02
BUSY_SILENCE = 90.0
TELLING = ("Kernel panic", "BUG:", "Oops", "stall")  # of the lines that a kernel prints before it ends


class Asked(Protocol):
    """A guest that can be asked: to run a program, and for all that it has printed."""

    def run(self, argv: list[str], *, limit: float) -> subprocess.CompletedProcess[str]:
        """Run a program and return its output; GuestError if it does not end within `limit` seconds."""

    def log(self) -> str:
        """Return what its console printed."""


def where_it_stands(guest: Asked, module: str) -> str:
    """Say where a program stands still, as the guest knows it; the guest's log gets more (SysRq w: who is blocked).

    To be asked when there is nothing left to disturb.
    """
    # each thread of the program, and where in the kernel it sleeps (0: it does not)
    asked = (
        f"echo w > /proc/sysrq-trigger; for p in $(pgrep -f '[-]m {module}'); do for t in /proc/$p/task/*; do "
        "echo $(cat $t/comm $t/wchan); done; done"
    )
    try:
        found = guest.run(["/bin/sh", "-c", asked], limit=ANSWER).stdout.splitlines()
    except GuestError:
        return f"it answers no more; {last_words(guest.log())}"
    return "the guest answers, and the program's threads are in: " + (", ".join(dict.fromkeys(found)) or "none")


def last_words(log: str) -> str:
    """Return the first line of a guest's log that says why it ended, or else its last."""
    lines = [line.partition("] ")[2] or line for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(words in line for words in TELLING)]
    return (telling[:1] or lines[-1:] or ["it printed nothing"])[0].strip()


def ended_early(who: str, code: int | None, epitaph: str, log: str = "") -> HwrxError:
    """Return the error for a program that ended before its time. Asking for what there is not is the user's error.

    `code` None: its guest went with it, of which `log` is what it printed.
    """
    if code is None:
        return GuestError(f"the guest did not survive {who}: {last_words(log)}")
    words = epitaph.partition("hwrx: ")[2]
    if code == UsageError.exit_code and words:
        message, _, remedy = words.partition("remedy: ")
        return UsageError(message.strip(), remedy=remedy.strip())
    how = epitaph.strip().splitlines()[-1:] or [f"exit code {code}"]
    return GuestError(f"{who} ended before its time: {how[0].strip()}")


class Pulse:
    """What is felt of a guest that comes up: QEMU's CPU time, and what the guest prints."""

    def __init__(self) -> None:
        self._since = time.monotonic()  # when it was seen to use its CPUs, or to print
        self._used = self._printed_at = 0.0  # its CPU time then, and when it last printed
        self._printed = 0

    def feel(self, used: float, printed: int) -> str:
        """Return why the guest stands still, in words; "" if it does not.

        :param used: CPU time of QEMU, in seconds.
        :param printed: how many lines the guest has printed.
        """
        now = time.monotonic()
        if printed != self._printed:
            self._printed, self._printed_at = printed, used
            self._since, self._used = now, used
        if now - self._since > IDLE_SILENCE:
            if used - self._used <= IDLE_SHARE * (now - self._since):
                return f"it printed nothing for {now - self._since:.0f} s, and did nothing"
            self._since, self._used = now, used
        if used - self._printed_at > BUSY_SILENCE:
            return f"it printed nothing in {used - self._printed_at:.0f} s of CPU time"
        return ""
