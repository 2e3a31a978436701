"""The guest's side of `hwrx memory`: reads what to measure from standard input, prints what was found as one line."""

from __future__ import annotations

import sys

import msgspec

from hwrx.host import tools
from hwrx.host.interruption import run_beneath
from hwrx.memory import everything
from hwrx.wires import guest_nics


def main() -> int:
    """Serve one request; the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=everything.Request)
    tools.run_tool("modprobe", "-a", *guest_nics.NIC_MODULES)
    nic = guest_nics.NIC_HARDWARE["server"]
    found = everything.measure_everything(pages=request.pages, nic=nic, clock=request.clock)
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(run_beneath(main))
