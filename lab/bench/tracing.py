"""The ledger held against what it promises: completeness, copies per byte, and its own cost.

    lab/bench/trace                          on this kernel: udp and tcp between two namespaces, and what tracing costs
    lab/bench/trace --guest 6.12             in a guest of that kernel: udp, tcp, rdma-send, rdma-write
    lab/bench/trace --guest 6.1 --messages 1000 --size 64,4096 --json FILE

Completeness: the share of messages with every stage that each message passes, stamped in order. Cost: trials with
tracing off and on, turn about; histogram mode sends no events. Nothing here is a test: a missed goal is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from hwrx import topology
from hwrx.errors import HwrxError
from hwrx.messages import Setting
from hwrx.run import Pair
from hwrx.testbed import Bed, GuestBed
from hwrx.trace.ledger import Ledger
from hwrx.trace.traced import RunTracer

LIMIT = 900.0
PAIRS = 9


def setting(path: str, size: int, messages: int, **more: Any) -> Setting:
    wait = "poll" if path == "rdma-write" else "event"
    # a large message is many packets: few in flight, so that none is lost for want of room
    return Setting(path=path, size=size, messages=messages, wait=wait, limit=60.0, window=16, **more)


def completeness(bed: Any, paths: list[str], sizes: list[int], messages: int) -> Iterator[dict[str, Any]]:
    with Pair(bed) as pair, RunTracer(bed, paths) as tracer:
        tracer.attach()
        assert tracer.tracing is not None
        yield {"what": "attach", "seconds": round(tracer.tracing.seconds, 2), "programs": len(tracer.tracing.available)}
        number = 0
        for path in paths:
            for size in sizes:
                number += 1
                count = messages if size <= 4096 else max(messages // 20, 50)
                size = min(size, 65507) if path == "udp" else size
                try:
                    found = tracer.trace(pair, number, setting(path, size, count), LIMIT, timelines=count)
                except HwrxError as error:
                    yield {"what": "complete", "path": path, "size": size, "error": str(error).splitlines()[0]}
                    continue
                for direction, timelines in found.timelines.items():
                    intervals, _ = timelines.intervals()
                    yield {
                        "what": "complete",
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
                            f"{row.side} difference": row.per_byte for row in found.ledger.rows if row.kind == "balance"
                        },
                    }


@contextmanager
def attached(bed: Bed, paths: list[str], histograms: bool = False) -> Iterator[Ledger]:
    names = sorted(spec[6:] for spec in set(bed._peers.values()) if spec.startswith("netns:"))
    with Ledger(paths, namespaces=names, histograms=histograms) as ledger:
        yield ledger


def cost_of_pingpong(bed: Bed, path: str, messages: int, sample_every: int, apart: bool) -> dict[str, Any]:
    """Ping-pong, each pair one trial without and one with the programs attached.

    `apart`: the ends stand on two CPUs; otherwise where the scheduler puts them, which is mostly one.
    """
    places = dict(bed.places)
    if apart:
        bed.places = {
            role: msgspec.structs.replace(place, cpu=cpu)
            for cpu, (role, place) in zip(sorted(os.sched_getaffinity(0)), places.items(), strict=False)
        }
    try:
        return _cost_of_pingpong(bed, path, messages, sample_every, "two CPUs" if apart else "unpinned")
    finally:
        bed.places = places


def _cost_of_pingpong(bed: Bed, path: str, messages: int, sample_every: int, where: str) -> dict[str, Any]:
    pinned = setting(path, 64, messages, warmup=2000)
    ratios, off, on = [], [], []
    with Pair(bed) as pair:
        for number in range(PAIRS):
            plain = pair.measure(2 * number, pinned, LIMIT)
            with attached(bed, [path], histograms=not sample_every) as ledger:
                ledger.begin(sample_every=sample_every, size=64, trial=2 * number + 1)
                traced = pair.measure(2 * number + 1, pinned, LIMIT)
                recording = ledger.end()
            off.append(float(np.median(plain.ns)))
            on.append(float(np.median(traced.ns)))
            ratios.append(on[-1] / off[-1])
    stamps = int(recording.totals["count"].sum()) / (messages + pinned.warmup + pinned.cooldown)
    return {
        "what": f"cost, {where}",
        "path": path,
        "mode": "histograms" if not sample_every else f"timelines of every {sample_every}th",
        "rtt_off_ns": statistics.median(off),
        "rtt_on_ns": statistics.median(on),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "stamps_a_round_trip": round(stamps, 1),
        "ns_a_stamp": (statistics.median(on) - statistics.median(off)) / stamps if stamps else float("nan"),
    }


def cost_in_one_thread(rounds: int = 20_000) -> dict[str, Any]:
    """One thread sends itself a datagram over loopback and takes it: nothing runs beside it, no wake-up."""
    from cython_ext.payload import make

    message = make(64, 5)
    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with there, here:
        here.bind(("127.0.0.1", 0))
        there.connect(here.getsockname())

        def once() -> float:
            start = time.monotonic_ns()
            for _ in range(rounds):
                there.send(message)
                here.recv(64)
            return (time.monotonic_ns() - start) / rounds

        once()
        off, on, stamps = [], [], 0.0
        for _ in range(PAIRS):
            off.append(once())
            with Ledger(["udp"], histograms=True) as ledger:
                ledger.begin(sample_every=0, size=64)
                on.append(once())
                stamps = int(ledger.end().totals["count"].sum()) / rounds
    return {
        "what": "cost in one thread",
        "off_ns": min(off),
        "on_ns": min(on),
        "stamps": round(stamps, 1),
        "ns_a_stamp": (min(on) - min(off)) / stamps if stamps else float("nan"),
    }


def cost_of_draining(bed: Bed) -> dict[str, Any]:
    """Fill the ring while nobody drains it, then drain it at once."""
    from cython_ext.tracer import EVENT

    with Pair(bed) as pair, attached(bed, ["udp"]) as ledger:
        ledger.begin(sample_every=1, size=64, trial=1)
        ledger._join()
        pair.measure(1, setting("udp", 64, 8000), LIMIT)
        out = np.zeros(1 << 16, dtype=EVENT).view(np.uint8)
        out[:] = 1  # the pages are there
        tracer = ledger._prober.tracer
        assert tracer is not None
        total, costs = 0, []
        while True:
            before = time.monotonic_ns()
            count = tracer.drain(out)
            spent = time.monotonic_ns() - before
            total += count
            if count < 1 << 16:
                break
            costs.append(spent / count)
    return {"what": "draining", "events": total, "ns_an_event": costs, "best_ns": min(costs, default=float("nan"))}


def cost_of_attaching() -> dict[str, Any]:
    seconds = []
    for _ in range(3):
        before = time.monotonic()
        with Ledger(["udp", "tcp"]):
            seconds.append(time.monotonic() - before)
    return {"what": "attaching", "first_s": seconds[0], "then_s": min(seconds[1:])}


def show(rows: list[dict[str, Any]], where: str) -> None:
    console = Console(width=150)
    table = Table(title=f"timelines, {where}", title_justify="left")
    for heading in ("path", "size", "direction", "messages", "complete", "sums", "lost", "TX/B", "RX/B", "remarks"):
        table.add_column(heading, justify="left" if heading in ("path", "direction", "remarks") else "right")
    for row in rows:
        if row["what"] != "complete":
            continue
        if "error" in row:
            table.add_row(row["path"], str(row["size"]), "", "", "", "", "", "", "", row["error"])
            continue
        remarks = {k: row[k] for k in ("missing", "disordered", "missed", "balance") if row[k]}
        table.add_row(
            row["path"], f"{row['size']:,}", row["direction"], f"{row['messages']:,}", f"{100 * row['share']:.3f} %",
            "yes" if row["sums"] else "NO", str(row["lost"]), f"{row['sender']:.4f}", f"{row['receiver']:.4f}",
            json.dumps(remarks) if remarks else "",
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row["what"] != "complete":
            words = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if k != "what"}
            console.print(f"{row['what']}: {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guest", metavar="KERNEL", help="in a guest of this kernel, for example 6.12")
    parser.add_argument("--paths", help="for example udp,rdma-send")
    parser.add_argument("--size", default="64,1400", help="bytes, separated by commas")
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--cost-only", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.size.split(",")]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if options.guest:
            from hwrx.vm import Guest

            bed: Any = GuestBed(stack.enter_context(Guest("pair", kernel=options.guest)))
            paths = (options.paths or "udp,tcp,rdma-send,rdma-write").split(",")
        else:
            made = stack.enter_context(topology.netns())
            bed = Bed(made.places, made.peers, {})
            paths = (options.paths or "udp,tcp").split(",")
        if not options.cost_only:
            for row in completeness(bed, paths, sizes, options.messages):
                rows.append(row)
                print(json.dumps(row, default=float), flush=True)
        if not options.guest:
            for apart in (True, False):
                for path in paths:
                    rows.append(cost_of_pingpong(bed, path, 20_000, 0, apart))
                rows.append(cost_of_pingpong(bed, paths[0], 20_000, 10, apart))
            rows += [cost_in_one_thread(), cost_of_draining(bed), cost_of_attaching()]
    show(rows, f"kernel {options.guest} in a guest" if options.guest else "this kernel")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2, default=float) + "\n")


if __name__ == "__main__":
    main()
