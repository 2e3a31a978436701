"""Messages that differ in size over what only a guest has: verbs, kTLS, MPTCP, rings of whole frames."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from guest_ends import Ends

from hwrx.control.messages import Pattern, Setting
from hwrx.paths import find_path, mixes

MIX = "8:2,9:1,13:1,16:1,17:1,31:1,300:3,1000:1"  # of every layout of a message; what one datagram of UD carries
LONG = "64:1,1472:1,9000:1"  # of one packet and of several
PATTERNS: tuple[Pattern, ...] = ("pingpong", "stream", "paced")
VERBS = ("rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud")
BLIND = ("rdma-write", "rdma-read")  # the end that asks sees a stream


def mixed(path: str, pattern: Pattern, mix: str, **fields: Any) -> Setting:
    given: dict[str, Any] = {"messages": 400, "warmup": 3, "cooldown": 2, "check_every": 3, "limit": 20.0, **fields}
    size = mixes.read_mix(mix).sizes[-1]
    return Setting(path=path, pattern=pattern, mix=mix, size=size, rate=300.0 if pattern == "paced" else None, **given)


def bytes_of(setting: Setting) -> int:
    drawn = mixes.draw_sizes(setting, 0, 0, fetched=find_path(setting.path).full_rtt)
    return int(np.resize(drawn, setting.total).sum())


def check(ends: Ends, setting: Setting) -> None:
    outcome = ends.run(setting)
    client, server = (outcome.done[role] for role in ("client", "server"))
    assert (client.ended, client.error) == ("complete", "")
    # the slots of a stream of WRITEs keep its last round alone, and its receiver looks at the end
    overwritten = setting.path == "rdma-write" and setting.pattern == "stream"
    # one of several connections has no receiver that would look
    looks = overwritten and setting.connections == 1
    assert (server.ended, server.error) == ("finished" if looks else "complete", "")
    reads = setting.path == "rdma-read"
    if not overwritten:
        tally = (client if reads else server).tally
        assert tally["delivered"] == tally["expected"] == setting.total
        assert tally["bytes"] == bytes_of(setting)
        assert tally["checked"] > 0
    if setting.pattern != "stream" or setting.path in BLIND:
        assert client.tally["bytes"] == bytes_of(setting)
    for end in (client, server):
        bad = {kind: end.tally[kind] for kind in ("duplicated", "reordered", "corrupt", "stale", "wrong_size")}
        assert not any(bad.values()), bad


@pytest.mark.parametrize(
    ("path", "pattern", "mix"),
    [case for case in itertools.product(VERBS, PATTERNS, (MIX, LONG)) if case[0] != "rdma-ud" or case[2] == MIX],
)
def test_verbs(ends: Ends, path: str, pattern: Pattern, mix: str) -> None:
    more = {"messages": 60} if pattern == "paced" else {}
    check(
        ends,
        mixed(path, pattern, mix, window=16, batch=4, signal_every=4, **more)
        if path not in ("rdma-read",)
        else mixed(path, pattern, mix, window=16, batch=4, **more),
    )


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["rdma-read", "rdma-write"])
def test_fewer_buffers_than_the_window(ends: Ends, path: str, pattern: Pattern) -> None:
    """Of the longest message fewer go into the ring than may be under way: the window is as long as the ring."""
    check(ends, mixed(path, pattern, "64:10,1048576:1", messages=100))


@pytest.mark.parametrize(
    ("path", "pattern"), [("rdma-send", "pingpong"), ("rdma-read", "pingpong"), ("rdma-write", "stream")]
)
def test_many_connections(ends: Ends, path: str, pattern: Pattern) -> None:
    check(ends, mixed(path, pattern, LONG, connections=9))


def test_many_connections_of_datagrams(ends: Ends) -> None:
    check(ends, mixed("rdma-ud", "pingpong", MIX, connections=9))


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["tcp-ktls", "mptcp", "packet-ring", "xdp"])
def test_streams_of_records_and_frames(ends: Ends, path: str, pattern: Pattern) -> None:
    check(ends, mixed(path, pattern, MIX))
