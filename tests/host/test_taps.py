"""Taps and bridge are there while they are wanted, out of everybody's sight, and gone afterwards."""

from __future__ import annotations

from hwrx.host import netns, tools
from hwrx.wires import taps


def test_taps_and_bridge_come_and_go_with_their_namespace() -> None:
    links = tools.run_tool("ip", "-o", "link", "show")
    with taps.bridged_taps() as space:
        inside = tools.run_tool("ip", "-n", space, "-o", "link", "show")
        for name in (*taps.NAMES.values(), taps.BRIDGE):
            assert f" {name}:" in inside
        assert f"qlen {taps.LONGEST}" in inside
        assert "multi_queue" in tools.run_tool("ip", "-n", space, "tuntap", "show")
    assert space not in netns.namespace_names()
    assert tools.run_tool("ip", "-o", "link", "show") == links
