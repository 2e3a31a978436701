"""The lookup held against the guest's kernel: every slot of a thousand random sockets, in two namespaces."""

from __future__ import annotations

import ipaddress
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from guest_ends import ip
from lookup_situations import load_bench
from lookup_sockets import bound

from hwrx.host import netns
from hwrx.lookup import answer, winner
from hwrx.lookup.crowd import Crowded
from hwrx.lookup.table import Kind, Tables

SPACE = "hwrx-lookup"
SITUATIONS = 60
SOCKETS = int(os.environ.get("HWRX_LOOKUP_SOCKETS", "250"))  # of each namespace


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    ip("netns", "add", SPACE)
    try:
        ip("-n", SPACE, "link", "set", "lo", "up")
        yield SPACE
    finally:
        ip("netns", "delete", SPACE)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this namespace", "another"])
def test_every_slot_agrees_with_the_kernels(space: str, elsewhere: bool) -> None:
    name = space if elsewhere else None
    with netns.entered_namespace(name):
        made = bound(SOCKETS, 20260131 + elsewhere)
        sockets = made.__enter__()
    try:
        for protocol in ("udp", "tcp"):
            found = answer.audit_tables(protocol, name)
            kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
            assert found.sockets >= sum(each.type == kind for each in sockets)
            assert found.differ == []
            assert found.uncompared == 0
            assert found.agree == found.sockets
    finally:
        made.__exit__(None, None, None)


def test_a_chain_read_from_its_head_holds_the_socket_where_it_was_found() -> None:
    with bound(100, 7), Tables() as tables:
        for entry in tables.sockets("udp")[:40]:
            for which, kind in enumerate((Kind.UDP_PORT, Kind.UDP_ADDRESS)):
                chain = tables.chain(kind, int(entry["slot"][which]))
                assert chain.steady
                assert int(chain.entries[int(entry["before"][which])]["sk"]) == int(entry["sk"])


def test_the_member_of_a_group_that_was_named_gets_the_datagram() -> None:
    group = []
    for _ in range(5):
        member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        member.bind(("127.0.0.1", group[0].getsockname()[1] if group else 0))
        group.append(member)
    address = group[0].getsockname()
    callers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(12)]
    try:
        chosen, expected = set(), []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            first.sendto(b"draw the secret", address)
        select.select(group, [], [], 10)[0][0].recv(64)
        for caller in callers:
            caller.bind(("127.0.0.1", 0))
            caller.sendto(b"x", address)
            ready = select.select(group, [], [], 10)[0]
            assert len(ready) == 1
            ready[0].recv(1)
            source, port = caller.getsockname()
            packet = winner.Packet(ipaddress.ip_address("127.0.0.1"), address[1], ipaddress.ip_address(source), port)
            index = group.index(ready[0])
            chosen.add(index)
            expected.append((packet, f"member {index},"))
        with Tables() as tables:
            for packet, words in expected:
                assert words in answer.ask_in(tables, "udp", packet).gets_it
        assert len(chosen) > 1
    finally:
        for each in (*group, *callers):
            each.close()


def test_who_is_predicted_gets_it_in_random_situations() -> None:
    cpus = os.sched_getaffinity(0)
    try:
        tally = load_bench().run_situations(range(SITUATIONS), 20261127)
    finally:
        os.sched_setaffinity(0, cpus)
    assert tally.disagree == []
    assert tally.agree == SITUATIONS
    # the secrets are known to a kernel with all its symbols, so that only groups with programs are left open
    assert tally.undecided <= SITUATIONS // 20


def test_the_command_names_process_and_verdict() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as caller:
            caller.connect(("::1", port))
            words = ["lookup", "--tcp", f"[::1]:{port}", "--from", f"[::1]:{caller.getsockname()[1]}", "--json"]
            done = subprocess.run([sys.executable, "-m", "hwrx", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "agrees"
    assert "the connection itself" in found["gets_it"]
    states = {each["state"]: each for each in found["sockets"]}
    assert states["ESTABLISHED"]["slots"]["TCP_ESTABLISHED"][0] == states["ESTABLISHED"]["slots"]["TCP_ESTABLISHED"][1]
    assert any(owner["name"].startswith("python") for owner in states["LISTEN"]["owners"])


def test_nobody_is_said_in_words() -> None:
    found = answer.ask_tables("udp", winner.Packet(ipaddress.ip_address("127.0.0.1"), 9))
    assert found.verdict == "nobody"
    assert "NO_SOCKET" in found.gets_it


def test_a_crowd_stands_before_the_socket_on_its_chain() -> None:
    with Crowded(socket.AF_INET, socket.SOCK_DGRAM) as one, Tables() as tables:
        one.bind(("127.0.0.1", 0))
        one.gather(700, "chain")
        (entry,) = tables.sockets("udp", one.getsockname()[1])
        assert int(entry["before"][1]) >= 700
    with Crowded(socket.AF_INET, socket.SOCK_DGRAM) as one, Tables() as tables:
        one.bind(("127.0.0.1", 0))
        one.gather(700, "spread")
        (entry,) = tables.sockets("udp", one.getsockname()[1])
        assert int(entry["before"][1]) < 10
