"""The guest's side of `hwrx drill`: reads what to do from standard input, prints a line for each result."""

from __future__ import annotations

import sys

import msgspec

from hwrx.drill import run
from hwrx.host.interruption import run_beneath


def main() -> int:
    """Serve one request; the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=run.Request)
    _print(run.Line(kernel=run.kernel_here()))
    for result in run.drills_here(request, lambda stage, text: _print(run.Line(say=text))):
        _print(run.Line(result=result))
    return 0


def _print(line: run.Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(run_beneath(main))
