"""Is the sum over functions what the guest's clock says, of each of 1,000 messages of each path, on each kernel?

`hwrx anatomy` takes messages apart; what it says of itself is held against what is wanted of it: of every message in
which the processor did not stop the sum is the clock's to the digit, in no other it is more than that; 99.9 % of the
instructions have a name and 98 % a layer; at most one return in a thousand is from what was never seen called. A guest
for each kernel and row of GROUPS: what needs the 82574L stands on `nic`, where nic-ring carries a frame at most.

    lab/bench/anatomy [--messages 1000] [--paths udp,roce-send] [--kernels 6.1,6.12]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import msgspec

from hwrx.anatomy.dissect import dissect_paths
from hwrx.anatomy.model import Dissection
from hwrx.runs import experiment

# topology, paths, bytes of a message
GROUPS = (
    ("pair", ("udp", "tcp", "rdma-send", "rdma-write"), (64, 4096)),
    ("nic", ("nic-ring",), (64, 1472)),
    ("nic", ("roce-send",), (64, 4096)),
)
NAMED, LAYERED, UNMATCHED = 0.999, 0.98, 0.001


def faults_of(one: Dissection, messages: int) -> list[str]:
    """Say what is not as it is wanted; the very first message of a guest wakes the plugin, and is not seen."""
    wanted = {
        f"{one.messages} messages": one.messages >= messages - 1,
        f"{one.awake - one.exact} are not what the clock says": one.exact == one.awake,
        f"{one.beyond} more than it says": one.beyond == 0,
        f"{one.lost} words lost": one.lost == 0,
        f"{100 * one.named:.2f} % named": one.named >= NAMED,
        f"{100 * one.layered:.2f} % in a layer": one.layered >= LAYERED,
        f"{one.unmatched} of {one.calls} returns unmatched": one.unmatched <= UNMATCHED * one.calls,
    }
    return [words for words, holds in wanted.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1000, help="of each path, size and kernel")
    everything = [path for _, paths, _ in GROUPS for path in paths]
    parser.add_argument("--paths", type=lambda text: text.split(","), default=everything, help="some of them")
    parser.add_argument("--kernels", default="6.1,6.12")
    parser.add_argument("--json", type=Path, default=Path("bench-anatomy.json"))
    options = parser.parse_args()
    rows = []
    print(f"{'kernel':8}{'path':12}{'size':>6}{'messages':>10}{'awake':>8}{'exact':>8}{'beyond':>8}{'named':>9}"
          f"{'layered':>9}{'calls':>7}{'unmatched':>10}{'instructions':>14}")  # fmt: skip
    for kernel, (topology, paths, sizes) in itertools.product(options.kernels.split(","), GROUPS):
        chosen = [path for path in paths if path in options.paths]
        if not chosen:
            continue
        plan = experiment.from_options(
            name="anatomy",
            paths=chosen,
            sizes=list(sizes),
            messages=options.messages,
            topology=topology,
            kernel=kernel,
            clock="icount",
            repeats=1,
        )
        for one in dissect_paths(plan, lambda stage, text: print(f"{stage}: {text}", file=sys.stderr, flush=True)):
            faults = faults_of(one, options.messages)
            print(f"{kernel:8}{one.path:12}{one.size:6,}{one.messages:10,}{one.awake:8,}{one.exact:8,}"
                  f"{one.beyond:8,}{one.named:9.2%}{one.layered:9.2%}{one.calls:7,}{one.unmatched:10,}"
                  f"{one.instructions:14,.1f}  {'; '.join(faults)}", flush=True)  # fmt: skip
            kept = msgspec.to_builtins(msgspec.structs.replace(one, pieces=[], parts=[], stamps=[], states=[]))
            rows.append({"kernel": kernel, "topology": topology, "faults": faults} | kept)
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    total, wrong = sum(row["messages"] for row in rows), sum(bool(row["faults"]) for row in rows)
    print(f"\n{total:,} messages: {'all as they should be' if not wrong else f'{wrong} of {len(rows)} rows are not'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
