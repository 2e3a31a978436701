"""The traffic class of what sockets send: what stands in the packets on the wire, and what is told or refused."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from two_sides import clean, connected, endpoint

from hwrx import paths
from hwrx.control.messages import Setting
from hwrx.control.places import Place
from hwrx.errors import UsageError

ETH_P_ALL = 3


def classes_sent(sniffer: socket.socket, ports: set[int]) -> dict[int, set[int]]:
    """The traffic classes of the IPv4 and IPv6 packets that came, by the port that sent them."""
    found: dict[int, set[int]] = {}
    while True:
        try:
            frame = sniffer.recv(2048)[14:]
        except BlockingIOError:
            return found
        if frame[0] >> 4 == 4:
            kind, ports_at = frame[1], 4 * (frame[0] & 15)
        else:
            kind, ports_at = (frame[0] << 4 | frame[1] >> 4) & 0xFF, 40
        source = int.from_bytes(frame[ports_at : ports_at + 2], "big")
        if source in ports:
            found.setdefault(source, set()).add(kind)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("path", "asked"), [("udp", 0x2E), ("tcp", 0xB8), ("udp", 0)])
def test_every_packet_has_the_class_in_both_directions(
    path: str, asked: int, address: str, needs: Callable[..., None]
) -> None:
    needs("root")
    setting = Setting(path=path, traffic_class=asked, messages=20, warmup=0, cooldown=0)
    place = Place(address=address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sniffer.bind(("lo", 0))
        sniffer.setblocking(False)
        with endpoint("client", setting, place) as client, endpoint("server", setting, place) as server:
            ours, theirs = client.describe(), server.describe()
            assert clean(connected(client, server, setting)[1].counts)
            told = [end.chosen().get("traffic_class") for end in (client, server)]
        found = classes_sent(sniffer, {ours["port"], theirs["port"]})
    assert told == ([asked, asked] if asked else [None, None])
    assert found == {ours["port"]: {asked}, theirs["port"]: {asked}}


def test_many_connections_have_it_too() -> None:
    setting = Setting(path="udp", traffic_class=0xB8, connections=3)
    with endpoint("client", setting) as client:
        assert client.chosen()["traffic_class"] == 0xB8


@pytest.mark.parametrize("path", ["tcp", "mptcp", "tcp-ktls", "tcp-uring"])
def test_bits_that_are_tcps_own_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="keeps the two lowest bits") as caught:
        paths.check_setting(Setting(path=path, traffic_class=0xB9))
    assert "--traffic-class 184" in caught.value.remedy


def test_a_path_that_builds_its_own_headers_says_that_it_does_not_read_it() -> None:
    with pytest.raises(UsageError, match="packet-ring does not read traffic_class") as caught:
        paths.check_setting(Setting(path="packet-ring", traffic_class=8))
    assert "udp" in caught.value.remedy
