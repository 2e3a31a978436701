"""What flows between hosts bring, put together: by whose clock."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from hwrx.control.environment import Host
from hwrx.control.messages import Done, Role, Setting
from hwrx.control.peers import Channel, Peer
from hwrx.control.places import Place, Placed, Survey
from hwrx.runs.collecting import Fetched, Times
from hwrx.runs.fleet import Fleet, Flow
from hwrx.runs.hosts import HostsBed
from hwrx.runs.schedule import Link, Measured

STREAM = Setting(path="udp", pattern="stream", flows="h[1-2]>h3", messages=1000)
COUNTS = ("expected", "delivered", "bytes", "lost", "posted", "duplicated", "reordered", "corrupt", "stale")


def put_together(began: dict[tuple[str, str], int]) -> Measured:
    """Put flows together whose 1000 messages arrive within 1 ms from a moment of the observer's clock on.

    :param began: by (client, server), each on a machine of its own, ns of that clock
    """
    machines = sorted({name for ends in began for name in ends})
    hosts = [Host(name=name, reach="local", address="127.0.0.1") for name in machines]
    fleet = Fleet(HostsBed(hosts))
    fleet._at = {name: Survey(boot=name, allowed=[0], permitted=[0], online=[0], possible=[0]) for name in machines}
    links: list[Link] = []
    done: dict[Peer, Done] = {}
    fetched: list[Fetched] = []
    for (client, server), moment in began.items():
        ends: dict[Role, tuple[Role, str, int]] = {"client": ("client", client, 0), "server": ("server", server, 0)}
        peers = {role: Peer(cast(Channel, None), name) for role, (_, name, _) in ends.items()}
        for role, (_, name, _) in ends.items():
            tally = {**dict.fromkeys((*COUNTS, "wrong_size", "checked"), 0), "delivered": 1000}
            placed = Placed(allowed=[0], ran_on=0)
            done[peers[role]] = Done(tally=tally, ended="complete", placed=placed, boot=name)
        links.append(Flow(peers, {role: Place() for role in ends}, ends=ends))
        delivered = moment + np.arange(1000) * 1000
        # the senders' clocks are of other machines
        sent = 10**12 * int(client[1]) + np.arange(1000) * 10
        fetched.append(Fetched(STREAM, Times(np.arange(1000), sent, sent, delivered, sent), None))
    return fleet._put_together(links, STREAM, done, fetched)


@pytest.mark.parametrize(
    ("began", "span"),
    [
        ({("h1", "h3"): 7_000_000, ("h2", "h3"): 8_000_000}, 2_000_000),
        ({("h1", "h3"): 8_000_000, ("h2", "h4"): 5_000_000}, 1_000_000),
        ({("h1", "h3"): 7_000_000, ("h2", "h3"): 8_000_000, ("h1", "h4"): 5_000_000}, 2_000_000),
    ],
    ids=["one sink", "two sinks", "one sink of two"],
)
def test_flows_into_one_sink_are_told_by_its_clock_whichever_machines_they_come_from(
    began: dict[tuple[str, str], int], span: int
) -> None:
    """What two machines saw is told as if both had begun together, for their clocks are never compared."""
    found = put_together(began)
    assert len(found.ns) == 1000 * len(began)
    assert found.steady == (0, span - 1000) and int(found.ns.sum()) == span - 1000
