"""Many connections of one process: the loop, by sockets of this process, and the account of both ends."""

from __future__ import annotations

import pathlib
import socket
import threading
from typing import Any

import made_runs
import numpy as np
import pytest

import hwrx
from cython_ext.core.trial import Trial
from cython_ext.loops.loop import ENDED
from cython_ext.loops.many import run_connections
from cython_ext.sockets.many_sockets import ManySocketsTransport
from hwrx.control.messages import Prepare, Role, Setting
from hwrx.control.places import Place
from hwrx.errors import PeerError, UsageError
from hwrx.paths import check_setting, open_endpoint
from hwrx.report.reported import ReportedRun
from hwrx.report.rows import rows_of
from hwrx.runs import store
from hwrx.runs.by_connection import ByConnection, account_connections, join_connections
from hwrx.runs.collecting import Answered, Times, answered_rate

MESSAGES, WARMUP, COOLDOWN = 50, 4, 6
TOTAL = MESSAGES + WARMUP + COOLDOWN


def endpoint(path: str, role: Role, connections: int, **fields: Any) -> ManySocketsTransport:
    setting = Setting(
        path=path, connections=connections, messages=MESSAGES, warmup=WARMUP, cooldown=COOLDOWN, limit=20.0, **fields
    )
    made = open_endpoint(Prepare(trial=3, role=role, setting=setting, here=Place(), there=Place()))
    assert isinstance(made, ManySocketsTransport)
    return made


def trial(patience: float = 20.0) -> Trial:
    return Trial(
        messages=MESSAGES, warmup=WARMUP, cooldown=COOLDOWN, size=64, trial=3, check_every=1, limit_ns=20_000_000_000,
        patience_ns=round(patience * 1e9), stamped=True,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["udp", "tcp"])
@pytest.mark.parametrize("wait", ["poll", "event"])
def test_both_ends_count_the_same_on_each_connection(path: str, wait: str) -> None:
    with endpoint(path, "client", 7, wait=wait) as client, endpoint(path, "server", 7, wait=wait) as server:
        asked, answered = trial(), trial()
        listening = threading.Thread(target=server.connect, args=(client.describe(),))
        listening.start()
        client.connect(server.describe())
        listening.join()
        for end in (client, server):
            end.connections.begin(WARMUP, MESSAGES, TOTAL)
        other = threading.Thread(target=run_connections, args=(answered, server, server.connections, "server"))
        other.start()
        assert ENDED[run_connections(asked, client, client.connections, "client")] == "complete"
        other.join()
        assert client.connections.sent.tolist() == client.connections.taken.tolist()
        assert server.connections.taken.tolist() == client.connections.sent.tolist()
        assert client.connections.sent.sum() == TOTAL
        # in the order of sending: the first seven are of one connection each
        assert sorted(client.connections.connection[:3].tolist()) == [4, 5, 6]
        assert asked.counts()["checked"] == answered.counts()["checked"] == TOTAL
        assert (asked.delivered > asked.posted).all()


def test_an_answer_on_another_connection_is_counted_and_not_believed() -> None:
    """The first two answers change places; the right ones come after them."""
    with endpoint("udp", "client", 2) as client:
        others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for other in others:
            other.bind(("127.0.0.1", 0))
            other.settimeout(20.0)
        client.connect({"address": "127.0.0.1", "ports": [other.getsockname()[1] for other in others]})
        client.connections.begin(WARMUP, MESSAGES, TOTAL)

        def answer() -> None:
            came = [other.recvfrom(64) for other in others]
            for (_, address), (said, _), other in zip(came, reversed(came), others, strict=True):
                other.sendto(said, address)
            for (said, address), other in zip(came, others, strict=True):
                other.sendto(said, address)
            for _ in range(TOTAL // 2 - 1):
                for other in others:
                    said, address = other.recvfrom(64)
                    other.sendto(said, address)

        server = threading.Thread(target=answer)
        server.start()
        asked = trial()
        try:
            assert ENDED[run_connections(asked, client, client.connections, "client")] == "complete"
        finally:
            server.join()
            for other in others:
                other.close()
        assert client.counts()["strayed"] == asked.counts()["corrupt"] == 2
        assert asked.counts()["lost"] == 0
        assert client.connections.taken.tolist() == client.connections.sent.tolist() == [30, 30]


def test_ends_with_other_numbers_of_connections_do_not_fit() -> None:
    with (
        endpoint("udp", "client", 3) as client,
        endpoint("udp", "server", 4) as server,
        pytest.raises(PeerError, match="3 connections here, 4 there"),
    ):
        client.connect(server.describe())


def test_connections_want_memory_before_they_run() -> None:
    with endpoint("udp", "client", 3) as client, pytest.raises(ValueError, match="no memory for a trial"):
        run_connections(trial(), client, client.connections, "client")


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("rdma-ud", {"pattern": "stream"}, "rdma-ud does not read connections in stream, only in pingpong"),
        ("rdma-cas", {"pattern": "stream"}, "rdma-cas does not read connections in stream, only in pingpong"),
        ("rdma-fetch-add", {"connect": "cm"}, "RDMA-CM connects one queue pair here"),
        ("rdma-fetch-add", {"srq": False}, "rdma-fetch-add does not read srq"),
        ("rdma-ud", {"window": 7}, "window is of a single connection"),
        ("rdma-ud", {"receives": 9}, "receives is of a single connection"),
        ("rdma-ud", {"registration": "message"}, "share one memory region"),
        ("rdma-ud", {"size": 4097}, "at most the MTU"),
        ("rdma-write-imm", {}, "rdma-write-imm does not read connections"),
        ("rdma-send", {"connections": 1, "srq": False}, "shared by several connections"),
    ],
)
def test_what_many_connections_cannot_have_is_refused(path: str, fields: dict[str, Any], words: str) -> None:
    size = 8 if path in ("rdma-fetch-add", "rdma-cas") else 64
    with pytest.raises(UsageError, match=words) as caught:
        check_setting(Setting(**{"path": path, "connections": 5, "size": size, **fields}))
    assert caught.value.remedy


@pytest.mark.parametrize("path", ["rdma-send", "rdma-read", "rdma-ud", "rdma-fetch-add", "rdma-cas", "udp", "tcp"])
def test_these_paths_have_many_connections(path: str) -> None:
    check_setting(Setting(path=path, connections=5, size=8))


# --- the account ---------------------------------------------------------------------------------------------------


def account(sent: list[int], received: list[int] | None, answered: list[int]) -> ByConnection:
    return ByConnection(
        sent=np.array(sent), answered=np.array(answered), received=None if received is None else np.array(received),
        p50_ns=np.zeros(len(sent)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "received", "answered", "whole", "unclosed"),
    [
        ([5, 5], [5, 5], [5, 5], True, []),
        ([5, 5], None, [5, 5], True, []),
        ([5, 5], [5, 5], [5, 4], True, [1]),  # nothing was lost, says the path
        ([5, 5], [5, 4], [4, 4], False, []),
        ([5, 5], [5, 6], [5, 5], False, [1]),  # more came than was sent
        ([5, 5], [4, 5], [5, 5], False, [0]),  # more was answered than came
        ([5, 5], None, [5, 6], False, [1]),
    ],
)
def test_an_account_that_does_not_close_is_found(
    sent: list[int], received: list[int] | None, answered: list[int], whole: bool, unclosed: list[int]
) -> None:
    found = account(sent, received, answered)
    assert found.open_accounts(whole=whole).tolist() == unclosed
    assert bool(found.problems(whole=whole)) is bool(unclosed)


def test_times_go_to_the_connection_that_the_message_went_on() -> None:
    found = account_connections(
        np.array([0, 1, 0, 1, 0]), np.array([0, 1, 2, 4]), np.array([10, 7, 30, 20]),
        sent=np.array([4, 3, 1]), answered=np.array([4, 2, 1]), received=None,
    )  # fmt: skip
    assert found.p50_ns[:2].tolist() == [20.0, 7.0]
    assert np.isnan(found.p50_ns[2])
    assert found.facts()["answered"] == {"least": 1.0, "median": 2.0, "most": 4.0}
    rows = found.table(9).to_pylist()
    assert rows[1] == {
        "trial": 9, "connection": 1, "sent": 3, "received": None, "answered": 2, "unanswered": 1, "p50_ns": 7.0,
    }  # fmt: skip
    assert rows[2]["p50_ns"] is None


def test_the_connections_of_several_senders_follow_each_other() -> None:
    joined = join_connections([account([5, 4], [5, 4], [5, 4]), account([7, 3], [7, 3], [7, 2])])
    assert joined.sent.tolist() == [5, 4, 7, 3]
    assert joined.open_accounts(whole=True).tolist() == [3]
    assert joined.table(0)["connection"].to_pylist() == [0, 1, 2, 3]
    passive = join_connections([account([5], None, [5]), account([6], None, [6])])
    assert passive.received is None
    assert passive.answered.tolist() == [5, 6]


# --- how many are answered a second ----------------------------------------------------------------------------------


def times(*delivered: int) -> Times:
    at = np.array(delivered, dtype=np.int64)
    return Times(np.arange(len(at)), at, at, at, at)


def test_the_rate_of_answers_is_that_of_the_time_that_they_came_in() -> None:
    # of many connections they come in no order; each sender has a time of its own
    assert answered_rate([times(3000, 1000, 2000), times(10_000, 14_000)]) == Answered(5, 1_000_000 + 250_000)
    assert answered_rate([times(5), times()]) is None
    assert answered_rate([times(5, 5)]) is None


def with_losses(root: pathlib.Path, extra: dict[str, Any], lost: int = 50, **fields: Any) -> ReportedRun:
    """A run of ping-pongs of 30 µs, of which some were lost."""
    plan = made_runs.layout(paths=["udp"], sizes=[64], patterns=["pingpong"], repeats=2, **fields)
    with store.Writer.create(root, plan, made_runs.MANIFEST) as writer:
        for one in plan.trials:
            ns = np.full(1000, 30_000)
            tally = {"posted": 1000 + lost, "delivered": 1000, "bytes": 64_000, "lost": lost, "corrupt": 0}
            writer.add_trial(
                one, status="ok", tally=tally, sequence=np.arange(1000, dtype=np.uint32), ns=ns, extra=extra
            )
    return hwrx.load(writer.path)


def test_a_lost_message_holds_its_connection_and_the_rate_is_that_of_the_answers(tmp_path: pathlib.Path) -> None:
    told = with_losses(tmp_path, {"answered": {"messages": 1000, "per_s": 1611.0}})
    (row,) = rows_of(told, "")
    assert row.messages_per_s is not None
    assert row.messages_per_s.value == pytest.approx(1611)
    assert "messages/s" not in row.withheld


def test_without_the_time_of_the_answers_there_is_no_rate_of_a_run_with_losses(tmp_path: pathlib.Path) -> None:
    (row,) = rows_of(with_losses(tmp_path, {}), "")
    assert row.messages_per_s is None
    assert "messages were lost" in row.withheld["messages/s"]
    assert any("messages were lost" in words for words in with_losses(tmp_path, {}).summary().warnings)
    (whole,) = rows_of(with_losses(tmp_path, {}, lost=0), "")
    assert whole.messages_per_s is not None
    assert whole.messages_per_s.value == pytest.approx(1e9 / 30_000)
