"""Being told to end: by Ctrl-C, SIGTERM, or a terminal that was closed (SIGHUP).

The first of these ends the program in order: KeyboardInterrupt, in the main thread. Those that come soon after it are
passed over, so that what is taken down is taken down whole however often somebody presses Ctrl-C. SIGQUIT and SIGKILL
end the process at once; what it leaves is undone by its keeper (`hwrx.host.undo`).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hwrx.errors import HwrxError

_Handler = Callable[[int, FrameType | None], Any]
_Known = Callable[[int, FrameType | None], Any] | int
INTERRUPTED = 128 + signal.SIGINT  # the exit code after any of them
PR_SET_PDEATHSIG = 1  # prctl(2)
# seconds: what is taken down takes less. An exception may have been lost (in a destructor, in a library's callback)
AGAIN_AFTER = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """A context in which the first signal of ENDING raises KeyboardInterrupt.

    In another thread than the main one it does nothing, as there signals are never taken. A signal that was ignored
    when we were started stays so (nohup).
    """

    def __init__(self) -> None:
        self._told = -math.inf  # when the last of them came that was not passed over

    def __enter__(self) -> Ending:
        self._before = _swap_handlers(self._end)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        now = time.monotonic()
        if now - self._told > AGAIN_AFTER:
            self._told = now
            raise KeyboardInterrupt


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the end of this context: what is taken down is taken down whole.

    Not by a mask: that is a thread's, and the kernel would give the signal to another one.
    """
    came: list[int] = []
    before = _swap_handlers(lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in dict.fromkeys(came):
            signal.raise_signal(one)


def run_beneath(main: Callable[[], int]) -> int:
    """Be a program that another one of ours has started: end in order when told to, or when that one ends.

    :param main: what the program does; returns its exit code.
    :return: the exit code. HwrxErrors are words on standard error.
    """
    # of the thread that started us: hwrx starts such programs in threads that live as long as they
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    with Ending():
        try:
            return main()
        except KeyboardInterrupt:
            return INTERRUPTED
        except HwrxError as error:
            sys.stderr.write(f"hwrx: {error}\n")
            return error.exit_code
        except BrokenPipeError:  # nobody hears us any more
            return 141


def _swap_handlers(handler: _Handler) -> dict[int, _Known]:
    """Install a handler for ENDING, return those before it; nothing but in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in ENDING}
    # None: set by C code, which only that could set again
    known: dict[int, _Known] = {
        number: old for number, old in found.items() if old is not None and old is not signal.SIG_IGN
    }
    for number in known:
        signal.signal(number, handler)
    return known


def _leave_terminal() -> None:
    """The terminal is gone: each word to it would be an error, in the middle of what is taken down."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            # 136 to 143: UNIX98 terminals (Documentation/admin-guide/devices.txt); a gone one is no tty any more
            if os.major(os.fstat(descriptor).st_rdev) in (*range(136, 144), 4, 5):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
