"""The socket paths over loopback: both ends in threads of this process, or one end against packets made by hand."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import time
from typing import Any

import msgspec
import numpy as np
import pytest
from leaving import nothing_is_left  # noqa: F401
from two_sides import ODDITIES, TRIAL, WAITS, Side, both, clean, endpoint, received_by, trial_of

from cython_ext.core import payload
from cython_ext.loops import loop
from cython_ext.sockets.udp import UdpTransport
from hwrx.control.messages import Role, Setting, Wait
from hwrx.control.places import Place
from hwrx.errors import MachineError, PathError, UsageError
from hwrx.paths.families import sockets

FINISH, CREDIT = 0x46727768, 0x43727768


# --- everything that goes well ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 64, 1400, 65507])
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_every_message_arrives_whole_and_once(path: str, pattern: Any, wait: Wait, size: int) -> None:
    setting = Setting(
        path=path, pattern=pattern, size=size, wait=wait, messages=150, warmup=10, cooldown=5, check_every=1
    )
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
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_an_open_loop_sends_when_it_should(path: str, wait: Wait) -> None:
    setting = Setting(path=path, pattern="paced", rate=2000, wait=wait, messages=100, warmup=5, cooldown=5)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(client.counts)
    assert np.all(np.diff(client.trial.intended) == 500_000)
    # never early: the sender waits for the exact time
    assert np.all(client.trial.posted >= client.trial.intended)


@pytest.mark.parametrize("size", [1000, 100_000])
def test_an_open_loop_over_tcp_does_not_lock_up_when_it_is_faster_than_the_wire(size: int) -> None:
    setting = Setting(
        path="tcp", pattern="paced", rate=1e6, size=size, messages=300, socket_buffer=20_000, window=4096, limit=5
    )
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(client.counts)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
@pytest.mark.parametrize("window", [1, 3, 64])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_stream_at_full_speed_loses_nothing(path: str, window: int, batch: int) -> None:
    setting = Setting(path=path, pattern="stream", size=700, window=window, batch=batch, messages=5000, check_every=1)
    client, server = both(setting)
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts), server.counts


@pytest.mark.parametrize("size", [9, 1000, 65536, 1_000_000])
def test_tcp_messages_of_any_size_keep_their_bounds(size: int) -> None:
    setting = Setting(path="tcp", pattern="stream", size=size, messages=100, check_every=1)
    _, server = both(setting)
    assert clean(server.counts), server.counts


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_ipv6(path: str, pattern: Any) -> None:
    client, server = both(Setting(path=path, pattern=pattern, messages=50), Place(address="::1"))
    assert (client.verdict, server.verdict) == ("complete", "complete")
    assert clean(server.counts)


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_device_and_buffers_are_used_and_told(path: str) -> None:
    # more than net.core.rmem_max, which root may exceed
    setting = Setting(path=path, pattern="stream", messages=50, socket_buffer=10_000_000, wait="busy-poll")
    with endpoint("client", setting, Place(netdev="lo")) as client:
        chosen = client.chosen()
    assert chosen["device"] == "lo"
    assert chosen["send_buffer"] == chosen["receive_buffer"] == 20_000_000  # the kernel doubles it, and says so
    assert chosen["busy_poll"].startswith("50 µs")
    assert chosen["family"] == "IPv4"


def test_a_delivered_message_is_seen_in_place() -> None:
    setting = Setting(path="udp", size=64)
    with endpoint("server", setting) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        here = server.describe()
        server.connect({**here, "port": peer.getsockname()[1]})
        side = Side(server, setting, "server")
        peer.settimeout(5)
        peer.sendto(payload.make(64, 3, TRIAL), ("127.0.0.1", here["port"]))
        assert payload.sequence(peer.recv(100)) == 3
        view = received_by(server)
        assert payload.check(view[:64], TRIAL) == "good"
        with pytest.raises(BufferError):
            server.close()
        del view
        finish(peer, here["port"])
        side.join(timeout=10)
        assert side.verdict != ""


# --- datagrams made by hand -------------------------------------------------------------------------------------------


def finish(peer: socket.socket, port: int, trial: int = TRIAL) -> None:
    peer.sendto(struct.pack("<IIQ", FINISH, trial, 0), ("127.0.0.1", port))


class Raw:
    """A plain socket opposite to one end of a UDP path."""

    def __init__(self, role: Role, setting: Setting, receive_buffer: int = 1 << 20) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(30)
        transport = endpoint(role, setting)
        assert isinstance(transport, UdpTransport)
        self.transport = transport
        self.port = self.transport.describe()["port"]
        remote = {"address": "127.0.0.1", "port": self.socket.getsockname()[1], "receive_buffer": receive_buffer}
        self.transport.connect(remote)
        self.side = Side(self.transport, setting, role)

    def send(self, datagram: bytes) -> None:
        self.socket.sendto(datagram, ("127.0.0.1", self.port))

    def say(self, sequence: int, size: int = 64, trial: int = TRIAL) -> None:
        self.send(payload.make(size, sequence, trial))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.side.join(timeout=30)
        self.transport.close()
        self.socket.close()


STREAM = Setting(path="udp", pattern="stream", messages=100, warmup=0, cooldown=0, check_every=1, limit=30)


@pytest.mark.parametrize("wait", WAITS)
def test_what_the_wire_did_is_counted(wait: Wait) -> None:
    setting = Setting(
        path="udp", pattern="stream", messages=100, warmup=0, cooldown=0, check_every=1, wait=wait, size=64, limit=30
    )
    with Raw("server", setting) as raw:
        order = [number for number in range(100) if number not in (10, 20, 30)]  # three are lost
        order[50], order[51] = order[51], order[50]  # two swap places
        for number in order:
            raw.say(number)
        raw.say(5)  # twice
        raw.say(40, trial=TRIAL + 1)  # of another trial
        raw.send(b"\0" * 64)  # no message at all
        raw.send(payload.make(64, 41, TRIAL)[:-1])  # cut
        raw.send(payload.make(64, 42, TRIAL) + b"!")  # grown
        raw.send(payload.make(9000, 43, TRIAL))  # larger than the slot
        damaged = bytearray(payload.make(64, 20, TRIAL))
        damaged[50] ^= 1
        raw.send(bytes(damaged))
        finish(raw.socket, raw.port)
        counts = raw.side.counts
    assert raw.side.verdict == "finished"
    assert {name: counts[name] for name in ODDITIES} == {
        "lost": 3,
        "duplicated": 1,
        "reordered": 1,
        "stale": 1,
        "corrupt": 2,
        "wrong_size": 3,
    }
    assert counts["delivered"] == 97


def test_stragglers_behind_the_finish_are_taken() -> None:
    with Raw("server", STREAM) as raw:
        for number in range(90):
            raw.say(number)
        finish(raw.socket, raw.port)
        for number in range(90, 100):
            raw.say(number)
        assert raw.side.counts["lost"] == 0
    assert raw.side.verdict == "complete"


def test_a_finish_of_another_trial_or_from_a_stranger_is_none() -> None:
    with Raw("server", STREAM) as raw, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        finish(stranger, raw.port)
        finish(raw.socket, raw.port, trial=TRIAL + 1)
        for number in range(100):
            raw.say(number)
        assert raw.side.counts["delivered"] == 100
    assert raw.side.counts["corrupt"] == 0
    assert raw.side.counts["wrong_size"] == 1


def test_without_a_finish_the_time_limit_ends_it() -> None:
    with Raw("server", msgspec.structs.replace(STREAM, limit=2)) as raw:
        start = time.monotonic()
        raw.say(0)
        counts = raw.side.counts
        assert time.monotonic() - start >= 1.9
    assert raw.side.verdict == "limit"
    assert (counts["delivered"], counts["lost"]) == (1, 99)


def test_the_receiver_credits_every_half_window() -> None:
    setting = Setting(path="udp", pattern="stream", messages=64, warmup=0, cooldown=0, window=16, batch=1, limit=30)
    with Raw("server", setting) as raw:
        for number in range(64):
            raw.say(number)
        said = [struct.unpack("<IIQ", raw.socket.recv(100)) for _ in range(8)]
        assert said == [(CREDIT, TRIAL, 8 * k) for k in range(1, 9)]
        # and says that it has counted to the end
        assert struct.unpack("<IIQ", raw.socket.recv(100)) == (FINISH, TRIAL, 64)
    assert raw.side.verdict == "complete"


def test_the_sender_stops_at_its_window_and_goes_on_with_credit() -> None:
    setting = Setting(path="udp", pattern="stream", messages=64, warmup=0, cooldown=0, window=16, batch=4, limit=30)
    with Raw("client", setting) as raw:
        assert [payload.sequence(raw.socket.recv(100)) for _ in range(16)] == list(range(16))
        raw.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            raw.socket.recv(100)
        raw.socket.settimeout(30)
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL + 1, 16))  # of another trial: none
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL, 1 << 40))  # of more than was sent: none
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL, 4))
        assert [payload.sequence(raw.socket.recv(100)) for _ in range(4)] == [16, 17, 18, 19]
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL, 20))
        assert payload.sequence(raw.socket.recv(100)) == 20
        for number in range(21, 36):
            assert payload.sequence(raw.socket.recv(100)) == number
        # a lost credit: it goes on by itself after a while
        assert payload.sequence(raw.socket.recv(100)) == 36
        for number in range(37, 52):
            assert payload.sequence(raw.socket.recv(100)) == number
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL, 52))
        for number in range(52, 64):
            assert payload.sequence(raw.socket.recv(100)) == number
        assert struct.unpack("<IIQ", raw.socket.recv(100)) == (FINISH, TRIAL, 64)
        finish(raw.socket, raw.port)
        raw.side.join(timeout=30)
    assert raw.side.verdict == "complete"
    assert raw.transport.slides >= 1


def test_a_finish_that_gets_lost_is_said_again() -> None:
    setting = Setting(path="udp", pattern="stream", messages=4, warmup=0, cooldown=0, limit=30)
    with Raw("client", setting) as raw:
        for number in range(4):
            assert payload.sequence(raw.socket.recv(100)) == number
        for _ in range(3):
            assert raw.socket.recv(100)[:4] == b"hwrF"
        finish(raw.socket, raw.port)
        raw.side.join(timeout=30)
        # one more may have been under way when it heard; who had not heard would have said it seven times more
        raw.socket.settimeout(0.1)
        rest = 0
        with contextlib.suppress(TimeoutError):
            while raw.socket.recv(100):
                rest += 1
    assert rest <= 2
    assert raw.side.verdict == "complete"


def test_a_receiver_that_falls_silent_ends_the_stream() -> None:
    setting = Setting(path="udp", pattern="stream", messages=100_000, window=8, batch=1, limit=0.5)
    with Raw("client", setting) as raw:
        raw.side.join(timeout=20)
        assert "time limit" in raw.side.verdict
    assert raw.side.counts["posted"] < 100


@pytest.mark.parametrize("wait", WAITS)
def test_a_pingpong_goes_on_after_a_loss(wait: Wait) -> None:
    setting = Setting(path="udp", wait=wait, messages=20, warmup=0, cooldown=0, check_every=0, limit=30)
    dropped = {3, 11}
    with Raw("client", setting) as raw:
        while raw.side.is_alive():
            said = raw.socket.recv(100)
            if said[:4] == b"hwrF":
                break
            if payload.sequence(said) not in dropped:
                raw.say(payload.sequence(said))
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert counts["lost"] == 2
    assert set(np.flatnonzero(raw.side.trial.delivered == 0)) == dropped


def test_answers_out_of_turn_are_told_from_the_right_one() -> None:
    setting = Setting(path="udp", messages=20, warmup=0, cooldown=0, check_every=0, limit=30)
    with Raw("client", setting) as raw:
        for number in range(20):
            assert payload.sequence(raw.socket.recv(100)) == number
            if number:
                raw.say(number - 1)
            raw.send(b"hello")
            raw.say(number)
        counts = raw.side.counts
    assert raw.side.verdict == "complete"
    assert (counts["delivered"], counts["duplicated"], counts["wrong_size"]) == (20, 19, 20)
    assert np.all(raw.side.trial.delivered > 0)


def test_noise_of_every_length_crashes_nothing() -> None:
    noise = random.Random(1)
    with Raw("server", STREAM) as raw:
        for length in [*range(40), 64, 65, 127, 128, 129, 65507]:
            raw.send(noise.randbytes(length))
        raw.send(struct.pack("<IIQ", CREDIT, TRIAL, (1 << 64) - 1))
        for number in range(100):
            raw.say(number)
        counts = raw.side.counts
    assert counts["delivered"] == 100
    assert counts["wrong_size"] + counts["corrupt"] == 46
    assert raw.side.verdict == "complete"


@pytest.mark.parametrize("path", ["udp", "tcp"])
@pytest.mark.parametrize("wait", WAITS)
def test_an_idle_receiver_has_patience_and_is_not_disturbed_by_signals(path: str, wait: Wait) -> None:
    """Signals that hit the receiving thread end nothing: only time does."""
    setting = Setting(path=path, messages=3, warmup=0, cooldown=0, wait=wait, limit=0.5)
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            answering, asking = Side(server, setting, "server"), Side(client, setting, "client")
            for _ in range(200):
                for side in (answering, asking):
                    if side.is_alive() and side.ident:
                        signal.pthread_kill(side.ident, signal.SIGUSR1)
                time.sleep(0.001)
            answering.join(timeout=10)
            asking.join(timeout=10)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert (asking.verdict, answering.verdict) == ("complete", "complete")
        assert clean(asking.counts)
        assert clean(answering.counts)


# --- a peer that is not there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
def test_nobody_at_the_other_end_is_peer_unreachable(pattern: Any, wait: Wait) -> None:
    setting = Setting(path="udp", pattern=pattern, messages=1000, wait=wait, limit=5)
    with Raw("server", setting) as nobody:
        gone = nobody.socket.getsockname()[1]
        finish(nobody.socket, nobody.port)
    with endpoint("client", setting) as client:
        client.connect({"address": "127.0.0.1", "port": gone, "receive_buffer": 1 << 20})
        side = Side(client, setting, "client")
        assert side.counts["delivered"] == 0
        assert side.verdict.startswith(f"peer unreachable: 127.0.0.1 port {gone}: ECONNREFUSED")


def test_tcp_refused_is_peer_unreachable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with (
            endpoint("client", Setting(path="tcp")) as client,
            pytest.raises(PathError, match=rf"peer unreachable: connect to 127.0.0.1 port {port}.*ECONNREFUSED"),
        ):
            client.connect({"address": "127.0.0.1", "port": port, "receive_buffer": 1})


def test_a_tcp_server_waits_for_its_client_only_so_long() -> None:
    setting = Setting(path="tcp", limit=0.3)
    with (
        endpoint("server", setting) as server,
        socket.create_connection(("127.0.0.1", server.describe()["port"])) as stranger,
    ):
        with pytest.raises(PathError, match=r"127.0.0.1 port 1 did not connect within 0.3 s"):
            server.connect({"address": "127.0.0.1", "port": 1, "receive_buffer": 1})
        assert stranger.recv(1) == b""  # who was not expected is turned away


@pytest.mark.parametrize("remote", [{}, {"address": "nowhere", "port": 1}, {"address": "127.0.0.1", "port": "x"}])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_peer_that_described_itself_wrongly(path: str, remote: dict[str, Any]) -> None:
    with endpoint("server", Setting(path=path)) as server, pytest.raises(PathError, match="address cannot be used"):
        server.connect(remote)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_datagram_has_a_largest_size() -> None:
    with pytest.raises(UsageError, match=r"at most 65507 bytes, not 65508"):
        sockets.check_setting(Setting(path="udp", size=65508))
    sockets.check_setting(Setting(path="tcp", size=65508))


def test_paced_without_a_rate() -> None:
    with pytest.raises(UsageError, match="rate"):
        sockets.check_setting(Setting(path="udp", pattern="paced"))


def test_places_that_do_not_exist() -> None:
    for path in ("udp", "tcp"):
        with pytest.raises(MachineError, match="no network device 'nowhere0'"):
            endpoint("client", Setting(path=path), Place(netdev="nowhere0"))
        with pytest.raises(PathError, match=r"cannot bind .* 192\.0\.2\.1.*EADDRNOTAVAIL"):
            endpoint("client", Setting(path=path), Place(address="192.0.2.1"))
        with pytest.raises(UsageError, match="no IPv4 or IPv6 address"):
            endpoint("client", Setting(path=path), Place(address="example"))


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_a_closed_endpoint_is_closed_for_good(path: str) -> None:
    setting = Setting(path=path, messages=5)
    transport = endpoint("server", setting)
    transport.close()
    transport.close()
    for pattern in ("pingpong", "stream"):
        status = loop.run(trial_of(setting), transport, pattern, "server")
        assert "EBADF" in transport.explain(status)
