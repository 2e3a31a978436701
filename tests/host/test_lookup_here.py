"""`hwrx lookup` held against this machine's own kernel: predictions against deliveries, and `--prove`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lookup_situations import load_bench

from hwrx.commands.lookup import parse_endpoint
from hwrx.host import netns
from hwrx.lookup import answer, prove, winner
from hwrx.lookup.hashes import Address
from hwrx.lookup.table import TCP_LISTEN, Tables
from hwrx.probes import cgroups

SPACE = f"hwrx-look-{os.getpid()}"
HWRX = [sys.executable, "-m", "hwrx", "lookup"]
V4, V6, DATAGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    """A network namespace with a wire to nowhere, and addresses of both families on it."""
    ip("netns", "add", SPACE)
    try:
        ip("-n", SPACE, "link", "set", "lo", "up")
        ip("-n", SPACE, "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        for address in ("10.9.0.1/24", "fd00:9::1/64", "fe80::9/64"):
            extra = ["nodad"] if ":" in address else ["broadcast", "+"]
            ip("-n", SPACE, "address", "add", address, "dev", "d0", *extra)
        for device in ("d0", "d1"):
            ip("-n", SPACE, "link", "set", device, "up")
        yield SPACE
    finally:
        ip("netns", "delete", SPACE)


def bind_in(
    space: str, family: int, address: str, port: int = 0, *, kind: int = DATAGRAM, reuseport: bool = False
) -> socket.socket:
    with netns.entered_namespace(space):
        made = socket.socket(family, kind)
        if reuseport:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        scope = socket.if_nametoindex("d0") if address.startswith("fe80") else 0
        made.bind((address, port, 0, scope) if family == V6 else (address, port))
    if kind == socket.SOCK_STREAM:
        made.listen(4)
    return made


def asked(target: str, source: str = "", device: int = 0) -> winner.Packet:
    address, port = parse_endpoint(target)
    sender: tuple[Address | None, int] = parse_endpoint(source) if source else (None, 0)
    return winner.Packet(address, port, *sender, device)


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_who_is_predicted_gets_it_in_random_situations() -> None:
    cpus = os.sched_getaffinity(0)
    try:
        tally = load_bench().run_situations(range(200), 20261127)
    finally:
        os.sched_setaffinity(0, cpus)
    assert tally.disagree == []
    assert tally.agree == 200
    assert tally.undecided < 40
    assert {"udp multicast", "udp broadcast", "udp link", "tcp time-wait", "tcp request"} <= tally.kinds.keys()


@pytest.mark.parametrize(
    ("family", "address", "kind", "target"),
    [
        (V4, "10.9.0.1", DATAGRAM, "10.9.0.1"),
        (V6, "::", DATAGRAM, "10.9.0.1"),
        (V6, "::", socket.SOCK_STREAM, "[::ffff:10.9.0.1]"),
        (V6, "fd00:9::1", socket.SOCK_STREAM, "[fd00:9::1]"),
        (V6, "fe80::9", DATAGRAM, "[fe80::9%d0]"),
        (V4, "0.0.0.0", DATAGRAM, "10.9.0.255"),
        (V4, "0.0.0.0", DATAGRAM, "224.0.0.1"),
        (V6, "::", DATAGRAM, "[ff02::1]"),
    ],
)
def test_what_is_answered_is_proved(space: str, family: int, address: str, kind: int, target: str) -> None:
    with bind_in(space, family, address, kind=kind) as made:
        protocol = ["--tcp"] if kind == socket.SOCK_STREAM else []
        device = ["--device", "d0"] if target in ("10.9.0.255", "224.0.0.1", "[ff02::1]") else []
        words = [*HWRX, *protocol, f"{target}:{made.getsockname()[1]}", *device, "--netns", space, "--json"]
        told = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
        assert [each["inode"] for each in told["receivers"]] == [inode(made)] and told["decided"]
        done = subprocess.run([*words, "--prove"], capture_output=True, text=True, timeout=60)
        proof = json.loads(done.stdout)
        assert (done.returncode, proof["verdict"], proof["reason"]) == (0, "proved", "")
        assert [each["inode"] for each in proof["got"]] == [inode(made)]
        # the packet is there, for the program to read
        made.settimeout(5)
        if kind == DATAGRAM:
            assert made.recv(100) == b"hwrx lookup --prove\n"
        else:
            made.accept()[0].close()


def test_nobody_is_proved_too_and_a_wrong_prediction_is_refuted(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove.prove_packet("udp", asked("10.9.0.1:4444"), space).verdict == "proved"
    with bind_in(space, V4, "10.9.0.1") as made:
        packet = asked(f"10.9.0.1:{made.getsockname()[1]}")
        # no kernel gives a wrong answer when asked, so the prediction is put wrong
        monkeypatch.setattr(winner, "predict_outcome", lambda view, packet: winner.NOBODY)
        proof = prove.prove_packet("udp", packet, space)
        assert proof.verdict == "refuted" and [each.inode for each in proof.got] == [inode(made)]


def test_a_sender_that_is_in_use_or_of_another_machine_is_sent_raw_in_a_namespace_of_its_own(space: str) -> None:
    group = [bind_in(space, V4, "10.9.0.1", reuseport=True)]
    group += [bind_in(space, V4, "10.9.0.1", group[0].getsockname()[1], reuseport=True) for _ in range(3)]
    port = group[0].getsockname()[1]
    client = bind_in(space, V4, "10.9.0.1")
    group[1].connect(client.getsockname())  # one member is that client's alone
    try:
        mine = prove.prove_packet("udp", asked(f"10.9.0.1:{port}", f"10.9.0.1:{client.getsockname()[1]}"), space)
        assert (mine.verdict, [each.inode for each in mine.got]) == ("proved", [inode(group[1])])
        stranger = prove.prove_packet("udp", asked(f"10.9.0.1:{port}", "198.51.100.7:4000"), space)
        assert stranger.verdict == "proved" and stranger.got[0].inode != inode(group[1])
    finally:
        for each in (*group, client):
            each.close()


@pytest.mark.parametrize(
    ("family", "target", "stranger"),
    [(V4, "10.9.0.1", "198.51.100.7:4000"), (V6, "fd00:9::1", "[2001:db8::7]:4000")],
    ids=["IPv4", "IPv6"],
)
@pytest.mark.parametrize("routed", [False, True], ids=["without a way back", "with a way back"])
def test_a_connection_from_another_machine_is_asked_for_and_taken_back(
    space: str, family: int, target: str, stranger: str, routed: bool
) -> None:
    stream = socket.SOCK_STREAM
    there = f"[{target}]" if family == V6 else target
    way = ["-6" if family == V6 else "-4", "-n", space, "route"]
    if routed:
        ip(*way, "add", "default", "dev", "d0")
    group = [bind_in(space, family, target, kind=stream, reuseport=True)]
    port = group[0].getsockname()[1]
    group += [bind_in(space, family, target, port, kind=stream, reuseport=True) for _ in range(3)]
    try:
        proof = prove.prove_packet("tcp", asked(f"{there}:{port}", stranger), space)
        assert (proof.verdict, proof.reason) == ("proved", "")
        assert {each.inode for each in proof.got} < {inode(each) for each in group} and len(proof.got) == 1
        with netns.entered_namespace(space), Tables() as tables:
            assert {int(each["state"]) for each in tables.sockets("tcp", port)} == {TCP_LISTEN}, "no request is left"
        nobody = prove.prove_packet("tcp", asked(f"{there}:4444", stranger), space)
        assert (nobody.verdict, nobody.got) == ("proved", [])
    finally:
        for each in group:
            each.close()
        if routed:
            ip(*way, "delete", "default", "dev", "d0")


def test_what_cannot_be_proved_says_why(space: str) -> None:
    here = prove.prove_packet("udp", asked("127.0.0.1:4444", "198.51.100.7:4000"))
    assert here.verdict == "cannot be proved" and "no address of this machine" in here.reason
    away = prove.prove_packet("udp", asked("198.51.100.7:4444"), space)
    assert away.verdict == "cannot be proved" and "no address of this network namespace" in away.reason
    with netns.entered_namespace(space):
        other = socket.if_nametoindex("d1")
    elsewhere = prove.prove_packet("udp", asked("10.9.0.1:4444", device=other), space)
    assert "it would come in by d1" in elsewhere.reason
    with (
        bind_in(space, V4, "10.9.0.1", kind=socket.SOCK_STREAM) as listener,
        netns.entered_namespace(space),
        socket.create_connection(listener.getsockname()) as client,
    ):
        ends = asked(f"10.9.0.1:{listener.getsockname()[1]}", f"10.9.0.1:{client.getsockname()[1]}")
        live = prove.prove_packet("tcp", ends, space)
    assert live.verdict == "cannot be proved" and live.reason


def test_the_slots_of_connected_datagram_sockets_are_read(space: str) -> None:
    with bind_in(space, V4, "10.9.0.1") as near, bind_in(space, V4, "10.9.0.1") as far:
        near.connect(far.getsockname())
        packet = asked(f"10.9.0.1:{near.getsockname()[1]}", f"10.9.0.1:{far.getsockname()[1]}")
        found = answer.ask_tables("udp", packet, space)
        stranger = answer.ask_tables("udp", asked(f"10.9.0.1:{near.getsockname()[1]}", "10.9.0.1:1"), space)
        assert [each.inode for each in found.receivers] == [inode(near)]
    assert found.verdict == "agrees" and stranger.gets_it.startswith("nobody")


def test_a_hierarchy_that_is_mounted_nowhere_is_opened_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = len(Path("/proc/self/mounts").read_bytes().splitlines())
    monkeypatch.setattr(cgroups.Path, "read_text", lambda self, **options: "proc /proc proc rw 0 0\n")
    with cgroups.opened_root() as descriptor:
        assert Path(f"/proc/self/fd/{descriptor}/cgroup.procs").exists()
    monkeypatch.undo()
    assert len(Path("/proc/self/mounts").read_bytes().splitlines()) == mounts
