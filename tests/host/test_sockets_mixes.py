"""Messages that differ in size over the socket paths: both ends in threads of this process, over loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leaving import nothing_is_left  # noqa: F401
from two_sides import WAITS, Side, both, clean, connected, endpoint

from cython_ext.core import payload
from hwrx.control.messages import Setting, Wait
from hwrx.paths import mixes

MIX = "8:2,9:1,13:1,16:1,17:1,31:1,300:3,1400:1,6000:1"  # of every layout of a message
COUNT = 1200


def mixed(path: str, pattern: Any, mix: str = MIX, **fields: Any) -> Setting:
    given: dict[str, Any] = {"messages": COUNT, "warmup": 10, "cooldown": 5, "check_every": 3, **fields}
    return Setting(path=path, pattern=pattern, mix=mix, size=mixes.read_mix(mix).sizes[-1], **given)


def sizes_sent(setting: Setting) -> np.ndarray[Any, Any]:
    table = mixes.draw_sizes(setting, 0, 0, fetched=False)
    return np.resize(table, setting.total)


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_every_message_arrives_whole_and_once(path: str, pattern: Any, wait: Wait) -> None:
    # an open loop sends no more than a receiver's buffer holds, for it may get no processor
    paced: dict[str, Any] = {"rate": 2000.0, "messages": 40} if pattern == "paced" else {}
    setting = mixed(path, pattern, wait=wait, **paced)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts
    assert server.counts["bytes"] == sizes_sent(setting).sum()
    assert server.counts["checked"] > 0
    assert np.all(server.trial.delivered > 0)
    if pattern != "stream":
        assert clean(client.counts)
        assert client.counts["bytes"] == sizes_sent(setting).sum()


@pytest.mark.parametrize("check_every", [0, 1])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_long_stream_goes_round_its_buffers(path: str, check_every: int) -> None:
    setting = mixed(path, "stream", messages=20_000, batch=7, check_every=check_every)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts
    assert server.counts["checked"] == (setting.total if check_every else 0)


@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
@pytest.mark.parametrize(("path", "more"), [("udp-uring", {}), ("udp-uring", {"multishot": True}), ("tcp-uring", {})])
def test_through_io_uring(path: str, pattern: Any, more: dict[str, Any], needs: Callable[..., None]) -> None:
    needs("io_uring")
    paced = {"rate": 2000.0, "messages": 40} if pattern == "paced" else {}
    for zerocopy in (False, True):
        setting = mixed(path, pattern, **{"zerocopy_send": zerocopy, "messages": 3000, **more, **paced})
        client, server = both(setting)
        assert (client.verdict, server.verdict) == ("complete", "complete")
        assert clean(server.counts), server.counts
        assert server.counts["bytes"] == sizes_sent(setting).sum()


@pytest.mark.parametrize("zerocopy", [False, True])
@pytest.mark.parametrize("path", ["tcp", "tcp-uring"])
def test_a_long_open_loop_goes_round_its_buffers(path: str, zerocopy: bool, needs: Callable[..., None]) -> None:
    """A server has a message in its hands while it waits for room to answer: nothing may be received over the end."""
    if path == "tcp-uring":
        needs("io_uring")
    setting = mixed(path, "paced", messages=8000, rate=60_000.0, check_every=1, zerocopy_send=zerocopy)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(client.counts), client.counts
    assert clean(server.counts), server.counts
    assert server.counts["bytes"] == client.counts["bytes"] == sizes_sent(setting).sum()


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_without_copies_each_message_has_its_own_length(path: str, pattern: Any) -> None:
    setting = mixed(path, pattern, zerocopy_send=True)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts
    assert server.counts["bytes"] == sizes_sent(setting).sum()


def test_a_part_of_a_message_is_moved_and_told() -> None:
    """The ring holds no whole number of messages that differ, and none may straddle its end."""
    setting = mixed("tcp", "stream", mix="1000:1,100000:1", messages=60)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        assert clean(connected(client, server, setting)[1].counts)
        assert server.counts()["moved_bytes"] > 0


def test_a_datagram_of_the_size_of_another_message_is_none() -> None:
    setting = mixed("udp", "stream", mix="64:1,128:1", messages=30, warmup=0, cooldown=0, check_every=0)
    sizes = sizes_sent(setting)
    with endpoint("server", setting) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        told = server.describe()
        server.connect({"address": "127.0.0.1", "port": sender.getsockname()[1], "receive_buffer": 1 << 20})
        side = Side(server, setting, "server")
        for sequence, size in enumerate(sizes):
            wrong = 192 - size if sequence == 7 else size
            sender.sendto(payload.make(int(wrong), sequence, 7), (told["address"], told["port"]))
        side.trial.stop()
        side.join(timeout=60)
        assert not side.is_alive()
        assert side.counts["wrong_size"] == 1
        assert side.counts["lost"] == 1
        assert side.counts["delivered"] == 29
