"""The guest's side of a flood: makes those that its standard input describes, and prints each as a line."""

from __future__ import annotations

import sys

import msgspec

from hwrx.flood import keep, scene
from hwrx.flood.model import Spec
from hwrx.host.interruption import run_beneath


def main(text: bytes) -> int:
    """Make the floods, one after the other; the exit code. A line is `say …`, or what `keep.unpack` reads."""

    def say(words: str) -> None:
        sys.stdout.write(f"say {words}\n")
        sys.stdout.flush()

    specs = msgspec.json.decode(text, type=list[Spec])
    with scene.flood_wire(specs[0]) as bed:
        for spec in specs:
            made = scene.made_wire(spec, bed, say)
            sys.stdout.flush()
            sys.stdout.buffer.write(keep.pack_flood(made.flood, made.sent, made.taken) + b"\n")
            sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(run_beneath(lambda: main(sys.stdin.buffer.read())))
