"""What the host's and the guest's tests of sending and receiving without copies share."""

from __future__ import annotations

from typing import Any

from hwrx.messages import Setting
from hwrx.run import Measured
from hwrx.trace.copies import Row
from hwrx.trace.traced import Directions

MTU = 4200  # segments of 4096 bytes: whole pages
MIB = 1 << 20


def setting(path: str, size: int, **more: Any) -> Setting:
    """Every byte of every message is checked."""
    return Setting(path=path, size=size, **{"messages": 60, "warmup": 10, "check_every": 1, "limit": 20.0, **more})


def sound(measured: Measured) -> None:
    """All came, whole, and the kernel has given every buffer back."""
    assert (measured.client.ended, measured.server.ended) == ("complete", "complete")
    tally = measured.tally
    assert (tally["lost"], tally["corrupt"], tally["duplicated"]) == (0, 0, 0)
    assert tally.get("zerocopy_unsettled", 0) == 0
    assert tally["checked"] >= tally["delivered"]


def row(found: Directions, stage: str) -> Row:
    (it,) = [row for row in found.ledger.rows if row.stage == stage]
    return it
