"""Is the anatomy exact, of a thousand messages of each path?

Takes messages of each path apart, on two kernels, and holds every one against the guest's clock, interrupted ones
included. Of a path over the NIC the processor stops while the NIC holds an interrupt back, and the clock goes on
without instructions: of those messages no sum may be more than the clock says. Ends with 1 if anything falls short.

    lab/bench/anatomy [--messages 1000] [--kernels 6.1,6.12] [--paths udp,…] [--sizes 64,4096] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

from hwrx import paths
from hwrx.anatomy.dissect import dissect_paths
from hwrx.anatomy.model import Dissection
from hwrx.runs import experiment

PATHS = ("udp", "tcp", "rdma-send", "rdma-write", "nic-ring", "roce-send")
ONE_FRAME = ("nic-ring",)  # a message that no frame holds cannot be sent
JUMBO = {"roce-send": {"mtu": 4096}}  # a packet that fills a page lands in place
NAMED, LAYERED, UNMATCHED = 0.999, 0.98, 1 / 1000  # goals: shares of instructions, at least, and of calls, at most


class Judged(Struct, frozen=True):
    """A setting's figures, and in which of them it falls short."""

    kernel: str
    path: str
    size: int
    messages: int
    exact: int
    awake: int
    beyond: int
    interrupted: int
    named: float
    layered: float
    calls: int
    unmatched: int
    lost: int
    short: list[str]


def judge(one: Dissection, kernel: str, wanted: int) -> Judged:
    """Hold a dissection against the goals. `wanted`: messages; the first of all in a guest wakes the plugin."""
    hit = {message for each in one.machine.interrupts for message in each.messages} if one.machine else set()
    goals = {
        "messages": one.messages >= wanted - 1,
        "sum = clock": one.exact == one.awake and not one.beyond and not one.lost,
        "named": one.named >= NAMED,
        "in a layer": one.layered >= LAYERED,
        "unmatched returns": one.unmatched <= one.calls * UNMATCHED,
    }
    return Judged(
        kernel, one.path, one.size, one.messages, one.exact, one.awake, one.beyond, len(hit), one.named, one.layered,
        one.calls, one.unmatched, one.lost, [name for name, reached in goals.items() if not reached],
    )  # fmt: skip


def dissect_group(names: list[str], topology: str, asked: argparse.Namespace, kernel: str) -> list[Judged]:
    """Take the messages of paths apart that share a guest."""
    sizes = {
        name: {"sizes": [size for size in asked.sizes if size <= 1024 or name not in ONE_FRAME]} | JUMBO.get(name, {})
        for name in names
    }
    plan = experiment.from_options(
        name="anatomy", paths=names, sizes=asked.sizes, messages=asked.messages, topology=topology, kernel=kernel,
        clock="icount", repeats=1, check_every=0, path=sizes,
    )  # fmt: skip
    found = dissect_paths(plan, lambda stage, text: print(f"{kernel} {stage}: {text}", file=sys.stderr, flush=True))
    return [judge(one, kernel, asked.messages) for one in found]


def table_of(judged: list[Judged]) -> Table:
    """All settings, and what each falls short in."""
    table = Table(header_style="bold")
    for column in ("kernel", "path", "size", "messages", "sum = clock", "stopped, beyond", "interrupted", "named",
                   "in a layer", "unmatched", "falls short in"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("kernel", "path", "falls short in") else "right")
    for one in judged:
        table.add_row(
            one.kernel, one.path, f"{one.size:,}", f"{one.messages:,}", f"{one.exact:,} of {one.awake:,}",
            f"{one.messages - one.awake:,}, {one.beyond:,}", f"{one.interrupted:,}", f"{100 * one.named:.2f} %",
            f"{100 * one.layered:.2f} %", f"{one.unmatched} of {one.calls:,}", ", ".join(one.short),
        )  # fmt: skip
    return table


def parsed_options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--kernels", type=lambda words: words.split(","), default=["6.1", "6.12"])
    parser.add_argument("--paths", type=lambda words: words.split(","), default=list(PATHS))
    parser.add_argument("--sizes", type=lambda words: [int(word) for word in words.split(",")], default=[64, 4096])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    """Parse, take apart, print; return the exit code."""
    asked = parsed_options()
    by_topology: dict[str, list[str]] = {}
    for name in asked.paths:
        found = paths.default_topology(name)
        by_topology.setdefault("pair" if found == "netns" else found, []).append(name)
    console = Console(width=170)
    judged: list[Judged] = []
    for kernel in asked.kernels:
        for topology, names in by_topology.items():
            group = dissect_group(names, topology, asked, kernel)
            console.print(table_of(group))  # the next guest takes minutes
            judged += group
    if asked.json:
        asked.json.write_text(json.dumps(to_builtins(judged), indent=1) + "\n", encoding="utf-8")
    return int(any(one.short for one in judged))


if __name__ == "__main__":
    sys.exit(main())
