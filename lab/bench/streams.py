"""Does the rate of a stream depend on how many messages it has? It is to agree within 5 %, or to be withheld.

Streams of 1,000, 10,000 and 1,000,000 messages, udp and tcp, 64 and 1400 B, each several times in turn: between two
network namespaces of this machine by the wall clock, and in a guest that counts instructions. Beside the rate stands
what dividing messages by the time from the first to the last would have given.

Prints a table a clock and, with --json or --md, writes it. Nothing here is a test: a missed goal is shown, not raised.

    lab/bench/streams [--clock wall|icount] [--messages 1000,10000,1000000] [--rounds 3] [--json bench-streams.json]
                      [--md FILE.md]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

from hwrx.control.messages import Setting
from hwrx.lab.vm import Guest
from hwrx.runs import streams
from hwrx.runs.schedule import Measured, Pair
from hwrx.runs.testbed import Bed, GuestBed
from hwrx.wires import topology

Clock = Literal["wall", "icount"]
GOAL = 0.05
LEAST = {"wall": streams.STEADY_NS, "icount": streams.STEADY_INSTRUCTIONS}


class Row(Struct, frozen=True, kw_only=True):
    """One stream of so many messages: the rate of each round, messages a second; None: withheld, for `reason`."""

    clock: Clock
    path: str
    size: int
    messages: int
    rates: list[float | None]
    spans: list[float]  # messages over the time from the first to the last
    reason: str = ""
    where: str = ""

    @property
    def rate(self) -> float | None:
        """The median of the rounds; None if one was withheld."""
        known = [rate for rate in self.rates if rate is not None]
        return float(np.median(known)) if len(known) == len(self.rates) else None


def rate_of(measured: Measured, clock: Clock) -> streams.Rate | streams.Withheld:
    """What a report makes of a trial."""
    begin, end = measured.steady or (0, 0)
    if begin == end:
        return streams.Withheld("the buffers held all messages at once")
    return streams.steady_rate(np.cumsum(measured.ns), begin=begin, end=end, least_ns=LEAST[clock])


@contextlib.contextmanager
def agents(clock: Clock) -> Iterator[tuple[Pair, str]]:
    """Put up what the messages cross, with an agent at either end; and say what that is."""
    with contextlib.ExitStack() as stack:
        if clock == "icount":
            guest = stack.enter_context(Guest("pair", clock="icount"))
            bed: GuestBed | Bed = GuestBed(guest)
            where = f"Linux {guest.describe()['kernel']}, {guest.describe()['accelerator']}, topology pair"
        else:
            made = stack.enter_context(topology.build_topology("netns"))
            bed = Bed(made.places, made.peers, {})
            where = f"Linux {os.uname().release}, topology netns"
        yield stack.enter_context(Pair(bed)), where


def rows(clock: Clock, counts: list[int], rounds: int) -> Iterator[Row]:
    """Measure; the rounds of one path and size take turns between the counts."""
    with agents(clock) as (pair, where):
        number = 1
        for path in ("udp", "tcp"):
            for size in (64, 1400):
                values: dict[int, list[float | None]] = {count: [] for count in counts}
                spans: dict[int, list[float]] = {count: [] for count in counts}
                reasons = dict.fromkeys(counts, "")
                for count in [count for _ in range(rounds) for count in counts]:
                    schedule: Literal["normal", "batch"] = "batch" if clock == "icount" else "normal"
                    measured = pair.measure(
                        number,
                        Setting(path=path, pattern="stream", size=size, messages=count, schedule=schedule, limit=60.0),
                    )
                    number += 1
                    found = rate_of(measured, clock)
                    values[count].append(found.value if isinstance(found, streams.Rate) else None)
                    spans[count].append(len(measured.ns) / max(float(measured.ns.sum()), 1.0) * 1e9)
                    if isinstance(found, streams.Withheld):
                        reasons[count] = found.reason
                for count in counts:
                    yield Row(
                        clock=clock, path=path, size=size, messages=count, rates=values[count], spans=spans[count],
                        reason=reasons[count], where=where,
                    )  # fmt: skip


COLUMNS = ("path", "size", "messages", "first to last", "rate", "to the longest")


def lines_of(found: list[Row]) -> Iterator[list[str]]:
    """The table's cells, a line each stream, and how far it is from the longest one of its path and size."""
    for row in found:
        longest = max((other for other in found if (other.path, other.size) == (row.path, row.size)), key=_messages)
        off = row.rate / longest.rate - 1 if row.rate and longest.rate else None
        verdict = row.reason if off is None else f"{off:+.1%}" + ("" if abs(off) <= GOAL else f"  MISSED ±{GOAL:.0%}")
        rate = f"{row.rate:,.0f}" if row.rate else "withheld"
        yield [row.path, str(row.size), f"{row.messages:,}", f"{float(np.median(row.spans)):,.0f}", rate, verdict]


def table(found: list[Row], clock: Clock) -> Table:
    """One line a stream."""
    shown = Table(title=f"messages a second, {clock} clock", title_justify="left", box=None)
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "path" else "right")
    for line in lines_of(found):
        shown.add_row(*line)
    return shown


def page(found: list[Row], command: str) -> str:
    """The tables of both clocks as Markdown, with what made them."""
    text = ["# Does the rate of a stream depend on how many messages it has?", ""]
    text += [
        f"Made by `{command}`; what the columns are is at the top of `streams.py`. Goal: ±{GOAL:.0%}, or withheld."
    ]
    for clock in dict.fromkeys(row.clock for row in found):
        lines = [COLUMNS, ["---"] * len(COLUMNS), *lines_of([row for row in found if row.clock == clock])]
        where = next(row.where for row in found if row.clock == clock)
        text += ["", f"Messages a second, {clock} clock ({where}):", "", *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join(text) + "\n"


def _messages(row: Row) -> int:
    return row.messages


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=("wall", "icount"), help="one of them only")
    parser.add_argument("--messages", default="1000,10000,1000000", help="lengths of the streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--md", type=Path, help="write the tables there, too")
    options = parser.parse_args()
    counts = [int(count) for count in options.messages.split(",")]
    clocks: tuple[Clock, ...] = (options.clock,) if options.clock else ("wall", "icount")
    found: list[Row] = []
    for clock in clocks:
        for row in rows(clock, counts, options.rounds):
            print(f"{clock} {row.path} {row.size} B {row.messages:,}: {row.rates} {row.reason}", file=sys.stderr)
            found.append(row)
        Console().print(table([row for row in found if row.clock == clock], clock))
    if options.json:
        content = [{**to_builtins(row), "rate": row.rate} for row in found]
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.md:
        options.md.write_text(page(found, " ".join(["lab/bench/streams", *sys.argv[1:]])), encoding="utf-8")


if __name__ == "__main__":
    main()
