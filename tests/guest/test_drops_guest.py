"""Each place drops in turn, and the balance finds exactly what was provoked, at that place and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hwrx.drops import provoke

MESSAGES = 400
PARTLY = {"wire", "backlog", "receive-buffer", "memory"}  # these let some through


@pytest.fixture(scope="module")
def names() -> Iterator[provoke.Names]:
    with provoke.wire() as made:
        yield made


@pytest.mark.parametrize("place", provoke.PROVOKED)
def test_the_balance_finds_what_was_provoked(names: provoke.Names, place: str) -> None:
    trial = list(provoke.PROVOKED).index(place) + 1
    # each CPU has a megabyte of memory of its own before the limit of all counts
    messages = 4000 if place == "memory" else MESSAGES
    found = provoke.provoke(place, names, messages, trial)
    assert found.sent == messages
    assert found.unexplained == 0
    if place in ("nothing", "af-packet"):
        assert found.delivered == MESSAGES
        assert not found.rows
        assert [row.place for row in found.beside] == ([place] if place == "af-packet" else [])
        return
    assert [row.place for row in found.rows] == [place]
    (row,) = found.rows
    assert found.lost == row.count > 0
    assert (found.delivered > 0) == (place in PARTLY)
    if row.witness is not None:
        # the backlogs serve every packet of the machine
        assert row.witness == row.count or (place == "backlog" and row.witness >= row.count)
