"""Between two stamps lies the path's own work alone: counted in guest instructions, checks of messages or not.

`lab/bench/timed_region` measures the same for more paths and all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hwrx.control.messages import Setting
from hwrx.lab.vm import Guest
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import GuestBed

# to fill or to verify one such message takes more than a thousand instructions, which is beyond the bound on each path
SIZE = 1000
BOUND = 0.002
PATHS = ("udp", "tcp", "rdma-send", "rdma-write-imm", "rdma-read", "rdma-ud", "xdp")


@pytest.fixture(scope="module")
def pair(needs: Callable[..., None]) -> Iterator[Pair]:
    """Two agents in a guest that counts instructions; booted once for all paths."""
    needs("guest")
    with Guest("pair", clock="icount") as guest, Pair(GuestBed(guest)) as agents:
        yield agents


@pytest.mark.parametrize("path", PATHS)
def test_a_round_trip_takes_as_many_instructions_whether_messages_are_checked_or_not(pair: Pair, path: str) -> None:
    medians = []
    for place, every in enumerate((0, 1)):
        # TCP's receive windows grow while messages come, which takes instructions: the warm-up is for that
        setting = Setting(
            path=path, size=SIZE, messages=60, warmup=200, cooldown=4, check_every=every, schedule="batch", limit=60.0
        )
        measured = pair.measure(2 * PATHS.index(path) + place, setting)
        assert (measured.tally["checked"] > 0) == bool(every)
        assert (measured.tally["corrupt"], measured.tally["lost"]) == (0, 0)
        medians.append(float(np.median(measured.ns)))
    assert medians[1] == pytest.approx(medians[0], rel=BOUND)
