"""Does every balance of `hwrx drops` close: each place provoked with a million messages, here and in a guest.

What is sent must be what was delivered and what was lost at the place that was provoked, to the last message. A figure
in `unexplained` other than 0 is the failure, and so is a loss at a place that was not provoked.

A place takes some ten seconds here and minutes in an emulated guest, so results are kept in a file as they come, and a
later call goes on with the places that it does not have yet.

    lab/bench/drops [--guest] [--kernel 6.12] [--messages 1000000] [--only PLACE,…] [--json bench-drops.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PARTLY = ("af-packet", "nothing")  # nothing is lost there


def provoked(place: str, messages: int, guest: list[str]) -> dict[str, Any]:
    """Run one place; what came of it as `hwrx drops --json` says, or under `not here` why nothing did."""
    words = [sys.executable, "-m", "hwrx", "drops", place, "--messages", str(messages), "--json", *guest]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or "{" not in done.stdout:
        raise SystemExit(f"{place}: {done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def line(place: str, where: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    if place in found["not here"]:
        return f"| {place} | {where} | – | | | | | {found['not here'][place]} |"
    balance = found["balances"][place]
    lost = balance["sent"] - balance["delivered"]
    rows = balance["rows"] or balance["beside"]
    at = "; ".join(f"{row['place']} {row['count']:,}" for row in rows)
    clean = balance["unexplained"] == 0 and (place in PARTLY or [row["place"] for row in balance["rows"]] == [place])
    figures = " | ".join(
        f"{value:,}" for value in (balance["sent"], balance["delivered"], lost, balance["unexplained"])
    )
    return (
        f"| {place} | {where} | {figures} | {found['seconds'][place]:.0f} | {at}{'' if clean else ' NOT AS PROVOKED'} |"
    )


def main() -> None:
    """Run what the file does not have yet, and print the table of all that it has."""
    from hwrx.drops import provoke

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--guest", action="store_true")
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--only", default=",".join(provoke.PLACES))
    parser.add_argument("--json", type=Path, default=Path("bench-drops.json"))
    options = parser.parse_args()
    guest = ["--guest", "--kernel", options.kernel] if options.guest else []
    where = f"guest {options.kernel}" if options.guest else f"here, {os.uname().release}"
    kept: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for place in options.only.split(","):
        key = f"{place} @ {where}"
        if key not in kept:
            kept[key] = provoked(place, options.messages, guest)
            options.json.write_text(json.dumps(kept, indent=1))
    print("| provoked | where | sent | delivered | lost | unexplained | s | at |")
    print("|---|---|---|---|---|---|---|---|")
    for key, found in kept.items():
        print(line(*key.split(" @ "), found))


if __name__ == "__main__":
    main()
