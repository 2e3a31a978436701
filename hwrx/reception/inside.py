"""The guest's side of `hwrx walk --full`: reads what to follow from standard input, prints what was seen."""

from __future__ import annotations

import sys

import msgspec

from hwrx.host.interruption import run_beneath
from hwrx.reception.run import Line, follow_here
from hwrx.reception.scene import Request


def main() -> int:
    """Serve one request; the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    found = follow_here(request, lambda _, text: _print(Line(say=text)))
    _print(Line(reception=found))
    return 0


def _print(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(run_beneath(main))
