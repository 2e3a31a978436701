"""Standard input, output and error, whatever the shell, a terminal of another encoding or a full disk made of them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from hwrx.host.outside import clean_text


def settle_streams() -> None:
    """Make the three streams usable.

    One that was closed (`>&-`) becomes /dev/null: else the next file that is opened would get its number, and with it
    all that is printed. What goes into a file or a pipe is UTF-8 whatever the locale says, for JSON must be; a terminal
    keeps its encoding, and what that lacks is written as an escape.
    """
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            # the lowest free number is this one, for all below it are open by now
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 -- for the life of the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            own = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=own, errors="backslashreplace")


def say_last(words: str) -> None:
    """Write a line to standard error, as far as anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{clean_text(words)}\n")
    drop_refused(sys.stderr)


def drop_refused(stream: TextIO) -> None:
    """Write out what a stream still holds; if that is refused, let it go nowhere.

    The interpreter would fail on it at its end, and exit with a code of its own (120).
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        drop_output(stream)


def drop_output(stream: TextIO) -> None:
    """Let what a stream still holds, and all that follows, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def error_words(error: OSError) -> str:
    """Say what the system refused, and about which file."""
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason
