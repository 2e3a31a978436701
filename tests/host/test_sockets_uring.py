"""The socket paths through io_uring, over loopback: both ends in threads of this process.

A kernel that has no io_uring, or does not let us use it, is a reason to skip them: guests run them, too.
"""

from __future__ import annotations

import errno
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from leaving import nothing_is_left  # noqa: F401
from two_sides import ODDITIES, TRIAL, Side, both, clean, endpoint, received_by

from cython_ext.core import payload
from cython_ext.sockets import uring
from cython_ext.sockets.socket_transport import batch_in_a_piece
from hwrx import paths
from hwrx.control.messages import Setting, Wait
from hwrx.control.places import Place
from hwrx.errors import HwrxError, UsageError

FINISH = 0x46727768
WAITS: tuple[Wait, ...] = ("block", "spin")
PATHS = ("udp-uring", "tcp-uring")


@pytest.fixture(scope="module", autouse=True)
def usable(needs: Callable[..., None]) -> None:
    needs("io_uring")


@pytest.mark.parametrize("size", [8, 64, 1400, 65507])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize(("path", "multishot"), [("udp-uring", False), ("udp-uring", True), ("tcp-uring", False)])
def test_every_message_arrives_whole_and_once(path: str, multishot: bool, pattern: Any, wait: Wait, size: int) -> None:
    setting = Setting(
        path=path, pattern=pattern, size=size, wait=wait, multishot=multishot,
        messages=150, warmup=10, cooldown=5, check_every=1,
    )  # fmt: skip
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts
    assert server.counts["checked"] == 165
    assert server.counts["bytes"] == 165 * size
    assert np.all(server.trial.delivered > 0)
    if pattern == "pingpong":
        assert clean(client.counts)
        assert np.all(client.trial.delivered > client.trial.posted)


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(("path", "multishot"), [("udp-uring", False), ("udp-uring", True), ("tcp-uring", False)])
def test_an_open_loop_sends_when_it_should(path: str, multishot: bool, wait: Wait) -> None:
    setting = Setting(
        path=path, pattern="paced", rate=2000, wait=wait, multishot=multishot, messages=100, warmup=5, cooldown=5
    )
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(client.counts)
    assert np.all(client.trial.posted >= client.trial.intended)


@pytest.mark.parametrize("batch", [1, 7, 64, 256])
@pytest.mark.parametrize("window", [1, 64])
@pytest.mark.parametrize(("path", "multishot"), [("udp-uring", False), ("udp-uring", True), ("tcp-uring", False)])
def test_a_stream_at_full_speed_loses_nothing(path: str, multishot: bool, window: int, batch: int) -> None:
    more = {"window": window} if path == "udp-uring" else {}
    setting = Setting(
        path=path, pattern="stream", size=700, batch=batch, multishot=multishot, messages=5000, check_every=1, **more
    )
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts


@pytest.mark.parametrize("pattern", ["pingpong", "stream", "paced"])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_sent_without_copying_is_whole_and_counted(path: str, pattern: Any) -> None:
    rate = 5000.0 if pattern == "paced" else None
    # an open loop does not wait for a receiver that gets no processor: all that it sends has room
    setting = Setting(
        path=path, pattern=pattern, size=5000, rate=rate, zerocopy_send=True, messages=400, check_every=1,
        socket_buffer=16 << 20,
    )  # fmt: skip
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        sides = Side(server, setting, "server"), Side(client, setting, "client")
        for side in sides:
            side.join(timeout=120)
            assert side.verdict == "complete"
            if not (pattern == "stream" and side is sides[1]):
                assert clean(side.counts), side.counts
        counts = client.counts()
        told = client.chosen()["zerocopy_send"]
        # of a ping-pong each check is a message besides
        assert counts["zerocopy_bytes"] >= setting.total * setting.size
        assert counts["zerocopy_bytes"] % setting.size == 0
        assert counts["zerocopy_unsettled"] == 0
    # between two ends of one machine the kernel copies after all, and says so if it can
    if "does not say" in told:
        assert counts["zerocopy_untold_bytes"] == counts["zerocopy_bytes"]
    else:
        assert counts["zerocopy_copied_bytes"] == counts["zerocopy_bytes"]


@pytest.mark.parametrize("path", PATHS)
def test_ipv6(path: str) -> None:
    client, server = both(Setting(path=path, messages=50), Place(address="::1"))
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts)


@pytest.mark.parametrize("size", [9, 65536, 1_000_000])
def test_tcp_messages_of_any_size_keep_their_bounds(size: int) -> None:
    for pattern in ("stream", "pingpong"):
        setting = Setting(path="tcp-uring", pattern=pattern, size=size, messages=60, check_every=1)  # type: ignore[arg-type]
        _, server = both(setting)
        assert clean(server.counts), server.counts


def test_a_piece_is_no_longer_than_a_call_moves() -> None:
    assert [batch_in_a_piece(16, size) for size in (8, 1 << 20, 1 << 28, 1 << 30)] == [16, 16, 7, 1]
    assert batch_in_a_piece(16, 1 << 28) << 28 < 1 << 31


def test_datagrams_that_came_together_came_at_one_time() -> None:
    """One look at the ring brings eight; the loop takes four at a time, and checks them before it takes the rest."""
    setting = Setting(
        path="udp-uring", pattern="stream", size=60_000, batch=4, messages=8, warmup=0, cooldown=0, check_every=1,
        multishot=True, limit=30, socket_buffer=1 << 22,
    )  # fmt: skip
    with endpoint("server", setting) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        port = server.describe()["port"]
        server.connect({"address": "127.0.0.1", "port": peer.getsockname()[1], "receive_buffer": 1 << 22})
        for number in range(8):
            peer.sendto(payload.make(60_000, number, TRIAL), ("127.0.0.1", port))
        side = Side(server, setting, "server")
        side.join(timeout=30)
    assert clean(side.counts), side.counts
    assert len(set(side.trial.delivered)) == 1, np.diff(side.trial.delivered)


@pytest.mark.parametrize("multishot", [False, True])
@pytest.mark.parametrize("wait", WAITS)
def test_what_the_wire_did_is_counted(wait: Wait, multishot: bool) -> None:
    setting = Setting(
        path="udp-uring", pattern="stream", messages=100, warmup=0, cooldown=0, check_every=1, wait=wait, limit=30,
        multishot=multishot,
    )  # fmt: skip
    with (
        endpoint("server", setting) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        peer.bind(("127.0.0.1", 0))
        port = server.describe()["port"]
        server.connect({"address": "127.0.0.1", "port": peer.getsockname()[1], "receive_buffer": 1 << 20})
        side = Side(server, setting, "server")

        def say(data: bytes) -> None:
            peer.sendto(data, ("127.0.0.1", port))

        order = [number for number in range(100) if number not in (10, 20, 30)]  # three are lost
        order[50], order[51] = order[51], order[50]  # two swap places
        for number in order:
            say(payload.make(64, number, TRIAL))
        say(payload.make(64, 5, TRIAL))  # twice
        say(payload.make(64, 40, TRIAL + 1))  # of another trial
        say(b"\0" * 64)  # no message at all
        say(payload.make(64, 41, TRIAL)[:-1])  # cut
        say(payload.make(64, 42, TRIAL) + b"!")  # grown
        say(payload.make(9000, 43, TRIAL))  # larger than the slot
        say(b"")
        damaged = bytearray(payload.make(64, 20, TRIAL))
        damaged[50] ^= 1
        say(bytes(damaged))
        say(struct.pack("<IIQ", FINISH, TRIAL, 0))
        counts = side.counts
    assert side.verdict == "finished"
    assert {name: counts[name] for name in ODDITIES} == {
        "lost": 3,
        "duplicated": 1,
        "reordered": 1,
        "stale": 1,
        "corrupt": 2,
        "wrong_size": 4,
    }
    assert counts["delivered"] == 97


@pytest.mark.parametrize(("path", "words"), [("udp-uring", "peer unreachable"), ("tcp-uring", "broke off")])
def test_an_end_whose_other_end_is_gone_says_so(path: str, words: str) -> None:
    setting = Setting(path=path, pattern="stream", messages=100_000, limit=5)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        server.close()
        side = Side(client, setting, "client")
        side.join(timeout=60)
        assert not side.is_alive()
    assert words in side.verdict


def test_signals_end_no_wait_and_lose_no_message() -> None:
    def ring() -> None:
        while not stop.wait(0.001):
            for side in (client, server):
                if side.is_alive() and side.ident is not None:
                    signal.pthread_kill(side.ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    stop = threading.Event()
    setting = Setting(path="tcp-uring", size=100_000, messages=1500, check_every=1)
    try:
        with endpoint("client", setting) as one, endpoint("server", setting) as other:
            ours, theirs = one.describe(), other.describe()
            one.connect(theirs)
            other.connect(ours)
            server, client = Side(other, setting, "server"), Side(one, setting, "client")
            bell = threading.Thread(target=ring)
            bell.start()
            for side in (client, server):
                side.join(timeout=120)
            stop.set()
            bell.join()
    finally:
        stop.set()
        signal.signal(signal.SIGUSR1, before)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(client.counts)


def test_nothing_that_was_asked_for_is_written_behind_a_close() -> None:
    """A receive that is under way when the ring goes must not write into memory that is somebody else's by then."""
    setting = Setting(path="udp-uring", pattern="stream", messages=100, warmup=0, cooldown=0, limit=0.3, patience=0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        with endpoint("server", setting) as server:
            port = server.describe()["port"]
            server.connect({"address": "127.0.0.1", "port": peer.getsockname()[1], "receive_buffer": 1 << 20})
            side = Side(server, setting, "server")
            peer.sendto(payload.make(64, 0, TRIAL), ("127.0.0.1", port))
            side.join(timeout=30)
            assert side.verdict == "limit"
            seen = bytes(received_by(server))
            peer.sendto(payload.make(64, 1, TRIAL), ("127.0.0.1", port))
            time.sleep(0.05)
            assert bytes(received_by(server)) == seen


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"path": "udp-uring", "wait": "epoll"}, "waits on its own completion ring"),
        ({"path": "tcp-uring", "wait": "busy-poll"}, "waits on its own completion ring"),
        ({"path": "tcp-uring", "multishot": True}, "would have to be copied into one piece"),
        ({"path": "udp", "multishot": True}, "udp does not read multishot"),
        ({"path": "udp-uring", "size": 65508}, "at most 65507 bytes"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        paths.check_setting(Setting(**fields))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("error", "disabled", "words", "remedy"),
    [
        (errno.ENOSYS, "0", "has no io_uring", "CONFIG_IO_URING"),
        (errno.EPERM, "2", "kernel.io_uring_disabled is 2", "sysctl -w"),
        (errno.EPERM, "0", "seccomp", "outside of the container"),
        (errno.EINVAL, "0", "IORING_SETUP_DEFER_TASKRUN", "since 6.1"),
        (errno.ENOMEM, "0", "ENOMEM", "ulimit -l"),
    ],
)
def test_why_there_is_no_ring_is_told_with_what_mends_it(
    error: int, disabled: str, words: str, remedy: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "io_uring_disabled").write_text(f"{disabled}\n")
    monkeypatch.setattr(uring, "DISABLED", tmp_path / "io_uring_disabled")
    told = uring.why_no_ring(error)
    assert isinstance(told, HwrxError)
    assert words in str(told)
    assert remedy in (told.remedy or "")
