"""The socket paths between agents in two network namespaces, over a veth pair."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwrx.control.messages import Connect, Done, Prepare, Prepared, Ready, Role, Setting, Start, Wait
from hwrx.control.peers import Peer, ProcessChannel, wait_first, wait_for_replies
from hwrx.control.places import Place
from hwrx.errors import PeerError

# set aside for benchmarks of networks (RFC 2544, RFC 5180)
ADDRESSES = (("198.18.77.1", "2001:2:0:77::1"), ("198.18.77.2", "2001:2:0:77::2"))


class Wire:
    """Two agents, each in its namespace, and the places they live at."""

    def __init__(self, namespaces: dict[Role, str]) -> None:
        self.namespaces = namespaces
        self.places: dict[Role, Place] = {
            role: Place(address=ADDRESSES[end][0], netdev="veth0") for end, role in enumerate(namespaces)
        }
        self.peers: dict[Role, Peer] = {role: Peer.start(f"netns:{name}", role) for role, name in namespaces.items()}

    def start(self, setting: Setting, places: dict[Role, Place] | None = None) -> dict[Role, Prepared]:
        """Prepare, connect and start both ends; what they said when they were prepared."""
        places = places or self.places
        others: dict[Role, Role] = {"client": "server", "server": "client"}
        said = {
            role: self.peers[role].ask(
                Prepare(trial=1, role=role, setting=setting, here=places[role], there=places[other]), Prepared
            )
            for role, other in others.items()
        }
        for role, other in others.items():
            self.peers[role].send(Connect(remote=said[other].remote))
        wait_for_replies(dict.fromkeys(self.peers.values(), Ready), 10)
        for role in ("server", "client"):
            self.peers[role].send(Start())  # type: ignore[index]
        return said

    def run(self, setting: Setting, places: dict[Role, Place] | None = None) -> dict[Role, Done]:
        """Run a trial to its end."""
        self.start(setting, places)
        done = wait_for_replies(dict.fromkeys(self.peers.values(), Done), 60)
        return {role: done[peer] for role, peer in self.peers.items()}

    def pid(self, role: Role) -> int:
        channel = self.peers[role]._channel
        assert isinstance(channel, ProcessChannel)
        return channel.process.pid

    def packets(self, role: Role) -> int:
        """How many packets the veth of one end has received."""
        netdev = self.places[role].netdev
        shown = subprocess.check_output(
            ["ip", "netns", "exec", self.namespaces[role], "cat", f"/sys/class/net/{netdev}/statistics/rx_packets"]
        )
        return int(shown)

    def close(self) -> None:
        for peer in self.peers.values():
            peer.kill()
            peer.close()


def ip(*words: str) -> None:
    subprocess.check_call(["ip", *words])


@pytest.fixture
def wire() -> Iterator[Wire]:
    namespaces: dict[Role, str] = {"client": f"hwrx-test-c{os.getpid()}", "server": f"hwrx-test-s{os.getpid()}"}
    client, server = namespaces.values()
    try:
        for name in namespaces.values():
            ip("netns", "add", name)
        ip("link", "add", "veth0", "netns", client, "type", "veth", "peer", "name", "veth0", "netns", server)
        for end, name in enumerate(namespaces.values()):
            ip("-n", name, "link", "set", "veth0", "up")
            ip("-n", name, "address", "add", f"{ADDRESSES[end][0]}/30", "dev", "veth0")
            ip("-n", name, "address", "add", f"{ADDRESSES[end][1]}/64", "dev", "veth0", "nodad")
        wire = Wire(namespaces)
        try:
            yield wire
        finally:
            wire.close()
    finally:
        for name in namespaces.values():
            ip("netns", "delete", name)
    assert not [name for name in namespaces.values() if Path("/run/netns", name).exists()]


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_all_patterns_waits_and_sizes(wire: Wire, path: str) -> None:
    waits: tuple[Wait, ...] = ("event", "epoll", "select", "busy-poll", "poll")
    patterns: tuple[Any, ...] = ("pingpong", "stream", "paced")
    for pattern in patterns:
        for manner in waits:
            for size in (8, 64, 1400, 65507):
                setting = Setting(
                    path=path,
                    pattern=pattern,
                    size=size,
                    wait=manner,
                    messages=40,
                    warmup=5,
                    cooldown=5,
                    check_every=1,
                    socket_buffer=8 << 20,  # an open loop waits for nobody: all of it may have to wait here
                    rate=500.0 if pattern == "paced" else None,
                )
                done = wire.run(setting)
                what = (pattern, manner, size, done)
                assert [done[role].ended for role in ("client", "server")] == ["complete", "complete"], what  # type: ignore[index]
                tally = done["server"].tally
                assert tally["delivered"] == tally["checked"] == 50, what
                assert not any(tally[name] for name in ("lost", "duplicated", "corrupt", "stale", "wrong_size")), what


def test_ipv6_between_namespaces(wire: Wire) -> None:
    places: dict[Role, Place] = {
        role: Place(address=ADDRESSES[end][1], netdev=wire.places[role].netdev) for end, role in enumerate(wire.places)
    }
    for path in ("udp", "tcp"):
        done = wire.run(Setting(path=path, messages=50), places)
        assert done["client"].tally["delivered"] == done["client"].tally["expected"]


def test_each_message_crosses_the_wire(wire: Wire) -> None:
    before = wire.packets("server")
    done = wire.run(Setting(path="udp", messages=500, warmup=0, cooldown=0))
    assert done["client"].tally["delivered"] == 500
    assert 500 <= wire.packets("server") - before < 550


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_receiver_that_is_killed_ends_the_stream_by_name(wire: Wire, path: str) -> None:
    wire.start(Setting(path=path, pattern="stream", messages=5_000_000, size=1400, limit=5.0))
    time.sleep(0.5)
    os.kill(wire.pid("server"), signal.SIGKILL)
    with pytest.raises(PeerError, match="SIGKILL"):
        wait_for_replies({wire.peers["server"]: Done}, 5)
    _, done = wait_first([wire.peers["client"]], Done, 10)
    assert done.ended == "error"
    assert done.error.startswith("peer unreachable" if path == "udp" else f"{wire.places['server'].address} port")
    assert 0 < done.tally["posted"] < 5_000_000


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_sender_that_is_killed_ends_the_stream(wire: Wire, path: str) -> None:
    wire.start(Setting(path=path, pattern="stream", messages=5_000_000, size=1400, limit=1.0))
    time.sleep(0.5)
    os.kill(wire.pid("client"), signal.SIGKILL)
    _, done = wait_first([wire.peers["server"]], Done, 10)
    # a dead TCP sender's kernel closes or resets the connection; a dead UDP sender is silent, or refuses our credits
    assert done.ended in ("finished", "error", "limit")
    assert 0 < done.tally["delivered"] < 5_000_000


def test_a_link_that_goes_down_ends_a_pingpong_at_the_limit(wire: Wire) -> None:
    wire.start(Setting(path="udp", messages=5_000_000, limit=0.5))
    time.sleep(0.3)
    netdev = wire.places["client"].netdev
    assert netdev is not None
    subprocess.check_call(["ip", "-n", wire.namespaces["client"], "link", "set", netdev, "down"])
    done = wait_for_replies(dict.fromkeys(wire.peers.values(), Done), 15)
    assert done[wire.peers["server"]].ended == "limit"
    client = done[wire.peers["client"]]
    assert client.ended == "limit" or client.error.startswith("peer unreachable")
