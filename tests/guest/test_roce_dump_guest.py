"""What `hwrx roce dump` says of packets that the kernel's rxe has made: each opcode, number and ICRC."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_ends import Places
from rxe_peer import RxePeer

WHOLE = 1024  # the path's MTU
CLIENT_PSN, SERVER_PSN = 0xFFFFFD, 100  # the client's numbers pass 2^24


@pytest.fixture
def joined(pair: Places, needs: Callable[..., None]) -> Iterator[tuple[RxePeer, RxePeer]]:
    needs("pyverbs")
    with contextlib.ExitStack() as stack:
        ends = [RxePeer(str(pair[role].verbs), str(pair[role].address)) for role in ("client", "server")]
        for end in ends:
            stack.callback(end.close)
        client, server = ends
        client.connect(server.gid, server.number, expects=SERVER_PSN, begins=CLIENT_PSN)
        server.connect(client.gid, client.number, expects=CLIENT_PSN, begins=SERVER_PSN)
        yield client, server


@contextlib.contextmanager
def dumping(netdev: str, tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Listen beside what is done in the block; then, every packet."""
    out = tmp_path / "dumped"
    with out.open("wb") as file, (tmp_path / "errors").open("wb") as errors:
        command = [sys.executable, "-m", "hwrx", "roce", "dump", "--device", netdev, "--json", "--timeout", "5"]
        child = subprocess.Popen(command, stdout=file, stderr=errors)
        try:
            deadline = time.monotonic() + 60
            while not listens(child.pid):
                assert time.monotonic() < deadline and child.poll() is None, (tmp_path / "errors").read_text()
                time.sleep(0.1)
            yield lambda: [json.loads(line) for line in out.read_text().splitlines()]
            assert child.wait(60) == 0, (tmp_path / "errors").read_text()
        finally:
            child.kill()
            child.wait()


def listens(pid: int) -> bool:
    """Whether a process has a packet socket that is bound."""
    inodes = {
        line.split()[8] for line in Path("/proc/net/packet").read_text().splitlines()[1:] if line.split()[4] != "0"
    }
    with contextlib.suppress(OSError):
        return any(
            str(link.readlink()).removeprefix("socket:[").removesuffix("]") in inodes
            for link in Path(f"/proc/{pid}/fd").iterdir()
        )
    return False


def test_every_packet_of_rxe_is_decoded_and_its_icrc_is_right(
    joined: tuple[RxePeer, RxePeer], pair: Places, tmp_path: Path
) -> None:
    client, server = joined
    e = client.e
    addresses = [str(pair[role].address) for role in ("client", "server")]
    there = {"key": server.key, "address": server.address + 4096}
    atomic = {"key": server.key, "address": server.address}
    server.write((5).to_bytes(8, "little"), 0)
    with dumping(str(pair["client"].netdev), tmp_path) as dumped:
        for size in (64, 0, 3000):
            server.post_receive(8192, 4096)
            client.post(e.IBV_WR_SEND, 0, size)
            assert client.sent() == e.IBV_WC_SUCCESS
        server.post_receive(8192, 4096)
        client.post(e.IBV_WR_SEND_WITH_IMM, 0, 7, immediate=0x01020304)
        assert client.sent() == e.IBV_WC_SUCCESS
        client.post(e.IBV_WR_RDMA_WRITE, 0, 2049, **there)
        assert client.sent() == e.IBV_WC_SUCCESS
        server.post_receive(8192, 4096)
        client.post(e.IBV_WR_RDMA_WRITE_WITH_IMM, 0, 10, immediate=0xA0B0C0D0, **there)
        assert client.sent() == e.IBV_WC_SUCCESS
        for size in (2500, 3):
            client.post(e.IBV_WR_RDMA_READ, 0, size, **there)
            assert client.sent() == e.IBV_WC_SUCCESS
        client.post(e.IBV_WR_ATOMIC_FETCH_AND_ADD, 0, 8, compare=3, **atomic)
        assert client.sent() == e.IBV_WC_SUCCESS
        client.post(e.IBV_WR_ATOMIC_CMP_AND_SWP, 0, 8, compare=8, swap=9, **atomic)
        assert client.sent() == e.IBV_WC_SUCCESS
        client.post(e.IBV_WR_RDMA_WRITE, 0, 8, key=server.key ^ 1, address=server.address)
        assert client.sent() == e.IBV_WC_REM_ACCESS_ERR
    found = dumped()
    assert [each for each in found if each["verdict"] != "roce" or not each["icrc"]] == []
    asked = [each for each in found if each["source"] == addresses[0]]
    answered = [each for each in found if each["source"] == addresses[1]]
    assert {each["qpn"] for each in asked} == {server.number}
    assert {each["qpn"] for each in answered} == {client.number}

    def short(each: dict[str, Any]) -> tuple[object, ...]:
        return each["opcode"].removeprefix("RC_"), each["payload"]

    assert [short(each) for each in asked] == [
        ("SEND_ONLY", 64), ("SEND_ONLY", 0), ("SEND_FIRST", WHOLE), ("SEND_MIDDLE", WHOLE), ("SEND_LAST", 3000 - 2048),
        ("SEND_ONLY_WITH_IMMEDIATE", 7),
        ("RDMA_WRITE_FIRST", WHOLE), ("RDMA_WRITE_MIDDLE", WHOLE), ("RDMA_WRITE_LAST", 1),
        ("RDMA_WRITE_ONLY_WITH_IMMEDIATE", 10),
        ("RDMA_READ_REQUEST", 0), ("RDMA_READ_REQUEST", 0), ("FETCH_ADD", 0), ("COMPARE_SWAP", 0),
        ("RDMA_WRITE_ONLY", 8),
    ]  # fmt: skip
    # a READ takes as many numbers as its response has packets
    offsets = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16]
    assert [each["psn"] for each in asked] == [(CLIENT_PSN + offset) % (1 << 24) for offset in offsets]
    assert [each["immediate"] for each in asked if "immediate" in each] == [0x01020304, 0xA0B0C0D0]
    lengths = [(each["address"] - server.address, each["length"]) for each in asked if "length" in each]
    assert lengths == [(4096, 2049), (4096, 10), (4096, 2500), (4096, 3), (0, 8)]
    assert [each["key"] == server.key for each in asked if "key" in each] == [True] * 6 + [False]
    assert [(each["swap"], each["compare"]) for each in asked if "swap" in each][1] == (9, 8)
    assert asked[12]["swap"] == 3
    responses = [short(each) for each in answered if "RESPONSE" in each["opcode"]]
    assert responses == [
        ("RDMA_READ_RESPONSE_FIRST", WHOLE), ("RDMA_READ_RESPONSE_MIDDLE", WHOLE),
        ("RDMA_READ_RESPONSE_LAST", 2500 - 2048), ("RDMA_READ_RESPONSE_ONLY", 3),
    ]  # fmt: skip
    assert [each["original"] for each in answered if "original" in each] == [5, 8]
    assert answered[-1]["syndrome_name"] == "NAK, remote access error"
    assert {each["syndrome_name"] for each in answered[:-1] if "syndrome_name" in each} == {"ACK"}


def test_datagrams_of_rxe_are_decoded(pair: Places, needs: Callable[..., None], tmp_path: Path) -> None:
    needs("pyverbs")
    with contextlib.ExitStack() as stack:
        ends = [RxePeer(str(pair[role].verbs), str(pair[role].address), datagram=True) for role in ("client", "server")]
        for end in ends:
            stack.callback(end.close)
        client, server = ends
        client.connect(server.gid, server.number, begins=9)
        server.connect(client.gid, client.number)
        with dumping(str(pair["server"].netdev), tmp_path) as dumped:
            for immediate in (0, 77):
                server.post_receive(0, 4096)
                opcode = client.e.IBV_WR_SEND_WITH_IMM if immediate else client.e.IBV_WR_SEND
                client.post(opcode, 0, 333, number=server.number, immediate=immediate)
                assert client.sent() == client.e.IBV_WC_SUCCESS
                server.completion("receive")
        first, second = dumped()
    assert first["opcode"] == "UD_SEND_ONLY"
    assert second["opcode"] == "UD_SEND_ONLY_WITH_IMMEDIATE"
    assert second["immediate"] == 77
    for each in (first, second):
        assert (each["verdict"], each["icrc"], each["payload"]) == ("roce", True, 333)
        assert (each["qpn"], each["source_qpn"], each["qkey"]) == (server.number, client.number, 0x11111111)
