"""The server's end of the TCP path against a plain client: messages in pieces, connections that break."""

from __future__ import annotations

import random
import socket
import struct
import time

import pytest
from leaving import nothing_is_left  # noqa: F401
from two_sides import TRIAL, WAITS, Side, clean, endpoint

from cython_ext.core import payload
from hwrx.control.messages import Setting, Wait


class RawTcp:
    """A plain TCP client opposite to the server end of a path."""

    def __init__(self, setting: Setting) -> None:
        self.transport = endpoint("server", setting)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.connect(("127.0.0.1", self.transport.describe()["port"]))
        self.transport.connect({"address": "127.0.0.1", "port": self.socket.getsockname()[1]})
        self.side = Side(self.transport, setting, "server")

    def __enter__(self) -> RawTcp:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()
        self.side.join(timeout=30)
        self.transport.close()


@pytest.mark.parametrize("wait", WAITS)
def test_messages_cut_into_pieces_are_put_together(wait: Wait) -> None:
    setting = Setting(path="tcp", pattern="stream", size=1000, messages=50, warmup=0, cooldown=0, wait=wait, limit=5)
    stream = b"".join(payload.make(1000, number, TRIAL) for number in range(50))
    cuts = random.Random(2)
    with RawTcp(setting) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while stream:
            piece = cuts.choice([1, 7, 999, 1000, 1001, 5000])
            raw.socket.sendall(stream[:piece])
            stream = stream[piece:]
        assert clean(raw.side.counts), raw.side.counts
    assert raw.side.verdict == "complete"


@pytest.mark.parametrize("wait", WAITS)
def test_a_slow_half_message_is_waited_for(wait: Wait) -> None:
    # no patience is longer than the limit, which counts from the first whole message on
    setting = Setting(path="tcp", size=1000, messages=1, warmup=0, cooldown=0, wait=wait, limit=0.1)
    message = payload.make(1000, 0, TRIAL)
    with RawTcp(setting) as raw:
        raw.socket.sendall(message[:300])
        time.sleep(0.25)  # more than two patiences
        raw.socket.sendall(message[300:])
        assert clean(raw.side.counts)
    assert raw.side.verdict == "complete"


@pytest.mark.parametrize("wait", WAITS)
def test_an_orderly_close_is_finished_and_a_cut_message_is_counted(wait: Wait) -> None:
    setting = Setting(path="tcp", pattern="stream", size=1000, messages=50, wait=wait, limit=5)
    with RawTcp(setting) as raw:
        raw.socket.sendall(payload.make(1000, 0, TRIAL) + payload.make(1000, 1, TRIAL)[:400])
        raw.socket.shutdown(socket.SHUT_WR)
        counts = raw.side.counts
    assert raw.side.verdict == "finished"
    assert (counts["delivered"], counts["wrong_size"]) == (1, 1)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("wait", WAITS)
def test_a_reset_is_named(wait: Wait, mapped: bool) -> None:
    if mapped and wait not in ("block", "spin"):
        return  # pages are mapped in the same way however they are waited for
    size = 8192 if mapped else 1000
    setting = Setting(path="tcp", pattern="stream", size=size, messages=50, wait=wait, limit=5, zerocopy_receive=mapped)
    with RawTcp(setting) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.socket.sendall(payload.make(size, 0, TRIAL))
        raw.socket.close()
        raw.side.join(timeout=10)
    assert "broke off (ECONNRESET)" in raw.side.verdict


@pytest.mark.parametrize("wait", ["block", "spin"])
def test_a_peer_that_does_not_read_ends_a_tcp_stream(wait: Wait) -> None:
    setting = Setting(
        path="tcp", pattern="stream", size=60_000, messages=10_000, wait=wait, limit=0.4, socket_buffer=50_000
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, endpoint("client", setting) as client:
        client.connect({"address": "127.0.0.1", "port": listener.getsockname()[1]})
        side = Side(client, setting, "client")
        side.join(timeout=20)
        assert "time limit" in side.verdict
