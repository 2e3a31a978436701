"""Many connections of one process between two rxe devices: each message is answered on its own, and all add up."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from guest_ends import ROLES, Ends, Places, resources

from cython_ext.core.trial import Trial
from cython_ext.loops.loop import ENDED
from cython_ext.loops.many import run_connections
from cython_ext.verbs.many_atomics import ManyAtomicsTransport
from cython_ext.verbs.many_datagrams import ManyDatagramsTransport
from cython_ext.verbs.many_pairs import ManyPairsTransport
from hwrx.control.messages import Pattern, Prepare, Role, Setting, Wait
from hwrx.errors import PeerError, UsageError
from hwrx.paths.verbs_port import open_port
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


@pytest.mark.parametrize("path", ["rdma-send", "rdma-ud"])
@pytest.mark.parametrize("srq", [True, False])
@pytest.mark.parametrize("wait", ["poll", "event"])
def test_every_request_is_answered_on_its_own_connection(trials: Pair, path: str, srq: bool, wait: Wait) -> None:
    found = measured(trials, path, srq=srq, wait=wait)
    closes(found)
    assert found.tally["checked"] == 2 * found.tally["expected"]
    assert found.client.chosen["connections"] == found.server.chosen["queue_pairs"] == 30
    assert (found.server.chosen["shared_receives"] > 0) is srq
    # one UD queue pair reaches all of them, and has one receive queue anyway
    one = path == "rdma-ud"
    assert found.client.chosen["queue_pairs"] == (1 if one else 30)
    assert (found.client.chosen["shared_receives"] > 0) is (srq or one)


@pytest.mark.parametrize(("path", "pattern"), [("rdma-read", "pingpong"), ("rdma-write", "stream")])
@pytest.mark.parametrize("size", [64, 4096])
def test_one_sided_connections_need_no_server(trials: Pair, path: str, pattern: Pattern, size: int) -> None:
    found = measured(trials, path, pattern, size=size)
    closes(found)
    assert found.by_connection is not None
    assert found.by_connection.received is None
    assert found.tally["checked"] == (found.tally["expected"] if path == "rdma-read" else 0)


@pytest.mark.parametrize("path", ["rdma-fetch-add", "rdma-cas", "rdma-ud"])
@pytest.mark.parametrize("connections", [3, 100])
def test_few_and_many_connections(trials: Pair, path: str, connections: int) -> None:
    found = measured(trials, path, connections=connections, size=64 if path == "rdma-ud" else 8)
    closes(found)
    if path == "rdma-ud":
        assert found.tally["foreign"] == 0
    else:
        assert found.by_connection is not None
        assert found.by_connection.received is None
        assert found.tally["counter"] == found.tally["checked"] == found.tally["expected"]


def test_a_datagram_as_large_as_the_mtu(trials: Pair) -> None:
    closes(measured(trials, "rdma-ud", size=1024, connections=5, messages=100))


@pytest.mark.parametrize("path", ["rdma-fetch-add", "rdma-cas"])
def test_a_lost_answer_adds_nothing_twice_on_any_connection(trials: Pair, path: str) -> None:
    found = measured(trials, path, size=8, connections=7, messages=200, netem="loss 5%", ack_timeout=12)
    closes(found)
    assert found.client.resent > 0
    assert found.tally["counter"] == found.tally["expected"]


@pytest.mark.parametrize(("path", "size"), [("rdma-send", 64), ("rdma-ud", 64), ("rdma-fetch-add", 8)])
def test_each_of_several_senders_has_its_connections(trials: Pair, path: str, size: int) -> None:
    found = measured(trials, path, size=size, senders=2, connections=5, messages=100)
    closes(found)
    each = found.by_connection
    assert each is not None
    assert int(each.sent[:5].sum()) == int(each.sent[5:].sum()) == found.tally["expected"] // 2
    if path == "rdma-fetch-add":
        assert found.tally["counter"] == found.tally["expected"]


def test_messages_of_several_packets(trials: Pair) -> None:
    closes(measured(trials, "rdma-send", size=16384, messages=100, connections=12))


@pytest.mark.parametrize("path", ["rdma-send", "rdma-ud", "rdma-fetch-add"])
def test_a_thousand_queue_pairs(trials: Pair, path: str) -> None:
    size = 8 if path == "rdma-fetch-add" else 64
    # a datagram is lost only if nothing of it comes: nobody gives it up in an emulated guest that stands still
    found = measured(
        trials, path, size=size, connections=1000, messages=3000, warmup=1000, check_every=0, patience=30.0
    )
    closes(found)
    assert found.client.chosen["connections"] == 1000


@pytest.mark.parametrize("path", ["udp", "rdma-ud"])
def test_lost_datagrams_are_counted_on_their_connections(trials: Pair, path: str) -> None:
    found = measured(trials, path, connections=20, netem="loss 10%", patience=0.2)
    tally, each = found.tally, found.by_connection
    assert each is not None
    assert each.received is not None
    assert (found.client.ended, found.server.error) == ("complete", "")
    assert each.open_accounts(whole=False).tolist() == []
    assert int((each.sent - each.answered).sum()) == tally["lost"] > 0
    assert int(each.sent.sum()) == tally["expected"]
    assert int(each.received.sum()) > tally["delivered"]  # some were lost on the way back


@pytest.mark.parametrize(("path", "size"), [("rdma-send", 64), ("rdma-ud", 64), ("rdma-cas", 8)])
def test_other_numbers_of_connections_do_not_fit(ends: Ends, path: str, size: int) -> None:
    wanted = Setting(path=path, size=size, connections=3)
    with pytest.raises(PeerError, match=r"the ends do not fit: [23] connections here, [23] there"):
        ends.run({"client": wanted, "server": Setting(path=path, size=size, connections=2)})


def test_what_is_more_than_an_endpoint_holds_is_refused(ends: Ends) -> None:
    with pytest.raises(UsageError, match="1000 connections with messages of 1048576 bytes need"):
        ends.run(Setting(path="rdma-send", connections=1000, size=1 << 20))


def test_what_the_device_does_not_take_inline_is_refused_as_for_one(ends: Ends) -> None:
    with pytest.raises(UsageError, match=r"takes no 3000 bytes inline, as --inline 3000 asks"):
        ends.run(Setting(path="rdma-send", connections=5, size=3000, inline=3000))


def test_a_datagram_above_the_mtu_is_refused_for_many_connections(ends: Ends) -> None:
    with pytest.raises(UsageError, match=r"at most the MTU, 1024 bytes on rxe\d port 1, not 1025") as caught:
        ends.run(Setting(path="rdma-ud", connections=3, size=1025))
    assert "rdma-send" in caught.value.remedy


def test_a_counter_without_the_right_key_is_an_error(ends: Ends) -> None:
    setting = Setting(path="rdma-fetch-add", connections=3, size=8, limit=20.0)
    done = ends.run(setting, tamper=lambda role, remote: {**remote, "rkey": remote["rkey"] ^ 0x5500}).done
    assert done["client"].ended == "error"
    assert "IBV_WC_REM_ACCESS_ERR (10)" in done["client"].error


# --- ends in this process --------------------------------------------------------------------------------------------

TOTAL = 60
OTHER: dict[Role, Role] = {"client": "server", "server": "client"}


def prepared(pair: Places, role: Role, path: str, size: int) -> Prepare:
    setting = Setting(path=path, connections=3, size=size, messages=TOTAL, warmup=0, cooldown=0, limit=20.0)
    return Prepare(trial=3, role=role, setting=setting, here=pair[role], there=pair[OTHER[role]])


def opened(kind: type[ManyPairsTransport], pair: Places, role: Role, path: str, size: int) -> ManyPairsTransport:
    asked = prepared(pair, role, path, size)
    made = kind(asked, open_port(asked, str(pair[role].verbs)))
    made.connections.begin(0, TOTAL, TOTAL)
    return made


def trial(size: int, limit: float, patience: float) -> Trial:
    return Trial(
        messages=TOTAL, warmup=0, cooldown=0, size=size, trial=3, check_every=1, limit_ns=round(limit * 1e9),
        patience_ns=round(patience * 1e9), stamped=True,
    )  # fmt: skip


def test_a_counter_that_somebody_else_moves_is_noticed_on_its_connection(pair: Places) -> None:
    kind, path = ManyAtomicsTransport, "rdma-fetch-add"
    with opened(kind, pair, "client", path, 8) as client, opened(kind, pair, "server", path, 8) as server:
        client.connect(server.describe())
        server.connect(client.describe())
        at = 2 * server.describe()["stride"]
        with memoryview(server.buffer) as memory:
            memory[at + 4] += 1
        asked = trial(8, 20.0, 20.0)
        status = run_connections(asked, client, client.connections, "client")
        done = int(client.connections.sent[2])
        assert client.explain(status) == (
            f"the counter of connection 2 says {done + 1} at the end, after {done} operations"
        )
        # each that came on it was one too many, and none of the others'
        assert asked.counts()["corrupt"] == done > 0
        assert client.connections.taken.tolist() == [*client.connections.sent[:2].tolist(), 0]
        assert client.counts()["counter"] == TOTAL + 1


def test_datagrams_of_a_stranger_are_counted_and_not_answered(pair: Places) -> None:
    """Two clients ask one server, which knows one of them."""
    kind, path = ManyDatagramsTransport, "rdma-ud"
    with (
        opened(kind, pair, "client", path, 64) as client,
        opened(kind, pair, "client", path, 64) as stranger,
        opened(kind, pair, "server", path, 64) as server,
    ):
        client.connect(server.describe())
        stranger.connect(server.describe())
        server.connect(client.describe())
        answered = trial(64, 60.0, 60.0)
        other = threading.Thread(target=run_connections, args=(answered, server, server.connections, "server"))
        other.start()
        unanswered = trial(64, 20.0, 0.05)
        assert ENDED[run_connections(unanswered, stranger, stranger.connections, "client")] == "nothing"
        asked = trial(64, 60.0, 60.0)
        assert ENDED[run_connections(asked, client, client.connections, "client")] == "complete"
        other.join()
        assert unanswered.counts()["lost"] == server.counts()["foreign"] == TOTAL
        assert client.counts()["foreign"] == asked.counts()["lost"] == asked.counts()["stale"] == 0
        assert client.connections.taken.tolist() == server.connections.taken.tolist()
