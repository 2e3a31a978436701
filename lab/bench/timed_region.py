"""Does checking reach into what is timed? Guest instructions of a round trip with it and without, for every path.

In a guest with one CPU whose clock counts instructions (icount), each path's ping-pong is run three times: with no
message checked in full, with a check before each 64th, with one before every message. Between two stamps there is to
be the path's own work alone, so all three are to take the same, whatever the size.

Prints a table and, with --json, writes it. Nothing here is a test: a missed goal is shown, not raised.

    lab/bench/timed_region [--only udp] [--sizes 64,1400] [--messages 200] [--json bench-timed-region.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

from hwrx import paths
from hwrx.errors import HwrxError, UsageError
from hwrx.messages import Setting
from hwrx.run import Pair
from hwrx.testbed import GuestBed
from hwrx.vm import Guest

GOAL = 0.002  # of the instructions without checks
SIZES = (64, 1400, 4096, 1 << 16, 1 << 20)
EVERY = (0, 64, 1)
GUESTS = {"pair": ("udp", "tcp", "rdma-send", "rdma-write-imm", "rdma-read", "rdma-ud", "packet-ring", "xdp"),
          "nic": ("nic-ring",)}  # fmt: skip


class Row(Struct, frozen=True, kw_only=True):
    """One path and size: the median round trip by `check_every`, guest instructions; `error` if there is none."""

    path: str
    size: int
    median: dict[str, float] = {}
    error: str = ""

    @property
    def deviation(self) -> float:
        """The largest difference from the round trip without checks, relative to it."""
        off = self.median["0"]
        return max(abs(value / off - 1) for value in self.median.values())


def row_of(pair: Pair, number: int, path: str, size: int, messages: int) -> Row:
    """Measure one path at one size."""
    median: dict[str, float] = {}
    try:
        for place, every in enumerate(EVERY):
            setting = Setting(
                path=path, size=size, messages=messages, warmup=40, cooldown=8, check_every=every, schedule="batch",
                limit=120.0,
            )  # fmt: skip
            paths.check(setting)
            measured = pair.measure(number + place, setting)
            wrong = {name: count for name, count in measured.tally.items() if count and name in ("corrupt", "lost")}
            if wrong or bool(every) != bool(measured.tally["checked"]):
                return Row(path=path, size=size, error=f"counted {wrong}, checked {measured.tally['checked']}")
            median[str(every)] = float(np.median(measured.ns))
    except UsageError as error:
        return Row(path=path, size=size, error=str(error).splitlines()[0])
    except HwrxError as error:
        return Row(path=path, size=size, error=f"failed: {str(error).splitlines()[0]}")
    return Row(path=path, size=size, median=median)


def rows(only: str, sizes: list[int], messages: int) -> Iterator[Row]:
    """Measure everything, a guest after the other."""
    number = 1
    for topology, names in GUESTS.items():
        wanted = [name for name in names if only in name]
        if not wanted:
            continue
        with Guest(topology, clock="icount") as guest, Pair(GuestBed(guest)) as pair:
            for path in wanted:
                for size in sizes:
                    yield row_of(pair, number, path, size, messages)
                    number += len(EVERY)


def table(found: list[Row]) -> Table:
    """One line a path and size."""
    shown = Table(title="instructions of a round trip, by check_every", title_justify="left", box=None)
    for column in ("path", "size", *(f"{every}" for every in EVERY), "differ by"):
        shown.add_column(column, justify="left" if column == "path" else "right")
    for row in found:
        if row.error:
            shown.add_row(row.path, f"{row.size:,}", "–", "–", "–", row.error)
            continue
        goal = "" if row.deviation <= GOAL else f"  MISSED, goal {GOAL:.1%}"
        values = (f"{row.median[str(every)]:,.0f}" for every in EVERY)
        shown.add_row(row.path, f"{row.size:,}", *values, f"{row.deviation:.3%}{goal}")
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="paths with this in their name")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bytes, separated by commas")
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    found = []
    for row in rows(options.only, [int(size) for size in options.sizes.split(",")], options.messages):
        print(f"{row.path} {row.size}: {row.error or row.median}", file=sys.stderr, flush=True)
        found.append(row)
    if options.json:
        content = [{**to_builtins(row), "deviation": None if row.error else row.deviation} for row in found]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    Console().print(table(found))


if __name__ == "__main__":
    main()
