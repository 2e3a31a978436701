"""The guest's own topology, seen from inside."""

from __future__ import annotations

from pathlib import Path

from hwrx import topology


def test_both_rxe_devices_have_the_gid_of_their_address() -> None:
    for end in topology.ENDS:
        assert topology.gid_index(topology.DEVICES[end], topology.ADDRESSES[end]) is not None


def test_the_devices_can_be_opened_without_udev() -> None:
    assert len(list(Path("/dev/infiniband").glob("uverbs*"))) == 2
