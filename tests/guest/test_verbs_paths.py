"""Every verbs path, manner of waiting, pattern and size between two rxe devices; each message verified whole."""

from __future__ import annotations

import itertools

import pytest
from guest_ends import Ends

from hwrx.control.messages import Pattern, Setting, Wait

PATHS = ("rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud")
PATTERNS: tuple[Pattern, ...] = ("pingpong", "stream", "paced")
WAITS: tuple[Wait, ...] = ("poll", "event")
# size -> messages, and a rate that an emulated machine keeps up with
SIZES = {8: (40, 300), 64: (40, 300), 1024: (40, 300), 4096: (20, 100), 65536: (6, 20), 1 << 20: (3, 2)}
MTU = 1024  # of rxe on a netdev of 1500


def setting(path: str, pattern: Pattern, size: int, wait: Wait, **more: object) -> Setting:
    messages, rate = SIZES[size]
    return Setting(
        path=path, pattern=pattern, size=size, wait=wait, messages=messages, warmup=2, cooldown=1, check_every=1,
        window=16, batch=4, signal_every=4, rate=float(rate) if pattern == "paced" else None, limit=20.0,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "pattern", "size", "wait"),
    [case for case in itertools.product(PATHS, PATTERNS, SIZES, WAITS) if case[0] != "rdma-ud" or case[2] <= MTU],
)
def test_every_message_arrives_once_and_whole(ends: Ends, path: str, pattern: Pattern, size: int, wait: Wait) -> None:
    outcome = ends.run(setting(path, pattern, size, wait))
    client, server = (outcome.done[role] for role in ("client", "server"))
    assert (client.ended, client.error) == ("complete", "")
    assert (server.ended, server.error) == ("complete", "")
    receiver = client if path == "rdma-read" else server
    tally = receiver.tally
    assert tally["delivered"] == tally["checked"] == tally["expected"]
    assert tally["bytes"] == tally["expected"] * size
    if pattern != "stream":
        assert client.tally["delivered"] == client.tally["checked"] == client.tally["expected"]
    for end in (client, server):
        bad = {kind: end.tally[kind] for kind in ("duplicated", "reordered", "corrupt", "stale", "wrong_size")}
        assert not any(bad.values()), bad


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-write-imm", "rdma-read"])
def test_a_stream_goes_many_times_round_its_buffers(ends: Ends, path: str) -> None:
    outcome = ends.run(
        Setting(
            path=path, pattern="stream", size=512, wait="event", messages=3000, check_every=1, window=7, batch=3,
            signal_every=5, limit=20.0,
        )
    )  # fmt: skip
    receiver = outcome.done["client" if path == "rdma-read" else "server"]
    assert receiver.ended == "complete"
    assert receiver.tally["checked"] == receiver.tally["expected"] == 3116


def test_a_stream_of_writes_ends_when_older_messages_are_overwritten(ends: Ends) -> None:
    outcome = ends.run(
        Setting(path="rdma-write", pattern="stream", size=64, messages=2000, check_every=0, window=16, limit=20.0)
    )
    client, server = outcome.done["client"], outcome.done["server"]
    assert (client.ended, server.ended) == ("complete", "finished")
    assert client.tally["delivered"] == client.tally["expected"]
    assert server.tally["delivered"] == outcome.prepared["server"].chosen["receive_buffers"] == 32
    assert server.tally["corrupt"] == 0


def test_datagrams_are_never_lost_to_a_slow_receiver(ends: Ends) -> None:
    outcome = ends.run(
        Setting(path="rdma-ud", pattern="stream", size=256, messages=3000, check_every=1, window=32, limit=20.0)
    )
    assert outcome.done["server"].tally["lost"] == 0


def test_a_window_of_datagrams_is_no_wider_than_the_receiver_has_buffers(ends: Ends) -> None:
    outcome = ends.run(
        Setting(
            path="rdma-ud", pattern="stream", size=256, messages=1000, check_every=1, window=64, receives=4, limit=20.0
        )
    )
    assert outcome.done["server"].tally["lost"] == 0
    assert [outcome.done[role].chosen["window"] for role in ("client", "server")] == [4, 4]


@pytest.mark.parametrize("receives", [2, 4, 16])
def test_a_message_of_several_packets_never_overwrites_one_that_was_not_read(ends: Ends, receives: int) -> None:
    """A receiver that verifies each byte falls behind a sender with a whole window; its requests hold it up."""
    flood = Setting(
        path="rdma-write-imm", pattern="stream", size=4 * MTU, messages=500, check_every=1, window=64, wait="event",
        receives=receives, limit=60.0,
    )  # fmt: skip
    for _ in range(3):
        done = ends.run(flood).done
        tally = done["server"].tally
        assert (tally["corrupt"], tally["duplicated"], tally["reordered"]) == (0, 0, 0)
        # once in some twenty floods rxe itself refuses a packet while what was not ready is sent again
        if "IBV_WC_REM_INV_REQ_ERR" not in done["client"].error:
            break
    assert {role: (end.ended, end.error) for role, end in done.items()} == {
        "client": ("complete", ""), "server": ("complete", ""),
    }  # fmt: skip
    assert tally["checked"] == tally["expected"] == 616


@pytest.mark.parametrize("wait", WAITS)
def test_what_was_chosen_is_told(ends: Ends, wait: Wait) -> None:
    chosen = ends.run(setting("rdma-send", "pingpong", 64, wait)).prepared["client"].chosen
    assert chosen["device"] == "rxe0"
    assert chosen["gid"] == "198.18.77.1"
    assert chosen["gid_type"] == "RoCE v2"
    assert chosen["mtu"] == MTU
    assert chosen["inline"] == 64 <= chosen["inline_limit"]
    assert chosen["wait"] == wait
    assert int(chosen["receive_physical"], 16) % 64 == int(chosen["receive_address"], 16) % 64


def test_inline_mtu_and_gid_index_can_be_set(ends: Ends) -> None:
    outcome = ends.run(setting("rdma-send", "pingpong", 64, "event", inline=0, mtu=256, gid_index=1))
    assert outcome.done["server"].tally["checked"] == outcome.done["server"].tally["expected"]
    chosen = outcome.prepared["server"].chosen
    assert (chosen["inline"], chosen["mtu"], chosen["gid_index"]) == (0, 256, 1)


def test_a_large_message_is_not_sent_inline(ends: Ends) -> None:
    assert ends.run(setting("rdma-send", "pingpong", 4096, "event")).prepared["client"].chosen["inline"] == 0
