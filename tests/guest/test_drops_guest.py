"""Each place drops in turn, and the balance finds exactly what was provoked, at that place and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hwrx.drops import nics, provoke
from hwrx.drops.scene import Names

MESSAGES = 400
# each CPU has a megabyte of memory of its own before the limit of all counts; what ring and segment hold comes late
MANY = {"memory": 4000, "nic-ring-ours": nics.ROUND}
PARTLY = {"wire", "backlog", "receive-buffer", "memory", "no-receive", "rnr", *nics.OVERRUN}  # these let some through


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    with provoke.drop_wire() as made:
        yield made


# the kernel's driver with a starved thread goes the way of nic-ring-ours, and takes twenty seconds: lab/bench/drops
@pytest.mark.parametrize("place", [place for place in provoke.PLACES if place != "nic-ring"])
def test_the_balance_finds_what_was_provoked(names: Names, place: str) -> None:
    trial = provoke.PLACES.index(place) + 1
    messages = MANY.get(place, MESSAGES)
    found = provoke.provoke_drops(place, names, messages, trial)
    assert found.sent == messages
    assert found.unexplained == 0
    if place in ("nothing", "af-packet"):
        assert found.delivered == MESSAGES
        assert not found.rows
        assert [row.place for row in found.beside] == ([place] if place == "af-packet" else [])
        return
    # an emulated NIC lets frames wait in the segment, and there they are lost
    assert [row.place for row in found.rows] == (["segment"] if place in nics.OVERRUN else [place])
    (row,) = found.rows
    assert found.lost == row.count > 0
    assert (found.delivered > 0) == (place in PARTLY)
    if row.witness is not None:
        # the backlogs serve every packet of the machine
        assert row.witness == row.count or (place == "backlog" and row.witness >= row.count)
