"""The TCP exchange of the verbs examples, and what the commands that open an endpoint make of their options."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from hwrx.cli import main
from hwrx.commands.shared import roce_ends
from hwrx.errors import MachineError, PeerError, UsageError
from hwrx.roce import Parameters, exchange

OURS = Parameters(gid="::ffff:c000:201", qpn=0x11, psn=0x9A1B2C)
THEIRS = Parameters(gid="2001:db8::2", qpn=0xFFFFFE, psn=0, lid=0x1234)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_the_message_is_the_examples() -> None:
    message = exchange.encode_parameters(OURS)
    assert message == b"0000:000011:9a1b2c:00000000000000000000ffffc0000201\0"
    assert exchange.decode_parameters(exchange.encode_parameters(THEIRS)) == THEIRS


@pytest.mark.parametrize("message", [b"", b"x" * 52, b"0000:000011:9a1b2c:00000000000000000000ffffc0000201\n"])
def test_another_message_is_refused_in_words(message: bytes) -> None:
    with pytest.raises(PeerError, match="instead of its LID, QPN, PSN and GID") as caught:
        exchange.decode_parameters(message)
    assert caught.value.remedy


def test_the_server_is_connected_before_the_client_has_its_answer() -> None:
    port, order = free_port(), []
    client: list[Parameters] = []

    def ask() -> None:
        client.append(exchange.exchange_as_client("127.0.0.1", port, OURS, idle=lambda: None))
        order.append("client")

    thread = threading.Thread(target=ask)
    thread.start()
    found = exchange.exchange_as_server(
        port, THEIRS, lambda there: order.append("connected"), idle=lambda: None, patience=20
    )
    thread.join()
    assert found == OURS and client == [THEIRS]
    assert order == ["connected", "client"]


def test_who_waits_does_other_things_meanwhile() -> None:
    calls = []
    with pytest.raises(PeerError):
        exchange.exchange_as_server(free_port(), OURS, lambda there: None, idle=lambda: calls.append(1), patience=0.1)
    assert calls


def test_nobody_at_the_other_end_is_told_in_words() -> None:
    with pytest.raises(PeerError, match="nobody exchanges parameters at 127"):
        exchange.exchange_as_client("127.0.0.1", free_port(), OURS, idle=lambda: None, patience=0.1)
    with pytest.raises(PeerError, match=r"nobody came to TCP port \d+ within 0.1 s"):
        exchange.exchange_as_server(free_port(), OURS, lambda there: None, idle=lambda: None, patience=0.1)
    with socket.create_server(("", 0)) as taken, pytest.raises(MachineError, match="cannot be listened to"):
        exchange.exchange_as_server(taken.getsockname()[1], OURS, lambda there: None, idle=lambda: None)


def test_a_client_that_leaves_in_between_is_told() -> None:
    port = free_port()

    def leave() -> None:
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as there:
                there.sendall(exchange.encode_parameters(OURS))
                there.recv(100)
                return
            time.sleep(0.01)  # the server is not there yet

    waiting = threading.Thread(target=leave, daemon=True)
    waiting.start()
    with pytest.raises(PeerError, match=r"did not say that it is done|broke off"):
        exchange.exchange_as_server(port, THEIRS, lambda there: None, idle=lambda: None, patience=20)
    waiting.join()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("node7", "node7", 18515), ("192.0.2.1:99", "192.0.2.1", 99), ("2001:db8::1", "2001:db8::1", 18515),
     ("[2001:db8::1]:99", "2001:db8::1", 99)],
)  # fmt: skip
def test_where_to_exchange(text: str, host: str, port: int) -> None:
    assert roce_ends._host_and_port(text, 18515, "--exchange HOST") == (host, port)
    with pytest.raises(UsageError, match=r"is not a port\n.*--exchange HOST, or HOST:18515"):
        roce_ends._host_and_port("node7:port", 18515, "--exchange HOST")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ping", "eth9", "--address", "192.0.2.1", "--qpn", "1"], "--qpn"),
        (["ping", "eth9", "--address", "192.0.2.1", "--psn", "0x1000000"], "--psn"),
        (["send", "eth9", "--address", "192.0.2.1", "--key", "zwei"], "'zwei' is not a number"),
        (["send", "eth9", "--address", "192.0.2.1", "--verb", "spend"], "--verb"),
        (["listen", "eth9", "--address", "192.0.2.1", "--mtu", "1500"], "--mtu"),
        (["listen", "eth9"], "--address"),
        (["ping", "eth9", "--address", "192.0.2.1", "--rping"], "add --cm ADDRESS"),
        (["ping", "eth9", "--address", "192.0.2.1", "--cm", "192.0.2.2:0"], "'0' is not a port"),
        (["ping", "eth9", "--address", "192.0.2.1", "--cm", "node7"], "'node7' is not an IP address"),
        (["send", "eth9", "--address", "192.0.2.1", "--cm", "192.0.2.2", "--exchange", "h"], "leave two of them out"),
        (["listen", "nosuch0", "--address", "192.0.2.1"], "no network device 'nosuch0'"),
        (["listen", "nosuch0", "--address", "192.0.2"], "is not an IP address"),
        (["listen", "nosuch0", "--address", "192.0.2.1", "--mac", "zz"], "'zz' is not a MAC address"),
        (["listen", "nosuch0", "--address", "192.0.2.1", "--mac", "01:00:5e:00:00:01"], "MAC address of a group"),
        (["send", "nosuch0", "--address", "192.0.2.1", "--ack-timeout", "0"], "--ack-timeout"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(words: list[str], said: str, capsys) -> None:
    assert main(["roce", *words]) in (2, 3)
    assert said in capsys.readouterr().err
