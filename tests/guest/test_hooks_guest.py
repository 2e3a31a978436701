"""Each hook is there while its socket is open, lets messages pass, and is gone with the socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hwrx.drops import provoke
from hwrx.host import netns
from hwrx.lookup.crowd import Crowded
from hwrx.paths import hooks
from hwrx.wires import topology

# from outside
SEEN = {"xdp", "tc", "tc-egress", "pre-routing", "forward", "local-in", "local-out", "post-routing", "rps", "gro"}
SEEN |= {"tap", "tap-elsewhere"}


@pytest.fixture(scope="module")
def names() -> Iterator[provoke.Names]:
    with provoke.drop_wire() as made:
        yield made


def state(netdev: str) -> str:
    taps = f"wc -l < /proc/net/packet; ethtool -k {netdev} | grep generic-receive"
    rps = f"cat class/net/{netdev}/queues/*/rps_cpus"
    return hooks.in_own_sysfs(f"nft list tables; tc qdisc show dev {netdev}; ip -o link show {netdev}; {taps}; {rps}")


@pytest.mark.parametrize("name", hooks.BY_NAME)
def test_a_hook_comes_and_goes_with_its_socket(names: provoke.Names, name: str) -> None:
    netdev = topology.LINKS["server"]
    with netns.entered_namespace(names["client"]):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with netns.entered_namespace(names["server"]), client:
        before = state(netdev)
        with Crowded(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.settimeout(10)
            server.bind((topology.ADDRESSES["server"], 0))
            hooks.put_hook(name, server, netdev, server.along, first=True)
            assert (state(netdev) != before) == (name in SEEN)
            client.sendto(b"passes", server.getsockname())
            assert server.recv(64) == b"passes"
        assert state(netdev) == before
