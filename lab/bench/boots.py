"""Do guests come up on a busy machine?

Boots one guest after the other beside processes that only compute, has a command run in each, and counts those that
came up at once, those of which another one had to be booted because the first stood still, and those that did not come
up. Nothing here is a test: what did not come up is shown with the end of its log, not raised.

    lab/bench/boots [--count 200] [--load 4] [--topology netns] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, to_builtins
from rich.console import Console

from hwrx.errors import HwrxError
from hwrx.lab.vm import Guest

COMMAND_WITHIN = 300.0  # seconds


class Boot(Struct, frozen=True):
    """How one came up: seconds until a command had run in it, how often another was booted, and what went wrong."""

    seconds: float
    again: int
    problem: str = ""


@contextlib.contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """While in this context, so many processes do nothing but compute."""
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            one = stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]))
            stack.callback(one.kill)
        yield


def boot_once(topology: str) -> Boot:
    """Boot a guest, run a command in it, end it."""
    words: list[str] = []
    began = time.monotonic()
    problem = ""
    try:
        with Guest(topology, progress=lambda stage, line: words.append(line)) as guest:
            done = guest.run(["true"], limit=COMMAND_WITHIN)
            problem = f"`true` ended with {done.returncode}" if done.returncode else ""
    except HwrxError as error:
        problem = str(error)
    again = sum("another one is booted" in line for line in words)
    return Boot(round(time.monotonic() - began, 1), again, problem)


def main() -> None:
    """Parse, boot, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--load", type=int, default=4, help="processes that compute meanwhile")
    parser.add_argument("--topology", default="netns")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    console = Console()
    boots: list[Boot] = []
    with busy_machine(asked.load), console.status("") as status:
        for number in range(asked.count):
            status.update(f"guest {number + 1} of {asked.count}")
            boots.append(boot_once(asked.topology))
            if boots[-1].again or boots[-1].problem:
                console.print(f"guest {number + 1}: {boots[-1]}", markup=False)
    up = [boot for boot in boots if not boot.problem]
    seconds = [boot.seconds for boot in boots]
    console.print(
        f"{len(up)} of {len(boots)} guests came up beside {asked.load} busy processes on {os.cpu_count()} CPUs"
        f" ({sum(boot.again > 0 for boot in up)} of them at the second try), after a median of"
        f" {statistics.median(seconds):.1f} s, {max(seconds):.1f} s at most"
    )
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(boots)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
