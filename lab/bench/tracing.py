"""The ledger held against what it promises: completeness, copies per byte, and its own cost.

    lab/bench/trace                                    everything: on this kernel, and in guests of 6.1 and 6.12
    lab/bench/trace --where host --only cost           only what tracing costs on this machine
    lab/bench/trace --where 6.12 --only complete --paths udp,tcp --messages 1000 --json FILE

Pieces: `complete` (the share of messages with every stage that each message passes, stamped in order, and whether the
intervals add up to the one-way time), `copies` (per byte delivered, at sizes from 64 B to 64 KiB), `mapped` (what
TCP_ZEROCOPY_RECEIVE leaves to be copied at 1 MiB), `attach` (how long loading takes), `cost` (on this kernel only:
trials with tracing off and on, turn about; one thread; draining). Prints tables and writes bench.json. Nothing here is
a test: a missed goal is shown, not raised.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tracing_cost
from rich.console import Console
from rich.table import Table

from hwrx.control.messages import Setting
from hwrx.errors import HwrxError
from hwrx.lab.vm import Guest
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed, GuestBed
from hwrx.timelines.traced import Directions, RunTracer
from hwrx.wires import topology

PIECES = ("attach", "complete", "copies", "mapped", "cost")
PLACES = ("host", "6.1", "6.12")
COMPLETE, COPIES = (64, 1400), (64, 1400, 4096, 65536)  # bytes
LARGEST_UDP = 65507
MIB = 1 << 20
WHOLE_PAGES = 4200  # MTU whose segments are one page each
Row = dict[str, Any]
Say = Callable[[str], None]


def setting(path: str, size: int, messages: int, **more: Any) -> Setting:
    wait = "poll" if path == "rdma-write" else "event"
    # a large message is many packets: few in flight, so that none is lost for want of room
    return Setting(path=path, size=size, messages=messages, wait=wait, limit=60.0, window=16, **more)


class Place:
    """A kernel to trace on: this one, between two namespaces, or a guest's, over its pair of rxe devices."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self.name = name
        self._stack = stack
        if name == "host":
            made = stack.enter_context(topology.netns())
            self.bed: Any = Bed(made.places, made.peers, {})
            self.paths = ["udp", "tcp"]
        else:
            self._guest = stack.enter_context(Guest("pair", kernel=name))
            self.bed = GuestBed(self._guest)
            self.paths = ["udp", "tcp", "rdma-send", "rdma-write"]

    @contextmanager
    def whole_pages(self) -> Iterator[Any]:
        """Yield a testbed whose segments fill pages, which is what the kernel can map."""
        if self.name == "host":
            with topology.netns(mtu=WHOLE_PAGES) as made:
                yield Bed(made.places, made.peers, {})
            return
        for mtu in (WHOLE_PAGES, 1500):
            for link in topology.LINKS.values():
                done = self._guest.command(
                    ["/bin/sh", "-c", f"PATH=$PATH:/usr/sbin:/sbin ip link set {link} mtu {mtu}"]
                )
                done.end_input()
                while done.recv(4096):
                    pass
                done.wait(5)
            if mtu == WHOLE_PAGES:
                yield self.bed


# --- what the timelines and the books say ---------------------------------------------------------------------------


def attached_in(tracer: RunTracer, paths: list[str]) -> Row:
    """Attach twice: the first time a process has to load its modules, and a machine to find its addresses."""
    seconds = []
    for again in (False, True):
        if again:
            tracer.detach()
        tracer.attach()
        assert tracer.tracing is not None
        seconds.append(round(tracer.tracing.seconds, 3))
    return {
        "what": "attach",
        "paths": ",".join(paths),
        "first_s": seconds[0],
        "then_s": seconds[1],
        "stages": len(tracer.tracing.available),
    }


def rows_of(what: str, path: str, size: int, found: Directions) -> Iterator[Row]:
    for direction, timelines in found.timelines.items():
        intervals, _ = timelines.intervals()
        yield {
            "what": what,
            "path": path,
            "size": size,
            "direction": direction,
            "messages": len(timelines.complete),
            "share": timelines.share,
            "missing": timelines.missing,
            "disordered": timelines.disordered,
            "dropped": timelines.dropped,
            "sums": bool((intervals.sum(axis=1) == timelines.one_way()).all()),
            "lost": found.traced.lost,
            "missed": found.traced.missed,
            "sender": found.ledger.sender,
            "receiver": found.ledger.receiver,
            "balance": {
                f"{row.side} difference": round(row.per_byte, 4) for row in found.ledger.rows if row.kind == "balance"
            },
        }


def trials(place: Place, pieces: list[str], paths: list[str], sizes: list[int], messages: int) -> list[Row]:
    """The settings of `complete` and `copies`: what, path, size, messages. A size of both is traced once."""
    asked = []
    for path in paths:
        for what, standard in (("complete", COMPLETE), ("copies", COPIES)):
            if what not in pieces:
                continue
            for size in sizes or standard:
                size = min(size, LARGEST_UDP) if path == "udp" else size
                if what == "copies" and "complete" in pieces and size in (sizes or COMPLETE):
                    continue
                count = messages if what == "complete" else min(messages, 500 if size <= 4096 else 100)
                asked.append({"what": what, "path": path, "size": size, "count": count})
    return asked


def timelines_at(
    place: Place, pieces: list[str], paths: list[str], options: argparse.Namespace, say: Say
) -> Iterator[Row]:
    with Pair(place.bed) as pair, RunTracer(place.bed, paths) as tracer:
        if "attach" in pieces:
            yield attached_in(tracer, paths)
        else:
            tracer.attach()
        for number, one in enumerate(trials(place, pieces, paths, options.sizes, options.messages), 1):
            say(f"{one['path']} {one['size']:,} B, {one['count']:,} messages")
            try:
                found = tracer.trace(
                    pair, number, setting(one["path"], one["size"], one["count"]), timelines=one["count"]
                )
            except HwrxError as error:
                yield {**one, "error": str(error).splitlines()[0]}
                continue
            yield from rows_of(one["what"], one["path"], one["size"], found)


def mapped(place: Place, say: Say) -> Iterator[Row]:
    say("tcp 1 MiB, mapped")
    both = {"zerocopy_send": True, "zerocopy_receive": True}
    with place.whole_pages() as bed, Pair(bed) as pair, RunTracer(bed, ["tcp"]) as tracer:
        tracer.attach()
        found = tracer.trace(pair, 1, setting("tcp", MIB, 60, **both), timelines=60)
    yield from rows_of("mapped", "tcp", MIB, found)


def at(name: str, options: argparse.Namespace, say: Say) -> Iterator[Row]:
    """All rows of one place, each as soon as it is known."""
    with ExitStack() as stack:
        say("putting it up")
        place = Place(name, stack)
        paths = [path for path in place.paths if not options.paths or path in options.paths]
        pieces = options.only
        if paths and {"attach", "complete", "copies"} & set(pieces):
            yield from timelines_at(place, pieces, paths, options, say)
        if "mapped" in pieces and "tcp" in paths:
            yield from mapped(place, say)
        if "cost" in pieces and name == "host":
            yield from tracing_cost.rows(place.bed, paths, options.pairs, say)


# --- what is printed ------------------------------------------------------------------------------------------------


def within(value: float, low: float, high: float) -> str:
    return "met" if low <= value <= high else "MISSED"


def verdict(row: Row) -> str:
    """Say whether a row of timelines reaches its goal."""
    if row["what"] == "mapped":
        return within(row["receiver"], 0.0, 0.1)
    # what was sent again, and the books say so, is no copy too many
    again = row["balance"].get("sender difference", 0.0)
    fits = all(abs(value - 1.0) < 0.005 for value in (row["sender"] - again, row["receiver"]))
    good = row["share"] >= 0.999 and row["sums"] and not row["lost"] and not row["disordered"]
    return "met" if good and fits else "MISSED"


def timeline_table(rows: list[Row]) -> Table:
    table = Table(
        title="timelines and copies per byte (TX/B: by the sender, RX/B: by the receiver)", title_justify="left"
    )
    left = ("where", "path", "direction", "goal", "remarks")
    for heading in (
        "where", "path", "size", "direction", "messages", "complete", "sums", "lost", "TX/B", "RX/B", "goal", "remarks",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading in left else "right")
    for row in rows:
        if "error" in row:
            table.add_row(
                row["where"], row["path"], f"{row['size']:,}", *[""] * 7, "MISSED", row["error"]
            )  # fmt: skip
            continue
        remarks = {k: row[k] for k in ("missing", "disordered", "missed", "balance") if row[k]}
        table.add_row(
            row["where"], row["path"], f"{row['size']:,}", row["direction"], f"{row['messages']:,}",
            f"{100 * row['share']:.3f} %", "yes" if row["sums"] else "NO", str(row["lost"]), f"{row['sender']:.4f}",
            f"{row['receiver']:.4f}", verdict(row), json.dumps(remarks) if remarks else "",
        )  # fmt: skip
    return table


def figure_table(rows: list[Row]) -> Table:
    table = Table(title="what tracing itself takes", title_justify="left")
    for heading in ("where", "what", "figure", "goal", "", "how"):
        table.add_column(heading)
    for row in rows:
        if row["what"] == "attach":
            then = row["then_s"]
            words = (f"attaching {row['paths']} again", f"{then:.2f} s", "<= 2 s", within(then, 0, 2))
            how = f"{row['first_s']:.2f} s the first time; {row['stages']} stages"
        else:
            *words, how = tracing_cost.words(row)
        table.add_row(row["where"], *words, how)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", default=",".join(PLACES), help="host, or kernels of guests, separated by commas")
    parser.add_argument("--only", default=",".join(PIECES), help=f"of {', '.join(PIECES)}, separated by commas")
    parser.add_argument("--paths", default="", help="for example udp,rdma-send")
    parser.add_argument("--sizes", default="", help="bytes, separated by commas, instead of each piece's own")
    parser.add_argument("--messages", type=int, default=10_000, help="of a trial for completeness")
    parser.add_argument("--pairs", type=int, default=15, help="trials off and on for the cost")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the rows go")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if wrong := set(options.only) - set(PIECES):
        parser.error(f"no piece {', '.join(sorted(wrong))}; there are {', '.join(PIECES)}")
    options.paths = [path for path in options.paths.split(",") if path]
    options.sizes = [int(size) for size in options.sizes.split(",") if size]
    rows: list[Row] = []
    for name in options.where.split(","):
        for row in at(name, options, lambda words, name=name: print(f"{name}: {words}", file=sys.stderr, flush=True)):
            rows.append({"where": name, **row})
            options.json.write_text(json.dumps(rows, indent=1, default=float) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 150)
    if timelines := [row for row in rows if row["what"] in ("complete", "copies", "mapped")]:
        console.print(timeline_table(timelines))
    if figures := [row for row in rows if row not in timelines]:
        console.print(figure_table(figures))
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HwrxError as problem:
        sys.exit(f"bench: {problem}")
