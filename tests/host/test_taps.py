"""Taps and bridge are there while they are wanted, out of everybody's sight, and gone afterwards."""

from __future__ import annotations

from hwrx.host import netns, tools
from hwrx.wires import taps


def test_taps_and_bridge_come_and_go_with_their_namespace() -> None:
    ours = (*taps.NAMES.values(), taps.BRIDGE)
    with taps.bridged_taps() as space:
        inside = tools.run_tool("ip", "-n", space, "-o", "link", "show")
        here = tools.run_tool("ip", "-o", "link", "show")
        for name in ours:
            assert f" {name}:" in inside
            assert f" {name}:" not in here
        assert f"qlen {taps.LONGEST}" in inside
        assert "multi_queue" in tools.run_tool("ip", "-n", space, "tuntap", "show")
    assert space not in netns.namespace_names()
    left = tools.run_tool("ip", "-o", "link", "show")
    assert not [name for name in ours if f" {name}:" in left]
