"""A network namespace in which IPv6 is switched off: what goes over IPv4 works, what asks for IPv6 is told why."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwrx.errors import UsageError
from hwrx.host import ipv6
from hwrx.host.netns import entered_namespace
from hwrx.lookup.answer import ask_tables
from hwrx.lookup.prove import prove_packet
from hwrx.lookup.winner import Packet
from hwrx.runs import addresses
from hwrx.wires import topology

SPACE = "hwrx-test-no6"


@pytest.fixture
def space(needs: Callable[..., None]) -> Iterator[str]:
    needs("root", "namespaces")
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        words = ["sysctl", "-qw", *(f"net.ipv6.conf.{each}.disable_ipv6=1" for each in ("all", "default"))]
        subprocess.run(["ip", "netns", "exec", SPACE, *words], check=True)
        subprocess.run(["ip", "-n", SPACE, "link", "set", "lo", "up"], check=True)
        yield SPACE
    finally:
        subprocess.run(["ip", "netns", "delete", SPACE], check=True)


def test_a_wire_comes_up_over_ipv4(space: str) -> None:
    with entered_namespace(space):
        subprocess.run(["ip", *topology._veth(1500)], check=True)
        topology._configure({})
        shown = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    assert all(address in shown for address in topology.ADDRESSES.values())
    assert "inet6" not in shown


def test_a_socket_that_listens_to_all_addresses_gets_no_ipv6_packet(space: str) -> None:
    code = (
        "import socket, sys; one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); one.bind(('::', 5302))\n"
        "print('bound', flush=True); sys.stdin.read()"
    )
    words = ["ip", "netns", "exec", space, sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        try:
            with entered_namespace(space):
                for text, device in (("::1", 0), ("fe80::1", 1), ("2001:2::7", 0)):
                    packet = Packet(ipaddress.ip_address(text), 5302, device=device)
                    found = ask_tables("udp", packet)
                    assert found.gets_it.startswith("nobody: IPv6 is switched off on "), text
                    assert (found.receivers, found.verdict, found.decided) == ([], "nobody", True)
                    assert any("dropped before any socket is looked for" in note for note in found.notes)
                    proof = prove_packet("udp", packet)
                    assert proof.reason.startswith("IPv6 is switched off on ")
                # over IPv4 it does get them
                found = ask_tables("udp", Packet(ipaddress.ip_address("127.0.0.1"), 5302))
                assert (len(found.receivers), found.verdict) == (1, "agrees")
        finally:
            holder.stdin.close()  # type: ignore[union-attr]
            holder.wait()


def test_an_ipv6_peer_is_refused_with_the_reason(space: str) -> None:
    with entered_namespace(space), pytest.raises(UsageError, match="IPv6 is switched off on every") as caught:
        addresses.own_address("2001:db8::7")
    assert caught.value.remedy == "an IPv4 address, or switch IPv6 on"


def test_a_kernel_without_ipv6_is_told_from_one_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipv6, "SYSCTLS", tmp_path / "ipv6")
    assert "ipv6.disable=1" in ipv6.why_no_ipv6()
    for name, value in {"all": "1", "default": "1", "lo": "1", "eth0": "0"}.items():
        (tmp_path / "ipv6/conf" / name).mkdir(parents=True)
        (tmp_path / "ipv6/conf" / name / "disable_ipv6").write_text(f"{value}\n")
    # `all` is what was last written to it: eth0 has been switched on since
    assert ipv6.why_no_ipv6() == ipv6.why_no_ipv6("eth0") == ""
    assert "on lo" in ipv6.why_no_ipv6("lo")
