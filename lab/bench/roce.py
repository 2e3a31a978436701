"""What our own RoCEv2 queue pair costs: receiving, sending, and one message with its acknowledgement.

A guest with one CPU whose clock counts instructions (icount) has two 82574L on one segment, both driven by hwrx. Of a
row that receives, the frames are in the ring before the clock is read, so the sender costs nothing; of one that sends,
the other end takes and acknowledges after it was read. The emulated wire takes no time, so that one thread can be both
ends without ever waiting: that is the last row, both ends' work together, and with it that of building the message,
whose send time is a reading of the clock.

Behind them stand 64 KiB WRITEs, streamed on the same two NICs and waiting by event, ours and the kernel's rxe in turn:
all that both ends execute, the kernel's part too, for a byte.

    lab/bench/roce [--quick] [--kernel 6.12] [--json bench-roce.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZES = (64, 1024)
BATCH = 64
RECEIVED = "received, ICRC, delivered, one ACK a batch"
SENT = "sent, gathered from the user's memory"
POLLED = "one message and its ACK, both ends, polling"
STREAMED, STREAMED_SIZE, STREAMED_MESSAGES = "64 KiB WRITEs streamed, both ends, a byte", 1 << 16, 1000
STREAMED_GOAL = 5  # times fewer than rxe's
GOALS = {RECEIVED: (230, 720), SENT: (150, 650), POLLED: (1000, 2200)}


# --- in the guest --------------------------------------------------------------------------------------------------


def ends(path: str, size: int, window: int, **more: Any) -> dict[str, Any]:
    """Both ends of a path, connected, each on its NIC; the caller closes them. `more`: fields of the setting."""
    from hwrx import paths
    from hwrx.control.messages import Prepare, Setting
    from hwrx.control.places import Place
    from hwrx.wires import guest_nics

    places = {
        role: Place(address=guest_nics.NIC_ADDRESSES[role], netdev=guest_nics.NICS[role])
        for role in ("client", "server")
    }
    # of a stream the server has buffers for many messages, and expects nothing else
    setting = Setting(path=path, pattern="stream", size=size, wait="poll", window=window, **{"limit": 5.0, **more})
    made = {
        role: paths.open_endpoint(Prepare(trial=1, role=role, setting=setting, here=here, there=places[other]))
        for (role, here), other in zip(places.items(), ("server", "client"), strict=True)
    }
    made["client"].connect(made["server"].describe())
    made["server"].connect(made["client"].describe())
    return made


def measure(rounds: int, path: str, size: int) -> dict[str, float]:
    """The rows of one path and size."""
    from cython_ext.core import clock
    from cython_ext.loops import cost

    reading = clock.cost()["p50"]
    taken: dict[str, list[float]] = {SENT: [], RECEIVED: [], POLLED: []}
    pair = ends(path, size, 2 * BATCH)
    client, server = pair["client"], pair["server"]
    for _ in range(rounds):
        count, ns = cost.post(client, BATCH)
        taken[SENT].append((ns - reading) / count)
        count, ns = cost.receive(server, BATCH, BATCH)
        if count != BATCH:
            raise RuntimeError(f"{path}: {count} of {BATCH} messages came")
        taken[RECEIVED].append((ns - reading) / count)
        while client.pair.unfinished:  # the acknowledgement
            client.pair.progress()
    for end in pair.values():
        counts = end.counts()
        if counts.get("roce_copied", 0) or counts.get("roce_copied_out", 0):
            raise RuntimeError(f"{path}: something was copied: {counts}")
        end.close()
    pair = ends(path, size, 1)
    for _ in range(rounds):
        count, ns = cost.carry(pair["client"], pair["server"], BATCH, 1, 1)
        taken[POLLED].append((ns - reading) / count)
    for end in pair.values():
        end.close()
    return {name: statistics.fmean(values[len(values) // 10 :]) for name, values in taken.items()}


def inside(quick: bool) -> None:
    """Measure, and print the results as one line of JSON."""
    from hwrx.wires import topology

    rows: dict[str, dict[int, float]] = {}
    with topology.at_hand("nic"):
        for path in ("roce-send", "roce-write-imm"):
            for size in SIZES:
                for name, value in measure(30 if quick else 300, path, size).items():
                    rows.setdefault(f"{path}: {name}", {})[size] = value
    print("RESULT " + json.dumps(rows), flush=True)


def streamed(guest: Any) -> dict[str, list[float]]:
    """Instructions a byte of streamed WRITEs, of each path in turn."""
    import numpy as np

    from hwrx.control.messages import Setting
    from hwrx.runs.schedule import Pair
    from hwrx.runs.streams import STEADY_INSTRUCTIONS, Withheld, steady_rate
    from hwrx.runs.testbed import GuestBed

    found: dict[str, list[float]] = {}
    with Pair(GuestBed(guest)) as pair:
        for number, path in enumerate(("roce-write", "rdma-write") * 2, 1):
            setting = Setting(
                path=path, pattern="stream", size=STREAMED_SIZE, messages=STREAMED_MESSAGES, schedule="batch"
            )
            measured = pair.measure(number, setting)
            begin, end = measured.steady or (None, None)
            rate = steady_rate(np.cumsum(measured.ns), begin=begin, end=end, least_ns=STEADY_INSTRUCTIONS)
            if isinstance(rate, Withheld):
                raise RuntimeError(f"{path}: {rate.reason}")
            found.setdefault(path, []).append(1e9 / rate.value / STREAMED_SIZE)
    return found


# --- on the host ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--json", type=Path, default=Path("bench-roce.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.quick)
        return 0

    from hwrx.lab.vm import Guest

    with Guest("nic", kernel=options.kernel, clock="icount", limit=600) as guest:
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", *["--quick"] * options.quick]
        done: subprocess.CompletedProcess[str] = guest.run(
            words, {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}, limit=3600, folder=Path.cwd()
        )
        about = guest.describe()
        streams = streamed(guest) if done.returncode == 0 else {}
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        print(done.stdout, done.stderr, file=sys.stderr)
        return 1
    rows = json.loads(line.removeprefix("RESULT "))
    show(rows, about)
    show_streams(streams)
    options.json.write_text(json.dumps(records(rows) + stream_records(streams), indent=2) + "\n")
    return 0


def goal_of(name: str) -> tuple[int, int] | None:
    """The goals are for SEND."""
    return GOALS.get(name.removeprefix("roce-send: "))


def show(rows: dict[str, dict[str, float]], about: dict[str, Any]) -> None:
    print(f"\nGuest instructions a message (one CPU, batch {BATCH}), kernel {about['kernel']}, QEMU's e1000e\n")
    print(f"{'':62}" + "".join(f"{f'{size} B':>10}" for size in SIZES))
    for name, values in rows.items():
        words, goal = "", goal_of(name)
        if goal is not None:
            met = all(values[str(size)] <= limit for size, limit in zip(SIZES, goal, strict=True))
            words = f"   goal {goal[0]} / {goal[1]}: {'met' if met else 'NOT met'}"
        print(f"{name:62}" + "".join(f"{values[str(size)]:10,.0f}" for size in SIZES) + words)


def show_streams(streams: dict[str, list[float]]) -> None:
    """The goal is held against each pair of trials."""
    print(f"\n{STREAMED}")
    for path, values in streams.items():
        print(f"{path:62}" + "".join(f"{value:10.3f}" for value in values))
    times = [rxe / ours for ours, rxe in zip(streams["roce-write"], streams["rdma-write"], strict=True)]
    verdict = "met" if min(times) >= STREAMED_GOAL else "NOT met"
    print(f"{'rxe takes so many times as many':62}" + "".join(f"{value:10.2f}" for value in times)
          + f"   goal {STREAMED_GOAL}: {verdict}")  # fmt: skip


def stream_records(streams: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {
            "what": f"{path}: {STREAMED}", "size": STREAMED_SIZE, "clock": "icount", "value": value,
            "unit": "guest instructions a byte", "goal": None,
        }
        for path, values in streams.items()
        for value in values
    ]  # fmt: skip


def records(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        {
            "what": name,
            "size": size,
            "clock": "icount",
            "value": values[str(size)],
            "unit": "guest instructions a message",
            "goal": None if (goal := goal_of(name)) is None else goal[index],
        }
        for name, values in rows.items()
        for index, size in enumerate(SIZES)
    ]


if __name__ == "__main__":
    sys.exit(main())
