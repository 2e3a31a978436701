"""Many RC queue pairs of one process between two rxe devices: each message is answered on its own, and all add up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from guest_ends import ROLES, Ends, Places, resources

from hwrx.control.messages import Pattern, Setting, Wait
from hwrx.errors import PeerError, UsageError
from hwrx.runs.schedule import Measured, Pair
from hwrx.runs.testbed import Bed


@pytest.fixture(scope="module")
def two(pair: Places) -> Iterator[Pair]:
    with Pair(Bed(pair, dict.fromkeys(ROLES, "local"), {})) as agents:
        yield agents


@pytest.fixture
def trials(two: Pair) -> Iterator[Pair]:
    before = resources()
    yield two
    assert resources() == before


def measured(trials: Pair, path: str, pattern: Pattern = "pingpong", **more: object) -> Measured:
    fields = {"path": path, "pattern": pattern, "connections": 30, "messages": 400, "check_every": 1, "limit": 30.0}
    return trials.measure(1, Setting(**{**fields, **more}))  # type: ignore[arg-type]


def closes(found: Measured) -> None:
    assert (found.client.ended, found.client.error, found.server.error) == ("complete", "", "")
    tally, each = found.tally, found.by_connection
    assert each is not None
    assert tally["lost"] == tally["corrupt"] == tally["duplicated"] == tally["strayed"] == 0
    assert int(each.sent.sum()) == tally["posted"] == tally["expected"]
    assert each.open_accounts(whole=True).tolist() == []
    assert each.answered.min() > 0
    assert not np.isnan(each.p50_ns).any()


@pytest.mark.parametrize("srq", [True, False])
@pytest.mark.parametrize("wait", ["poll", "event"])
def test_every_request_is_answered_on_its_own_connection(trials: Pair, srq: bool, wait: Wait) -> None:
    found = measured(trials, "rdma-send", srq=srq, wait=wait)
    closes(found)
    assert found.tally["checked"] == 2 * found.tally["expected"]
    assert found.client.chosen["connections"] == 30
    assert (found.client.chosen["shared_receives"] > 0) is srq


@pytest.mark.parametrize(("path", "pattern"), [("rdma-read", "pingpong"), ("rdma-write", "stream")])
@pytest.mark.parametrize("size", [64, 4096])
def test_one_sided_connections_need_no_server(trials: Pair, path: str, pattern: Pattern, size: int) -> None:
    found = measured(trials, path, pattern, size=size)
    closes(found)
    assert found.by_connection is not None
    assert found.by_connection.received is None
    assert found.tally["checked"] == (found.tally["expected"] if path == "rdma-read" else 0)


def test_messages_of_several_packets(trials: Pair) -> None:
    closes(measured(trials, "rdma-send", size=16384, messages=100, connections=12))


def test_a_thousand_queue_pairs(trials: Pair) -> None:
    found = measured(trials, "rdma-send", connections=1000, messages=3000, warmup=1000, check_every=0)
    closes(found)
    assert found.client.chosen["connections"] == 1000


def test_lost_datagrams_are_counted_on_their_connections(trials: Pair) -> None:
    found = measured(trials, "udp", connections=20, netem="loss 10%", patience=0.2)
    tally, each = found.tally, found.by_connection
    assert each is not None
    assert each.received is not None
    assert (found.client.ended, found.server.error) == ("complete", "")
    assert each.open_accounts(whole=False).tolist() == []
    assert int((each.sent - each.answered).sum()) == tally["lost"] > 0
    assert int(each.sent.sum()) == tally["expected"]
    assert int(each.received.sum()) > tally["delivered"]  # some were lost on the way back


def test_other_numbers_of_connections_do_not_fit(ends: Ends) -> None:
    wanted = Setting(path="rdma-send", connections=3)
    with pytest.raises(PeerError, match=r"the ends do not fit: [23] connections here, [23] there"):
        ends.run({"client": wanted, "server": Setting(path="rdma-send", connections=2)})


def test_what_is_more_than_an_endpoint_holds_is_refused(ends: Ends) -> None:
    with pytest.raises(UsageError, match="1000 connections with messages of 1048576 bytes need"):
        ends.run(Setting(path="rdma-send", connections=1000, size=1 << 20))
