"""Does checking reach into what is timed? Guest instructions of a round trip with it and without, for every path.

In a guest with one CPU whose clock counts instructions (icount), each path's ping-pong is run four times: with no
message checked in full, with a check before each 64th, with one before every message, and with none once more, which
shows by how much trials differ that are the same. Between two stamps there is to be the path's own work alone, so all
are to take the same, whatever the size. Held against each other are medians; where those differ, the ways in which
round trips go: how the ends take turns on the one CPU, where interrupts fall. Trials that are the same differ in those.
nic-ring meets interrupts that bring nothing (its tally counts them as interrupts_spurious): none, or one in every round
trip of a trial, which is 1,640 instructions, with checks and without. A third way, of 2,829 more than without any, was
met behind checked exchanges alone; it is as much at 64 B as at 1,400 B, so that it is no byte of a check. Its cause is
not known.

A connection of TCP has to be settled before that: while the kernel lets a receive window grow (tcp_grow_window of
net/ipv4/tcp_input.c) each exchange costs some 600 instructions more, and one that is checked makes it grow as well. So
`--warmup` exchanges come first (fewer from 256 KiB on); the default is enough for every size.

Prints a table and, with --json or --md, writes it. Nothing here is a test: a missed goal is shown, not raised.

    lab/bench/timed_region [--only udp] [--sizes 64,1400] [--messages 200] [--warmup 300]
                           [--with EARLIER.json ...] [--json bench-timed-region.json] [--md FILE.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, structs, to_builtins
from rich.console import Console
from rich.table import Table

from hwrx import modes, paths
from hwrx.control.messages import Setting
from hwrx.errors import HwrxError, UsageError
from hwrx.lab.vm import Guest
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import GuestBed

GOAL = 0.002  # of the instructions without checks
SIZES = (64, 1400, 4096, 65_000, 1 << 20)  # a datagram has no more than 65,507 B
WITHOUT, WITH = ("0", "0 again"), ("64", "1")
TRIALS = {"0": 0, "64": 64, "1": 1, "0 again": 0}  # check_every, by the column's name
GUESTS = {"pair": ("udp", "tcp", "rdma-send", "rdma-write-imm", "rdma-read", "rdma-ud", "packet-ring", "xdp"),
          "nic": ("nic-ring", "nic-pio")}  # fmt: skip
# QEMU's 82574L holds an interrupt back for 128 us after the one before: a ping-pong rests longer before each message
REST = {"nic": 400_000}
# A READ of 1 MiB comes back in 1,024 packets at once: the kernel's queue of 1,000 would drop some, and the figure would
# be the timeout after which rxe sends them again
BACKLOG = 16384
# A packet ring hands over a block that is not full at a tick of the kernel's timer: its round trip is a number of ticks
# less what was done since the last one, and says nothing of what lies in it
OF_TICKS = ("packet-ring",)
LARGE = 1 << 18  # bytes, from which a fifth of the messages are measured after a twentieth of the warm-up


class Row(Struct, frozen=True, kw_only=True):
    """One path and size, by trial, in guest instructions; `error` if there is none.

    `median` round trip; if medians are not alike also `states`: ways to go that repeat to the digit, (figure, share)
    each (see hwrx.modes: the figure is the least that a twentieth of them took; above it are interruptions).
    """

    path: str
    size: int
    median: dict[str, float] = {}
    states: dict[str, list[tuple[float, float]]] = {}
    error: str = ""
    where: str = ""

    def figures(self, trial: str) -> list[float]:
        """Those of a trial: of each of its states, or the median."""
        return [value for value, _ in self.states.get(trial, [])] or [self.median[trial]]

    def deviation(self, trials: Sequence[str], others: Sequence[str]) -> float:
        """By how much the figures of some trials differ from the nearest of others, relative to it, at most."""
        known = [value for other in others for value in self.figures(other)]
        return max(min(abs(value / own - 1) for own in known) for trial in trials for value in self.figures(trial))

    @property
    def checks(self) -> float:
        """How much of a difference checks make."""
        return self.deviation(WITH, WITHOUT if self.states else WITHOUT[:1])

    @property
    def missed(self) -> bool:
        """Whether that is more than it may be."""
        return self.path not in OF_TICKS and self.checks > GOAL


def row_of(pair: Pair, number: int, path: str, size: int, messages: int, warmup: int, rest: int) -> Row:
    """Measure one path at one size."""
    median: dict[str, float] = {}
    states: dict[str, list[tuple[float, float]]] = {}
    try:
        for place, (trial, every) in enumerate(TRIALS.items()):
            setting = Setting(
                path=path, size=size, messages=messages, warmup=warmup, cooldown=8, check_every=every,
                rest=rest, schedule="batch", limit=120.0,
            )  # fmt: skip
            paths.check_setting(setting)
            measured = pair.measure(number + place, setting)
            wrong = {name: count for name, count in measured.tally.items() if count and name in ("corrupt", "lost")}
            if wrong or bool(every) != bool(measured.tally["checked"]):
                return Row(path=path, size=size, error=f"counted {wrong}, checked {measured.tally['checked']}")
            median[trial] = float(np.median(measured.ns))
            states[trial] = [
                (state.value, round(state.share, 3))
                for state in modes.exact_states(measured.ns)
                if state.share >= modes.LEAST_SHARE
            ]
    except UsageError as error:
        return Row(path=path, size=size, error=str(error).splitlines()[0])
    except HwrxError as error:
        return Row(path=path, size=size, error=f"failed: {str(error).splitlines()[0]}")
    row = Row(path=path, size=size, median=median)
    # medians that are alike say all
    return structs.replace(row, states=states) if row.checks > GOAL else row


def rows(only: list[str], sizes: list[int], messages: int, warmup: int) -> Iterator[Row]:
    """Measure everything, a guest after the other."""
    number = 1
    for topology, names in GUESTS.items():
        wanted = [name for name in names if not only or name in only]
        if not wanted:
            continue
        with Guest(topology, clock="icount") as guest, Pair(GuestBed(guest)) as pair:
            guest.run(["sh", "-c", f"echo {BACKLOG} > /proc/sys/net/core/netdev_max_backlog"])
            where = f"Linux {guest.describe()['kernel']}, {guest.describe()['accelerator']}, topology {topology}"
            for path in wanted:
                for size in sizes:
                    counts = (messages // 5, warmup // 20) if size >= LARGE else (messages, warmup)
                    row = row_of(pair, number, path, size, *counts, rest=REST.get(topology, 0))
                    yield structs.replace(row, where=where)
                    number += len(TRIALS)


def lines_of(found: list[Row]) -> list[list[str]]:
    """The table's cells, one line a path and size."""
    lines = []
    for row in found:
        if row.error:
            lines.append([row.path, f"{row.size:,}", *["–"] * (len(TRIALS) + 1), row.error])
            continue
        goal = " (of ticks)" if row.path in OF_TICKS else f" (missed: {GOAL:.1%})" if row.missed else ""
        alike = f"{row.deviation(WITHOUT[1:], WITHOUT[:1]):.3%}"
        values = [_cell(row, trial) for trial in TRIALS]
        lines.append([row.path, f"{row.size:,}", *values, alike, f"{row.checks:.3%}{goal}"])
    return lines


def _cell(row: Row, trial: str) -> str:
    found = row.states.get(trial, [])
    if len(found) > 1:
        return ", ".join(f"{value:,.0f} ({share:.0%})" for value, share in found)
    return f"{row.figures(trial)[0]:,.0f}"


COLUMNS = ("path", "size", *(f"check_every {trial}" for trial in TRIALS), "0 and 0 differ by", "checks differ by")


def table(found: list[Row]) -> Table:
    """One line a path and size."""
    shown = Table(title="instructions of a round trip", title_justify="left", box=None)
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "path" else "right")
    for line in lines_of(found):
        shown.add_row(*line)
    return shown


def page(found: list[Row], command: str) -> str:
    """The table as Markdown, with what made it."""
    lines = [" | ".join(cells) for cells in [COLUMNS, ["---"] * len(COLUMNS), *lines_of(found)]]
    missed = sum(row.missed for row in found if not row.error)
    return PAGE.format(
        command=command, table="\n".join(f"| {line} |" for line in lines), missed=missed, goal=GOAL,
        where="; ".join(dict.fromkeys(row.where for row in found if row.where)),
        measured=sum(not row.error and row.path not in OF_TICKS for row in found), ticks=", ".join(OF_TICKS),
    )  # fmt: skip


PAGE = """# Does checking reach into what is timed?

Made by `{command}`; what the columns are is at the top of `timed_region.py`. {where}.

Guest instructions of a round trip: the median. Where medians are not alike, of each way to go (its share) the least
that a twentieth of its round trips took, each held against the nearest without checks. Of {measured} rows {missed}
differ by more than {goal:.1%}. A round trip of {ticks} ends at a tick of the kernel's timer: its figures say nothing of
checks.

{table}
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="these paths, separated by commas")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="bytes, separated by commas")
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=300, help="exchanges before them")
    parser.add_argument(
        "--with", type=Path, nargs="*", default=[], dest="earlier", help="rows that --json wrote before"
    )
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    parser.add_argument("--md", type=Path, help="write the table there, too")
    options = parser.parse_args()
    found = [row for file in options.earlier for row in msgspec.json.decode(file.read_bytes(), type=list[Row])]
    only = [name for name in options.only.split(",") if name]
    sizes = [int(size) for size in options.sizes.split(",")]
    for row in rows(only, sizes, options.messages, options.warmup):
        print(f"{row.path} {row.size}: {row.error or row.median} {row.states}", file=sys.stderr, flush=True)
        found.append(row)
        if options.json:
            options.json.write_text(json.dumps(to_builtins(found), indent=1) + "\n", encoding="utf-8")
    Console(width=200).print(table(found))
    if options.md:
        command = " ".join(["lab/bench/timed_region", *sys.argv[1:]])
        options.md.write_text(page(found, command), encoding="utf-8")


if __name__ == "__main__":
    main()
