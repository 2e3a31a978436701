"""What the counting of `hwrx flood` costs: with and without it, in turn, and the ratio pair by pair.

In a guest with one CPU whose clock counts instructions (icount), one thread posts a batch of messages and receives it,
again and again, over udp and rdma-send: guest instructions a message, both ends and the kernel between them. Attached
are, in turn with nothing: `counters`, the programs that give each nanosecond of a CPU to somebody and count polls, runs
and interrupts; `books`, the one that sees every packet that is freed as dropped; and `both`, which is what a flood has.
Here, on two CPUs by wall clock, a sender without pause and a reader show what capacity is left of udp: messages
delivered a second with both, against the mean of the floods before and after, which have nothing.

    lab/bench/flood [--where icount|here] [--kernel 6.12] [--pairs 7] [--json bench-flood.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATHS = ("udp", "rdma-send")
ATTACHED = ("counters", "books", "both")
MESSAGES, WARM, BATCH = 6_400, 1_280, 64
BURST = 400_000
SILENCE = 900.0  # seconds that a row may take in a guest that counts instructions, on a busy machine
Row = dict[str, Any]


@contextlib.contextmanager
def counted(what: str, path: str, trial: int) -> Iterator[None]:
    """Count, as a flood does."""
    from hwrx.drops.books import Books
    from hwrx.probes import counting
    from hwrx.wires import topology

    with contextlib.ExitStack() as stack:
        if what in ("books", "both"):
            stack.enter_context(Books(trial))
        if what in ("counters", "both"):
            counter = stack.enter_context(counting.Counter(20.0, rxe=path == "rdma-send"))
            counter.aim(topology.LINKS["server"], [], counting.read_sysctls())
            counter.begin()
            stack.callback(counter.end)
        yield


def in_turn(off: Callable[[], float], on: Callable[[int], float], pairs: int) -> tuple[list[float], list[float]]:
    """Measure without and with, each `with` between two without; return those without, and the ratios."""
    without, ratios = [off()], []
    for number in range(pairs):
        value = on(number + 2)
        without.append(off())
        ratios.append(value / ((without[-2] + without[-1]) / 2))
    return without, ratios


def row(what: str, path: str, unit: str, without: list[float], ratios: list[float]) -> Row:
    """One line of the table."""
    typical = statistics.median(without)
    return {
        "what": what, "path": path, "unit": unit, "pairs": len(ratios), "without": typical,
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        "with": typical * statistics.median(ratios),
    }  # fmt: skip


# --- guest instructions -----------------------------------------------------------------------------------------------


def instructions(path: str, pairs: int) -> Iterator[Row]:
    """Rows of one path, in a guest that counts instructions."""
    from cython_ext.loops import cost
    from hwrx import paths
    from hwrx.control.messages import Prepare
    from hwrx.flood import Spec, scene
    from hwrx.wires import topology

    setting = scene.setting_of(Spec(path=path, burst=MESSAGES, batch=BATCH))
    with topology.at_hand("pair") as made, contextlib.ExitStack() as stack:
        ends = {}
        for role, other in (("server", "client"), ("client", "server")):
            prepare = Prepare(trial=1, role=role, setting=setting, here=made.places[role], there=made.places[other])
            ends[role] = paths.open_endpoint(prepare)
            stack.callback(ends[role].close)
        told = {role: end.describe() for role, end in ends.items()}
        ends["client"].connect(told["server"])
        ends["server"].connect(told["client"])

        def carried(count: int = MESSAGES) -> float:
            done, ns = cost.carry(ends["client"], ends["server"], count, 1, BATCH)
            if done != count:
                raise SystemExit(f"{path}: {done} of {count} messages came")
            return ns / done

        for what in ATTACHED:

            def on(trial: int, what: str = what) -> float:
                with counted(what, path, 1):
                    carried(WARM)
                    return carried()

            carried(WARM)
            yield row(what, path, "guest instructions a message", *in_turn(carried, on, pairs))


# --- capacity ---------------------------------------------------------------------------------------------------------


class Nothing:
    """What stands for the counters where nothing is counted."""

    def begin(self) -> None:
        """Count nothing."""

    def end(self) -> None:
        """Return nothing."""


def capacity(pairs: int) -> Row:
    """Messages that udp delivers a second while one CPU sends without pause and another one reads."""
    from hwrx import flood
    from hwrx.flood import scene

    spec = flood.Spec(burst=BURST)
    with flood.flood_wire(spec) as bed:

        def taken(counter: Any) -> float:
            with contextlib.ExitStack() as stack:
                one = scene._Scene(spec, bed, stack, lambda text: None)
                one._open()
                one._flood(counter)
                came = one.wave.taken[one.wave.taken > 0]
                return len(came) / (int(came.max()) - int(one.wave.sent.min())) * 1e9

        def on(trial: int) -> float:
            from hwrx.drops.books import Books
            from hwrx.probes import counting

            with Books(spec.trial, list(bed.spaces.values())), counting.Counter(20.0) as counter:
                counter.aim(bed.places["server"].netdev or "", [], counting.read_sysctls())
                return taken(counter)

        taken(Nothing())
        return row("both", "udp", "messages a second, wall clock", *in_turn(lambda: taken(Nothing()), on, pairs))


# --- both -------------------------------------------------------------------------------------------------------------


def in_guest(kernel: str | None, pairs: int) -> tuple[str, list[Row]]:
    """Measure in a guest that counts instructions."""
    from hwrx.lab.vm import Guest

    rows: list[Row] = []
    with Guest("pair", kernel=kernel, clock="icount", limit=600) as guest:
        about = guest.describe()
        where = f"guest, Linux {about['kernel']}"
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", "--pairs", str(pairs)]
        folder = str(Path(__file__).resolve().parents[2])
        pipe = guest.command(words, {"PYTHONPATH": folder}, folder=Path.cwd(), errors="merged")
        with contextlib.closing(pipe):
            pipe.end_input()
            pipe.settimeout(SILENCE)
            said = b""
            while data := pipe.recv(1 << 16):
                *lines, said = (said + data).split(b"\n")
                for each in lines:
                    if not each.startswith(b"ROW "):
                        raise SystemExit((each + b"\n" + said).decode(errors="replace"))
                    rows.append(json.loads(each.removeprefix(b"ROW ")))
                    print(line(where, rows[-1]), file=sys.stderr)
    return where, rows


def line(where: str, each: Row) -> str:
    """One line of the table."""
    return (
        f"| {where} | {each['path']} | {each['what']} | {each['without']:,.0f} | {each['with']:,.0f} |"
        f" {each['ratio']:.3f} ({each['low']:.3f} to {each['high']:.3f}) | {each['unit']} |"
    )


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", choices=("icount", "here"), help="one half of it")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("bench-flood.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        for path in PATHS:
            for each in instructions(path, options.pairs):
                print("ROW " + json.dumps(each), flush=True)
        return
    found: dict[str, list[Row]] = {}
    if options.where != "here":
        where, rows = in_guest(options.kernel, options.pairs)
        found[where] = rows
    if options.where != "icount":
        found[f"here, Linux {os.uname().release}"] = [capacity(options.pairs)]
    print("| where | path | counted by | without | with | ratio, median of pairs (range) | |")
    print("|---|---|---|---|---|---|---|")
    for where, rows in found.items():
        for each in rows:
            print(line(where, each))
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
