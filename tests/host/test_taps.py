"""Taps and bridge are there while they are wanted, out of everybody's sight, and gone afterwards."""

from __future__ import annotations

from hwrx import netns, system, taps


def test_taps_and_bridge_come_and_go_with_their_namespace() -> None:
    links = system.run("ip", "-o", "link", "show")
    with taps.bridged() as space:
        inside = system.run("ip", "-n", space, "-o", "link", "show")
        for name in (*taps.NAMES.values(), taps.BRIDGE):
            assert f" {name}:" in inside
        assert f"qlen {taps.LONGEST}" in inside
        assert "multi_queue" in system.run("ip", "-n", space, "tuntap", "show")
    assert space not in netns.names()
    assert system.run("ip", "-o", "link", "show") == links
