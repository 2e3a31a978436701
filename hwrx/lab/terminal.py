"""A command or a shell in a guest on our own standard streams: what is typed goes in, what it prints comes out."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Sequence

from hwrx.errors import UsageError
from hwrx.lab.port import Pipe
from hwrx.lab.vm import Guest

_LOOK = 1.0  # seconds


def run_attached(guest: Guest, command: Sequence[str]) -> int:
    """Run a command with our standard input and output; returns its exit code, 128+N where signal N ended it."""
    pipe = guest.command(command, errors="merged")
    with contextlib.closing(pipe):
        _connect(pipe)
        code = _status_of(pipe)
    if code is None:
        raise guest.failure("the guest ended before its command did")
    return code if code >= 0 else 128 - code


def open_shell(guest: Guest) -> int:
    """Run a shell on a terminal of the guest, which `script` makes; ours passes every key on."""
    if not sys.stdin.isatty():
        raise UsageError("a shell needs a terminal", remedy="give a command: hwrx lab shell TOPOLOGY -- COMMAND")
    size = os.get_terminal_size()
    setup = f"stty rows {size.lines} cols {size.columns}; exec bash -i"
    pipe = guest.command(["script", "-q", "-c", setup, "/dev/null"], {"TERM": os.environ.get("TERM", "vt100")})
    before = termios.tcgetattr(0)
    sys.stderr.write("the guest's shell; exit or Ctrl-D ends it and the guest\n")
    try:
        tty.setraw(0)
        with contextlib.closing(pipe):
            _connect(pipe)
            return _status_of(pipe) or 0
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _status_of(pipe: Pipe) -> int | None:
    """Wait for the end, however long the command goes on after it has closed its output; None: its guest ended."""
    while not pipe.ended:
        pipe.wait(_LOOK)
    return pipe.wait(0)


def _connect(pipe: Pipe) -> None:
    """Pass standard input to the pipe and its output to ours, until the output ends."""
    sources = [0, pipe.fileno()]
    while True:
        try:
            ready = select.select(sources, [], [])[0]
        except ValueError:  # our standard input is closed
            sources, ready = [pipe.fileno()], []
        if 0 in ready:
            data = os.read(0, 1 << 14)
            if data:
                with contextlib.suppress(OSError):  # the command reads no more
                    pipe.sendall(data)
            else:
                sources.remove(0)
                pipe.end_input()
        if pipe.fileno() in ready:
            data = pipe.recv(1 << 16)
            if not data:
                return
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
