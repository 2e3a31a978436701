"""What tracing costs on this machine: a part of lab/bench/trace."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Setting
from hwrx.probes.recording import Ledger
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed

LIMIT = 60.0
MESSAGES = 8000
Row = dict[str, Any]


@contextmanager
def attached(bed: Bed, paths: list[str], histograms: bool = False) -> Iterator[Ledger]:
    spaces = {parse_environment(spec).netns for spec in bed._peers.values()}
    names = sorted(name for name in spaces if name)
    with Ledger(paths, namespaces=names, histograms=histograms) as ledger:
        yield ledger


def of_pingpong(bed: Bed, path: str, sample_every: int, pairs: int) -> Row:
    """Ping-pong between two CPUs; each trial with the programs attached stands between two without."""
    places = dict(bed.places)
    bed.places = {
        role: msgspec.structs.replace(place, cpu=cpu)
        for cpu, (role, place) in zip(sorted(os.sched_getaffinity(0)), places.items(), strict=False)
    }
    one = Setting(path=path, size=64, messages=MESSAGES, wait="event", warmup=1000, limit=LIMIT)
    off, on, stamps = [], [], 0
    try:
        with Pair(bed) as pair:
            off.append(float(np.median(pair.measure(1, one).ns)))
            for number in range(pairs):
                with attached(bed, [path], histograms=not sample_every) as ledger:
                    ledger.begin(sample_every=sample_every, size=64)
                    on.append(float(np.median(pair.measure(2 * number + 2, one).ns)))
                    stamps = int(ledger.end().totals["count"].sum())
                off.append(float(np.median(pair.measure(2 * number + 3, one).ns)))
    finally:
        bed.places = places
    # against the mean of its neighbours: what drifts meanwhile goes out
    ratios = [ours / (before * after) ** 0.5 for ours, before, after in zip(on, off, off[1:], strict=False)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "what": "ping-pong between two CPUs",
        "path": path,
        "mode": "histograms" if not sample_every else f"timelines of every {sample_every}th",
        "pairs": pairs,
        "rtt_off_ns": statistics.median(off),
        "rtt_on_ns": statistics.median(on),
        "ratio": middle,
        "low": low,
        "high": high,
        "stamps": stamps / (MESSAGES + one.warmup + one.cooldown),
    }


def in_one_thread(pairs: int, rounds: int = 20_000) -> Row:
    """One thread sends itself a datagram over loopback and takes it: nothing runs beside it, no wake-up."""
    from cython_ext.core.payload import make

    there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # as they come: one in eight is timed, and all are counted
    messages = [make(64, number) for number in range(rounds)]
    with there, here:
        here.bind(("127.0.0.1", 0))
        there.connect(here.getsockname())
        here.connect(there.getsockname())

        def once() -> float:
            start = time.monotonic_ns()
            for message in messages:
                there.send(message)
                here.recv(64)
            return (time.monotonic_ns() - start) / rounds

        once()
        off, on, stamps = [], [], 0.0
        for _ in range(pairs):
            off.append(once())
            with Ledger(["udp"], histograms=True) as ledger:
                ledger.begin(sample_every=0, size=64)
                on.append(once())
                stamps = int(ledger.end().totals["count"].sum()) / rounds
    cost = statistics.median(ours - other for ours, other in zip(on, off, strict=True))
    return {
        "what": "one thread",
        "off_ns": statistics.median(off),
        "on_ns": statistics.median(on),
        "stamps": stamps,
        "ns_a_stamp": cost / stamps if stamps else float("nan"),
    }


def of_draining(bed: Bed) -> Row:
    """Fill the ring while nobody drains it, then drain it at once."""
    from cython_ext.bpf.tracer import EVENT

    costs, total = [], 0
    out = np.zeros(1 << 16, dtype=EVENT).view(np.uint8)
    out[:] = 1  # the pages are there
    with Pair(bed) as pair, attached(bed, ["udp"]) as ledger:
        ledger.begin(sample_every=1, size=64, trial=1)
        ledger._join()
        pair.measure(1, Setting(path="udp", size=64, messages=8000, limit=LIMIT))
        tracer = ledger._prober.tracer
        assert tracer is not None
        while True:
            before = time.monotonic_ns()
            count = tracer.drain(out)
            spent = time.monotonic_ns() - before
            total += count
            if count < 1 << 16:
                break
            costs.append(spent / count)
    return {"what": "draining", "events": total, "ns_an_event": statistics.median(costs) if costs else float("nan")}


def of_attaching() -> Row:
    seconds = []
    for _ in range(4):
        before = time.monotonic()
        with Ledger(["udp", "tcp"]):
            seconds.append(time.monotonic() - before)
    return {"what": "attaching again", "first_s": seconds[0], "then_s": statistics.median(seconds[1:])}


def rows(bed: Bed, paths: list[str], pairs: int, say: Callable[[str], None]) -> Iterator[Row]:
    for path in paths:
        say(f"cost of histograms on {path}, {pairs} pairs")
        yield of_pingpong(bed, path, 0, pairs)
    if "udp" in paths:
        say("cost in one thread, of draining and of attaching")
        yield in_one_thread(pairs)
        yield of_draining(bed)
        yield of_attaching()
        say("cost of timelines on udp")
        yield of_pingpong(bed, "udp", 10, pairs)


def words(row: Row) -> tuple[str, str, str, str, str]:
    """What, the figure, its goal, whether it is met, and how it was found."""

    def against(value: float, goal: float) -> str:
        return "met" if value <= goal else "MISSED"

    match row["what"]:
        case "ping-pong between two CPUs":
            more = 100 * (row["ratio"] - 1)
            goal, met = ("<= 5 %", against(more, 5)) if row["mode"] == "histograms" else ("", "")
            how = (
                f"p50 of the round trip {row['rtt_off_ns'] / 1000:.1f} -> {row['rtt_on_ns'] / 1000:.1f} µs, "
                f"quartiles of {row['pairs']} pairs {100 * (row['low'] - 1):+.1f} to {100 * (row['high'] - 1):+.1f} %, "
                f"{row['stamps']:.0f} stamps"
            )
            return f"{row['path']}, two CPUs, {row['mode']}", f"{more:+.1f} %", goal, met, how
        case "one thread":
            how = f"{row['off_ns']:.0f} -> {row['on_ns']:.0f} ns a datagram, {row['stamps']:.0f} stamps"
            cost = row["ns_a_stamp"]
            return "histograms, one thread", f"{cost:.0f} ns a stage", "<= 100 ns", against(cost, 100), how
        case "draining":
            cost = row["ns_an_event"]
            return "draining", f"{cost:.1f} ns an event", "<= 20 ns", against(cost, 20), f"{row['events']:,} events"
        case _:
            how = f"{row['first_s']:.2f} s the first time"
            return "attaching udp, tcp again", f"{row['then_s']:.2f} s", "<= 2 s", against(row["then_s"], 2), how
