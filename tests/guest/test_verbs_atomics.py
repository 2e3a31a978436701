"""Atomics: each is carried out exactly once, whatever happens on the wire, and the counter says so at the end."""

from __future__ import annotations

import pytest
from guest_ends import ROLES, Ends

from hwrx.control.messages import Pattern, Setting, Wait
from hwrx.errors import UsageError

PATHS = ("rdma-fetch-add", "rdma-cas")


def setting(path: str, pattern: Pattern = "pingpong", wait: Wait = "event", **more: object) -> Setting:
    rate = 200.0 if pattern == "paced" else None
    sizes = {"size": 8, "messages": 200, "warmup": 5, "cooldown": 3, "window": 8, "batch": 4, "limit": 20.0}
    return Setting(path=path, pattern=pattern, wait=wait, rate=rate, **{**sizes, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
@pytest.mark.parametrize("wait", ["event", "poll"])
def test_each_operation_is_carried_out_once(ends: Ends, path: str, pattern: Pattern, wait: Wait) -> None:
    asked = setting(path, pattern, wait)
    client, server = (ends.run(asked).done[role] for role in ROLES)
    assert (client.ended, client.error, server.error) == ("complete", "", "")
    assert client.tally["delivered"] == client.tally["expected"] == asked.total
    assert client.tally["counter"] == asked.total
    assert "counter" not in server.tally
    bad = {kind: client.tally[kind] for kind in ("lost", "duplicated", "reordered", "corrupt", "stale", "wrong_size")}
    assert not any(bad.values()), bad


@pytest.mark.parametrize("path", PATHS)
def test_a_lost_answer_is_sent_again_and_nothing_is_added_twice(ends: Ends, path: str) -> None:
    """A responder answers a repeated atomic from what it kept of the first one (IBTA 9.4.5, 9.7.5.1.5)."""
    asked = setting(path, netem="loss 10%", ack_timeout=12)
    client = ends.run(asked).done["client"]
    assert (client.ended, client.error) == ("complete", "")
    assert client.resent > 0
    assert client.tally["counter"] == client.tally["delivered"] == asked.total


@pytest.mark.parametrize("path", PATHS)
def test_an_atomic_is_of_eight_bytes(ends: Ends, path: str) -> None:
    with pytest.raises(UsageError, match="an atomic is of 8 bytes, not 64") as caught:
        ends.run(setting(path, size=64))
    assert caught.value.remedy == "--size 8"
