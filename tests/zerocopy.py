"""What the host's and the guest's tests of sending and receiving without copies share."""

from __future__ import annotations

from typing import Any

from hwrx.control.messages import Setting
from hwrx.runs.schedule import Measured
from hwrx.timelines.copies import Row
from hwrx.timelines.traced import Directions

MTU = 4200  # segments of 4096 bytes: whole pages
MIB = 1 << 20


def setting(path: str, size: int, **more: Any) -> Setting:
    """Each message is checked that may be: a ping-pong's by one of its own beside it, others' in front and behind."""
    return Setting(path=path, size=size, **{"messages": 60, "warmup": 10, "check_every": 1, "limit": 20.0, **more})


def sendings(more: dict[str, Any]) -> int:
    """How often a message is sent: once in a stream, twice with its answer; a ping-pong's twice more, to be checked."""
    return {"stream": 1, "paced": 2}.get(str(more.get("pattern")), 4)


def sound(measured: Measured, *, checked: int = 26) -> None:
    """All came, whole, and the kernel has given every buffer back; `checked`: warm-up and cool-down at least."""
    assert (measured.client.ended, measured.server.ended) == ("complete", "complete")
    tally = measured.tally
    assert (tally["lost"], tally["corrupt"], tally["duplicated"]) == (0, 0, 0)
    assert tally.get("zerocopy_unsettled", 0) == 0
    assert tally["checked"] >= checked


def row(found: Directions, stage: str) -> Row:
    (it,) = [row for row in found.ledger.rows if row.stage == stage]
    return it
