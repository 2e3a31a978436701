"""Does every balance of `hwrx drops` close: each place provoked with a million messages, here and in a guest.

What is sent must be what was delivered and what was lost at the place that was provoked, to the last message. A figure
in `unexplained` other than 0 is the failure, and so is a loss at a place that was not provoked.

A place takes some ten seconds here and minutes in an emulated guest, so results are kept in a file as they come, and a
later call goes on with the places that it does not have yet.

    lab/bench/drops [--guest] [--kernel 6.12] [--messages 1000000] [--only PLACE,…] [--json bench-drops.json]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from hwrx.drops import provoke, run

PARTLY = ("af-packet", "nothing")  # nothing is lost there
ELSEWHERE = {"nic-ring": "segment", "nic-ring-ours": "segment"}  # an emulated NIC's ring lets frames wait on the wire


def say(stage: str, text: str) -> None:
    """Say what is being done."""
    sys.stderr.write(f"{stage}: {text}\n")


def line(where: str, found: run.Provoked) -> str:
    """One line of the table."""
    place, balance = found.place, found.balance
    if balance is None:
        return f"| {place} | {where} | – | | | | | {found.refused} |"
    rows = balance.rows or balance.beside
    at = "; ".join(f"{row.place} {row.count:,}" for row in rows)
    wanted = [] if place in PARTLY else [ELSEWHERE.get(place, place)]
    clean = balance.unexplained == 0 and [row.place for row in balance.rows] == wanted
    figures = " | ".join(f"{value:,}" for value in (balance.sent, balance.delivered, balance.lost, balance.unexplained))
    return f"| {place} | {where} | {figures} | {found.seconds:.0f} | {at}{'' if clean else ' NOT AS PROVOKED'} |"


def main() -> None:
    """Provoke what the file does not have yet, and print the table of all that it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--guest", action="store_true")
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--only", default=",".join(provoke.PLACES))
    parser.add_argument("--json", type=Path, default=Path("bench-drops.json"))
    options = parser.parse_args()
    where = f"guest {options.kernel}" if options.guest else f"here, {os.uname().release}"
    kept: dict[str, list[run.Provoked]] = {}
    if options.json.exists():
        kept = msgspec.json.decode(options.json.read_bytes(), type=dict[str, list[run.Provoked]])
    ours = kept.setdefault(where, [])
    left = [place for place in options.only.split(",") if place not in {each.place for each in ours}]
    run.check_place(left, options.messages)
    request = run.Request(left, options.messages)
    maker = run.in_guest(request, options.kernel, say) if options.guest else run.drops_here(request, say)
    for each in maker if left else ():
        ours.append(each)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    print("| provoked | where | sent | delivered | lost | unexplained | s | at |")
    print("|---|---|---|---|---|---|---|---|")
    for place, results in kept.items():
        for each in results:
            print(line(place, each))


if __name__ == "__main__":
    main()
