"""The socket paths over a wire that is made worse on purpose: what netem does is what is counted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from two_sides import Side, both, clean

from hwrx.control.messages import ENDS, Role, Setting
from hwrx.control.places import Place
from hwrx.wires import topology

PLACES: dict[Role, Place] = {
    role: Place(address=topology.ADDRESSES[role], netdev=topology.LINKS[role]) for role in ENDS
}


@pytest.fixture
def netem() -> Iterator[Callable[..., None]]:
    """`netem("loss", "10%")` spoils what the client sends."""
    link = topology.LINKS["client"]

    def spoil(*how: str) -> None:
        subprocess.run(["modprobe", "sch_netem"], check=True)
        # a thousand packets are delayed at most, by default: more would be lost on top
        subprocess.run(["tc", "qdisc", "replace", "dev", link, "root", "netem", "limit", "10000", *how], check=True)

    yield spoil
    subprocess.run(["tc", "qdisc", "delete", "dev", link, "root"], check=True)


def stream(path: str) -> Side:
    """A stream of a thousand messages, every byte checked; its receiver.

    All of them fit into its socket's buffer: messages that are held back come in a burst, after those that overtook
    them have been credited, and what the socket drops is not the wire's doing.
    """
    setting = Setting(
        path=path, pattern="stream", messages=1000, warmup=0, cooldown=0, size=200, batch=4, check_every=1, limit=20,
        socket_buffer=4 << 20,
    )  # fmt: skip
    client, server = both(setting, places=PLACES)
    assert client.verdict == "complete"
    assert server.verdict in ("complete", "finished")
    return server


@pytest.mark.parametrize(("asked", "loses"), [("loss 10%", True), ("", False)])
def test_a_packet_ring_passes_the_queueing_discipline_if_netem_is_asked_for(
    netem: Callable[..., None], asked: str, loses: bool
) -> None:
    netem("loss", "random", "10%")
    setting = Setting(
        path="packet-ring", pattern="stream", messages=1000, warmup=0, cooldown=0, size=200, check_every=1, limit=20,
        netem=asked,
    )  # fmt: skip
    _, server = both(setting, places=PLACES)
    assert (server.counts["lost"] > 0) is loses
    assert server.counts["checked"] == server.counts["delivered"] == 1000 - server.counts["lost"]


def test_a_lossy_wire_loses_and_nothing_else(netem: Callable[..., None]) -> None:
    netem("loss", "random", "10%")
    counts = stream("udp").counts
    assert counts["lost"] > 0
    assert counts["delivered"] == counts["checked"] == 1000 - counts["lost"]
    assert not counts["duplicated"] + counts["reordered"] + counts["corrupt"] + counts["wrong_size"]


def test_a_wire_that_repeats_is_counted(netem: Callable[..., None]) -> None:
    netem("duplicate", "20%")
    counts = stream("udp").counts
    assert counts["duplicated"] > 0
    assert counts["delivered"] == 1000


def test_a_wire_that_reorders_is_counted(netem: Callable[..., None]) -> None:
    netem("delay", "10ms", "reorder", "50%", "50%")
    counts = stream("udp").counts
    assert counts["reordered"] > 0
    assert counts["delivered"] == 1000
    assert not counts["duplicated"] + counts["corrupt"]


def test_a_wire_that_corrupts_loses_because_the_kernel_looks(netem: Callable[..., None]) -> None:
    netem("corrupt", "20%")
    counts = stream("udp").counts
    assert counts["lost"] > 0
    assert counts["delivered"] == counts["checked"] == 1000 - counts["lost"]


def test_a_pingpong_goes_on_over_a_lossy_wire(netem: Callable[..., None]) -> None:
    netem("loss", "random", "10%")
    # that none of them is lost comes once in 40,000 times, that all words of the end are lost once in a thousand
    setting = Setting(path="udp", messages=100, warmup=0, cooldown=0, limit=20)
    client, server = both(setting, places=PLACES)
    assert client.verdict == "complete"
    assert server.verdict in ("complete", "finished")
    assert 0 < client.counts["lost"] < 100
    assert not client.counts["corrupt"]


@pytest.mark.parametrize("how", [("loss", "random", "3%"), ("duplicate", "20%"), ("delay", "2ms", "reorder", "50%")])
def test_tcp_mends_all_of_that(netem: Callable[..., None], how: tuple[str, ...]) -> None:
    netem(*how)
    server = stream("tcp")
    assert clean(server.counts), server.counts
    assert server.verdict == "complete"
