"""Messages that no CPU stores to memory: 100,000 of them, received into memory that the CPU may not write to.

Two 82574L of a guest, both driven by hwrx, carry SENDs, WRITEs and WRITEs with immediate of 1 byte to 1 MiB at RoCE's
largest MTU. Before the first message mprotect(2) takes the right to write from what messages are received into: the
user's pages, or, of a SEND of one packet, the buffers of the ring, which are its receive buffers. A store of the CPU
there ends the process by SIGSEGV. Of every packet the ICRC is computed where it lies: its bytes are right there.

    lab/bench/roce_placed [--messages 100000] [--kernel 6.12] [--json bench-roce-placed.json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import sys
from pathlib import Path
from typing import Any

from roce import ends

# the share of all messages of one verb; large ones are few, for they are long under emulation
SHARES = {1: 0.2, 64: 0.25, 1021: 0.15, 4096: 0.2, 4097: 0.1, 5000: 0.05, 20_000: 0.03, 65_536: 0.015, 131_072: 0.004,
          1 << 20: 0.001}  # fmt: skip
PATHS = ("roce-send", "roce-write", "roce-write-imm")
TOGETHER = 16
BYTES_TOGETHER = 1 << 17  # as many as the other end has buffers for


# --- in the guest --------------------------------------------------------------------------------------------------


def protect(address: int, size: int, rights: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), rights) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def carry(path: str, size: int, messages: int) -> dict[str, int]:
    """So many messages, a few at a time; what the receiver counted."""
    from cython_ext.loops import cost

    window = max(1, min(TOGETHER, BYTES_TOGETHER // size))
    made = ends(path, size, window, mtu=4096, limit=20.0, patience=10.0)
    client, server = made["client"], made["server"]
    address, room = server.link.device_memory()
    protect(address, room, mmap.PROT_READ)
    try:
        done = 0
        while done < messages:
            count = min(window, messages - done)
            cost.post(client, count)
            # a long message goes as its packets are acknowledged, so both ends work until all are
            while client.pair.unfinished:
                server.pair.progress()
                client.pair.progress()
            # of WRITEs nobody is told
            if path != "roce-write" and cost.receive(server, count, count)[0] != count:
                raise RuntimeError(f"{path} {size}: messages are missing: {server.pair.counters}")
            done += count
        counters = server.pair.counters
    finally:
        protect(address, room, mmap.PROT_READ | mmap.PROT_WRITE)
        for end in made.values():
            end.close()
    return {name: counters[name] for name in ("packets", "placed", "in_frames", "copied", "misplaced", "wrong_icrc")}


def inside(messages: int) -> None:
    """Measure, and print the results as one line of JSON."""
    from hwrx.wires import topology

    rows = []
    with topology.at_hand("nic"):
        for path in PATHS:
            for size, share in SHARES.items():
                count = max(1, round(messages * share / len(PATHS)))
                found = carry(path, size, count)
                rows.append({"path": path, "size": size, "messages": count, **found})
                print(f"{path} {size}: {count} messages", file=sys.stderr, flush=True)
    print("RESULT " + json.dumps(rows), flush=True)


# --- on the host ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="of all verbs and sizes together")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--json", type=Path, default=Path("bench-roce-placed.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.messages)
        return 0

    from hwrx.lab.vm import Guest

    with Guest("nic", kernel=options.kernel, limit=600) as guest:
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", "--messages", str(options.messages)]
        done = guest.run(words, {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}, limit=3600, folder=Path.cwd())
        about = guest.describe()
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        print(done.stdout, done.stderr, file=sys.stderr)
        return 1
    rows = json.loads(line.removeprefix("RESULT "))
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return show(rows, str(about["kernel"]))


def show(rows: list[dict[str, Any]], kernel: str) -> int:
    """A table, and whether every byte landed."""
    print(f"\nReceived into memory that the CPU may not write to, kernel {kernel}, QEMU's e1000e\n")
    print(f"{'':16}{'size':>10}{'messages':>10}{'packets':>10}{'DMA-ed bytes':>16}{'copied':>8}{'wrong ICRC':>12}")
    wrong = 0
    for row in rows:
        landed = row["placed"] + row["in_frames"]
        print(f"{row['path']:16}{row['size']:10,}{row['messages']:10,}{row['packets']:10,}{landed:16,}"
              f"{row['copied']:8,}{row['wrong_icrc']:12,}")  # fmt: skip
        wrong += row["copied"] + row["wrong_icrc"] + (landed != row["messages"] * row["size"])
    total = sum(row["messages"] for row in rows)
    print(f"\n{total:,} messages: {'no CPU store into any of them' if wrong == 0 else 'NOT all in place'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
