"""The wire between guests: frames whole and in order, to whom they are for, and those that are too many counted."""

from __future__ import annotations

import os
import select
import time

import pytest
from leaving import nothing_is_left  # noqa: F401

from hwrx.errors import UsageError
from hwrx.lab import cable
from hwrx.lab.cable import Cable
from hwrx.wires import stations, topology

MACS = [stations.station_hardware(number) for number in (1, 2, 3)]
LIMIT = 20.0  # seconds, against hanging


def frame(to: str, number: int, size: int = 64) -> bytes:
    return bytes.fromhex(to.replace(":", "")) + number.to_bytes(4) + bytes(size)


def heard(plug: int, count: int) -> list[bytes]:
    """Frames that come, as many as are waited for."""
    found: list[bytes] = []
    deadline = time.monotonic() + LIMIT
    while len(found) < count:
        assert select.select([plug], [], [], max(0.0, deadline - time.monotonic()))[0], f"{len(found)} of {count} came"
        found.append(os.read(plug, 1 << 17))
    return found


def say(plug: int, frames: list[bytes]) -> None:
    """As QEMU does: what the wire has no room for is offered again."""
    for each in frames:
        assert select.select([], [plug], [], LIMIT)[1]
        os.write(plug, each)


def wait_until(counts: dict[str, int], wire: Cable, guest: int) -> None:
    deadline = time.monotonic() + LIMIT
    while not counts.items() <= wire.counts()[guest].items():
        assert time.monotonic() < deadline, wire.counts()
        time.sleep(0.01)


def test_between_two_guests_is_nothing_but_a_pair_of_sockets_that_tells_when_it_is_full() -> None:
    with Cable(MACS[:2]) as wire:
        near, far = wire.plugs
        say(near, [frame(MACS[1], 1), frame(MACS[1], 2, 9000)])
        assert heard(far, 2) == [frame(MACS[1], 1), frame(MACS[1], 2, 9000)]
        say(far, [frame(MACS[0], 3)])
        assert heard(near, 1) == [frame(MACS[0], 3)]
        with pytest.raises(BlockingIOError):
            for number in range(100_000):
                os.write(near, frame(MACS[1], number))
        heard(far, number)  # what was taken is all there
        assert select.select([far], [], [], 0)[0] == []
        assert wire.counts() == []


def test_a_frame_goes_to_its_guest_alone_and_to_a_group_goes_to_all_others() -> None:
    with Cable(MACS) as wire:
        first, second, third = wire.plugs
        say(first, [frame(MACS[1], 1), frame("33:33:00:00:00:01", 2), frame("02:00:00:00:00:99", 3)])
        assert heard(second, 2) == [frame(MACS[1], 1), frame("33:33:00:00:00:01", 2)]
        assert heard(third, 1) == [frame("33:33:00:00:00:01", 2)]
        assert select.select(wire.plugs, [], [], 0)[0] == []
        wait_until({"taken": 3, "handed": 0, "dropped": 0}, wire, 0)
        wait_until({"taken": 0, "handed": 2, "dropped": 0}, wire, 1)


def test_a_guest_that_is_slow_holds_up_no_other_and_gets_all_in_order() -> None:
    with Cable(MACS) as wire:
        first, second, third = wire.plugs
        many = [frame(MACS[1], number) for number in range(3000)]
        say(first, [*many, frame(MACS[2], 7)])
        assert heard(third, 1) == [frame(MACS[2], 7)]  # the second has taken none
        assert heard(second, 3000) == many
        wait_until({"handed": 3000, "dropped": 0}, wire, 1)


def test_what_is_too_much_for_a_guest_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cable, "LONGEST", 100)
    with Cable(MACS) as wire:
        first, second, _ = wire.plugs
        say(first, [frame(MACS[1], number) for number in range(1000)])
        wait_until({"taken": 1000}, wire, 0)
        deadline = time.monotonic() + LIMIT
        # what its socket holds the kernel says, besides the switch's 100
        while sum((counts := wire.counts()[1])[name] for name in ("handed", "dropped")) < 900:
            assert time.monotonic() < deadline
        dropped = counts["dropped"]
        assert dropped > 0
        came = heard(second, 1000 - dropped)
        assert [each[6:10] for each in came] == [number.to_bytes(4) for number in range(1000 - dropped)]
        wait_until({"handed": 1000 - dropped, "dropped": dropped}, wire, 1)


def test_an_end_of_a_wire_between_guests_cannot_be_put_up_on_one_kernel() -> None:
    with pytest.raises(UsageError, match="each with a kernel of its own") as caught, topology.build_topology("wire"):
        pass
    assert "--topology wire" in caught.value.remedy
    with (
        pytest.raises(UsageError, match="MTU of 20000"),
        topology.build_topology("wire", number=1, guests=2, mtu=20000),
    ):
        pass
