"""An endpoint of RoCEv2 on a NIC that hwrx drives, and rxe on the kernel's NIC at the other end of the wire."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator

import pytest
from rxe_peer import LIMIT, TIMEOUT, RxePeer

from hwrx import roce
from hwrx.cli import main
from hwrx.nic import open_nic, pci
from hwrx.roce.parameters import gid_of
from hwrx.wires import guest_nics, topology

OURS, THEIRS = guest_nics.NIC_ADDRESSES["server"], guest_nics.NIC_ADDRESSES["client"]
ROOM = 1 << 16
SUCCESS = "IBV_WC_SUCCESS"


@pytest.fixture
def ends() -> Iterator[tuple[roce.Endpoint, RxePeer]]:
    with topology.build_topology("nic"):
        peer = RxePeer(guest_nics.NIC_DEVICES["client"], THEIRS, size=ROOM)
        try:
            nic = open_nic(guest_nics.NIC_HARDWARE["server"], own=(OURS,), interrupt="msix")
            with roce.endpoint(nic, OURS) as qp:
                own = qp.parameters
                peer.connect(ipaddress.ip_address(own.gid).exploded, own.qpn, expects=own.psn, begins=9)
                there = roce.Parameters(gid=gid_of(THEIRS), qpn=peer.number, psn=9)
                qp.connect(there, timeout=TIMEOUT, patience=LIMIT)
                yield qp, peer
        finally:
            peer.close()


def test_the_command_drives_a_nic_and_gives_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    with topology.build_topology("nic"):
        mac = guest_nics.NIC_HARDWARE["server"]
        address = next(nic.address for nic in pci.list_nics() if nic.mac == mac)
        peer = RxePeer(guest_nics.NIC_DEVICES["client"], THEIRS, size=ROOM)
        try:
            peer.connect(ipaddress.ip_address(gid_of(OURS)).exploded, 0x4242, expects=5, begins=9)
            line = roce.Parameters(
                gid=gid_of(THEIRS), qpn=peer.number, psn=9, key=peer.key, address=peer.address, size=ROOM
            )
            words = ["--address", OURS, "--qpn", "0x4242", "--psn", "5", "--peer", line.to_line()]
            words += ["--ack-timeout", str(TIMEOUT), "--size", "3000", "-n", "20", "--verb", "read"]
            assert main(["roce", "send", address, *words]) == 3  # it carries an address
            assert main(["roce", "send", address, *words, "--force"]) == 0
        finally:
            peer.close()
        assert next(nic.driver for nic in pci.list_nics() if nic.mac == mac) == "e1000e"
    said = capsys.readouterr()
    assert "20 × read of 3000 bytes" in said.out
    assert "--force" in said.err


def test_an_endpoint_on_our_own_driver_speaks_with_rxe(ends: tuple[roce.Endpoint, RxePeer]) -> None:
    qp, peer = ends

    def completion(queue: str):
        deadline = time.monotonic() + LIMIT
        while (found := peer.poll(queue)) is None:
            assert time.monotonic() < deadline, qp.queue_pair.counters
            qp.drive(0.001)
        return found

    body = bytes(range(256)) * 80
    memory = bytearray(ROOM)
    memory[: len(body)] = body
    region = qp.register(memory)
    peer.post_receive(0, ROOM)
    qp.post_send("send", region, 0, len(body))
    assert completion("receive").byte_len == len(body)
    assert peer.read(len(body), 0) == body
    assert qp.check_completion(qp.next_send(LIMIT)).status == SUCCESS
    qp.post_receive(region, 30_000, 30_000)
    peer.post(peer.e.IBV_WR_SEND, 0, len(body))
    assert qp.check_completion(qp.next_receive(LIMIT)).size == len(body)
    assert memory[30_000 : 30_000 + len(body)] == body
    assert completion("send").status == peer.e.IBV_WC_SUCCESS
