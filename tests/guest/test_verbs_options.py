"""What a user may choose of a queue pair: what the device says that it has, and what packets on the wire show of it."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from guest_ends import ROLES, Ends, Places, Wire, resources

from hwrx.control.messages import Role, Setting
from hwrx.errors import MachineError, PathError, UsageError
from hwrx.host import tools

ROCE_PORT = 4791
RETRIES = "hw_completer_retry_err"  # of rxe: times that its timer struck
TRAFFIC_CLASS = 26 << 2 | 1  # DSCP 26, ECT(1)


def setting(path: str = "rdma-send", **more: object) -> Setting:
    return Setting(
        **{"path": path, "size": 64, "messages": 20, "warmup": 2, "cooldown": 1, "limit": 20.0, **more}  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def classes_seen(netdev: str) -> Iterator[Counter[int]]:
    """Count the RoCE packets that pass a netdev by the second byte of their IP header, DSCP and ECN."""
    seen: Counter[int] = Counter()
    ended, told = socket.socketpair()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as tap, ended, told:
        tap.bind((netdev, 0x0003))

        def listen() -> None:
            while told not in (ready := select.select([tap, told], [], [])[0]) or tap in ready:
                frame = tap.recv(128)
                if struct.unpack_from(">H", frame, 12)[0] == 0x0800 and frame[23] == socket.IPPROTO_UDP:
                    ports = struct.unpack_from(">HH", frame, 14 + 4 * (frame[14] & 15))
                    seen[frame[15]] += ports[1] == ROCE_PORT

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield seen
        finally:
            ended.send(b"x")
            listener.join()


@pytest.mark.parametrize("path", ["rdma-send", "rdma-read", "rdma-ud"])
def test_the_traffic_class_is_that_of_each_packet_on_the_wire(ends: Ends, path: str) -> None:
    netdev = ends.places["client"].netdev
    assert netdev is not None
    with classes_seen(netdev) as seen:
        outcome = ends.run(setting(path, traffic_class=TRAFFIC_CLASS))
    assert outcome.done["client"].ended == "complete"
    assert set(seen) == {TRAFFIC_CLASS}
    assert seen[TRAFFIC_CLASS] >= 2 * 23
    with classes_seen(netdev) as seen:
        ends.run(setting(path))
    assert set(seen) == {0}


def test_the_queue_pair_has_what_was_asked_for(ends: Ends) -> None:
    asked: dict[str, Any] = {"ack_timeout": 18, "retry_count": 3, "rnr_retry": 5, "traffic_class": 32}
    for role, done in ends.run(setting(**asked)).done.items():
        assert {name: done.chosen[name] for name in asked} == asked, role
        assert done.chosen["pkey_index"] == 0
    usual = ends.run(setting()).done["client"].chosen
    assert [usual[name] for name in ("ack_timeout", "retry_count", "rnr_retry")] == [16, 6, 7]


def test_what_the_device_does_not_keep_is_an_error(ends: Ends) -> None:
    """rxe has no use for a service level, and none of its queue pairs has one."""
    with pytest.raises(MachineError, match="was given service_level 4 and has 0: this device does not keep it"):
        ends.run(setting(service_level=4))


@pytest.mark.parametrize("connections", [1, 3])
def test_datagrams_have_no_service_level_on_rxe_and_tell_what_their_packets_have(ends: Ends, connections: int) -> None:
    with pytest.raises(MachineError, match="was given service_level 4: rxe does not keep it"):
        ends.run(setting("rdma-ud", service_level=4, connections=connections))
    for done in ends.run(setting("rdma-ud", traffic_class=32, connections=connections)).done.values():
        assert (done.chosen["traffic_class"], done.chosen["service_level"]) == (32, 0)


@pytest.mark.parametrize("retries", [1, 3])
def test_a_lost_packet_is_sent_again_as_often_as_was_asked_for(ends: Ends, retries: int) -> None:
    done = ends.run(setting(netem="loss 100%", ack_timeout=14, retry_count=retries)).done["client"]
    assert (done.ended, "IBV_WC_RETRY_EXC_ERR" in done.error) == ("error", True)
    assert done.tally[RETRIES] == retries


def test_a_gid_is_chosen_by_its_network(ends: Ends, spare: Wire) -> None:
    chosen = ends.run(setting(gid="198.18.78.0/24"), places=spare.places).prepared["server"].chosen
    assert chosen["gid"] == "198.18.78.2"
    try:
        assert ends.prepare(setting(gid="fe80::/10"))["client"].chosen["gid"].startswith("fe80::")
    finally:
        ends.release()
    with pytest.raises(UsageError, match=r"no GID of type RoCE v2 that is 192\.0\.2\.0/24.*198\.18\.77\.[12]"):
        ends.run(setting(gid="192.0.2.0/24"))


def test_a_partition_key_that_is_not_in_the_table_is_refused(ends: Ends) -> None:
    with pytest.raises(UsageError, match=r"rxe[01] port 1 has 1 partition keys, entry 5 is asked for") as caught:
        ends.run(setting(pkey_index=5))
    assert "--pkey-index 0" in caught.value.remedy


@pytest.fixture
def managed(pair: Places) -> Iterator[Ends]:
    """Agents of their own: librdmacm keeps the devices open as long as its process lives."""
    tools.run_tool("modprobe", "-a", "rdma_ucm")
    before = resources()
    ends = Ends(pair)
    try:
        yield ends
    finally:
        ends.close()
    tools.wait_until(lambda: resources() == before, "the devices to hold what they held before")


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-write-imm", "rdma-read"])
def test_rdma_cm_connects(managed: Ends, path: str) -> None:
    for _ in range(2):  # and again in the same agents
        outcome = managed.run(
            setting(path, connect="cm", check_every=1, traffic_class=TRAFFIC_CLASS, retry_count=3, ack_timeout=15)
        )
        client, server = (outcome.done[role] for role in ROLES)
        assert (client.ended, client.error, server.error) == ("complete", "", "")
        assert client.tally["lost"] == client.tally["corrupt"] == 0
        for done in (client, server):
            asked = ("connected_by", "traffic_class", "retry_count", "ack_timeout")
            assert [done.chosen[name] for name in asked] == ["cm", TRAFFIC_CLASS, 3, 15]


def test_rdma_cm_whose_other_end_does_not_listen_says_so(managed: Ends) -> None:
    def elsewhere(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**remote, "cm_port": 1}

    with pytest.raises(PathError, match=r"RDMA-CM: RDMA_CM_EVENT_REJECTED .* came instead of"):
        managed.run(setting(connect="cm", limit=5.0), tamper=elsewhere)
