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
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hwrx.errors import HwrxError

_Handler = Callable[[int, FrameType | None], Any]
_Known = Callable[[int, FrameType | None], Any] | int
INTERRUPTED = 128 + signal.SIGINT  # the exit code after any of them
PR_SET_PDEATHSIG = 1  # prctl(2)
# seconds: what is taken down takes less
AGAIN_AFTER = 10.0
RAISED_AFTER = 0.02  # seconds: then what was lost is raised again
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(KeyboardInterrupt):
    """A signal of ENDING.

    A class of its own for two reasons. One can see when an instance goes. And CPython (`run_eval_code_obj` in
    pythonrun.c) remembers a KeyboardInterrupt that passes through `exec` of a string, as in `dataclasses`, and ends the
    program by SIGINT for it, whatever its exit code: it looks for that very class.
    """


class Ending:
    """A context in which the first signal of ENDING raises KeyboardInterrupt.

    An exception can be lost: libraries in C drop whatever comes while they try something, and destructors and callbacks
    pass nothing on. One that went and was not heard (`heard`) is raised again.

    In another thread than the main one it does nothing, as there signals are never taken. A signal that was ignored
    when we were started stays so (nohup).
    """

    def __init__(self) -> None:
        self._told = -math.inf  # when the last of them came that was not passed over
        self._raised: weakref.ref[Told] | None = None  # what was raised for it, until it is heard

    def __enter__(self) -> Ending:
        self._before = _swap_handlers(self._end)
        return self

    def __exit__(self, *exc: object) -> None:
        self.heard()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heard(self) -> None:
        """Say that the KeyboardInterrupt arrived where it ends the program: it may go now."""
        self._raised = None

    def lost(self) -> bool:
        """Whether a signal came and its exception is gone unheard: the error that is under way may be what is left."""
        return self._raised is not None and self._raised() is None

    def _end(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        now = time.monotonic()
        if now - self._told > AGAIN_AFTER:
            self._told = now
            raise self._watched(number)

    def _watched(self, number: int) -> Told:
        # made here, not in the frame that its traceback will have: it would hold itself
        told = Told()
        self._raised = weakref.ref(told, lambda gone: self._again(gone, number))
        return told

    def _again(self, gone: weakref.ref[Told], number: int) -> None:
        # by another thread, a little later: here, in a callback, it would be lost as well
        timer = threading.Timer(RAISED_AFTER, self._send_again, (gone, number))
        timer.daemon = True
        timer.start()

    def _send_again(self, gone: weakref.ref[Told], number: int) -> None:
        main = threading.main_thread().ident
        if gone is self._raised and main is not None:
            self._told = -math.inf
            signal.pthread_kill(main, number)


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
    with Ending() as ending:
        try:
            return main()
        except KeyboardInterrupt:
            ending.heard()
            return INTERRUPTED
        except ImportError:  # a library in C that was interrupted while it was imported says so (NumPy)
            if ending.lost():
                return INTERRUPTED
            raise
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
