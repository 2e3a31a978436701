"""What goes wrong on a verbs path is told in words, at once, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from guest_ends import Ends, Places, Wire, ip

from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from cython_ext.verbs.rc import RcSendTransport
from hwrx import paths
from hwrx.control.messages import Connect, Done, Prepare, Role, Setting, Start
from hwrx.control.peers import wait_first, wait_for_replies
from hwrx.control.places import Place
from hwrx.errors import HwrxError, MachineError, PeerError, SilenceError, UsageError
from hwrx.paths.verbs_port import open_port


def setting(path: str = "rdma-send", **more: Any) -> Setting:
    return Setting(path=path, **{"messages": 50, "warmup": 0, "cooldown": 0, "limit": 3.0, "check_every": 1, **more})


def prepare(role: Role, setting: Setting, pair: Places) -> Prepare:
    other: Role = "server" if role == "client" else "client"
    return Prepare(trial=1, role=role, setting=setting, here=pair[role], there=pair[other])


def at_device(kind: type[RcSendTransport], prepare: Prepare, device: str) -> RcSendTransport:
    return kind(prepare, open_port(prepare, device))


# --- completions with error, provoked for real ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["rdma-write", "rdma-write-imm", "rdma-read"])
def test_a_wrong_rkey_is_a_remote_access_error(ends: Ends, path: str) -> None:
    def wrong(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**remote, "rkey": remote["rkey"] ^ 0x5500} if role == "client" else remote

    outcome = ends.run(setting(path), tamper=wrong)
    client = outcome.done["client"]
    assert client.ended == "error"
    assert "IBV_WC_REM_ACCESS_ERR (10)" in client.error
    assert "rkey" in client.error
    if path == "rdma-write-imm":
        # the responder's receive requests end with it: flushed, or (rxe) the first of them with the same status
        assert outcome.done["server"].ended == "error"


def test_an_address_outside_of_the_region_is_a_remote_access_error(ends: Ends) -> None:
    def beyond(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**remote, "address": remote["address"] + (1 << 30)} if role == "client" else remote

    assert "IBV_WC_REM_ACCESS_ERR" in ends.run(setting("rdma-write"), tamper=beyond).done["client"].error


def as_if_alike(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
    """Hide from the client that the server was prepared for another path or size."""
    own = {"path": "rdma-write", "size": 640} if role == "client" else {"path": "rdma-send", "size": 64}
    return {**remote, **own}


def test_a_receive_buffer_that_is_too_short_is_told_on_both_ends(ends: Ends) -> None:
    def hide(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**as_if_alike(role, remote), "path": "rdma-send"}

    both = {"client": setting(size=640), "server": setting(size=64)}
    done = ends.run(both, tamper=hide).done  # type: ignore[arg-type]
    # the specification's statuses, or what rxe says instead where one packet holds it all
    assert done["client"].error.startswith(("IBV_WC_REM_INV_REQ_ERR (9)", "IBV_WC_REM_OP_ERR (11)"))
    assert done["server"].error.startswith(("IBV_WC_LOC_LEN_ERR (1)", "IBV_WC_LOC_QP_OP_ERR (2)"))
    for end in done.values():
        assert "longer than the" in end.error


def test_an_operation_that_the_queue_pair_does_not_allow_is_an_invalid_request(ends: Ends) -> None:
    both = {"client": setting("rdma-write", size=640), "server": setting("rdma-send", size=64)}
    error = ends.run(both, tamper=as_if_alike).done["client"].error  # type: ignore[arg-type]
    assert "IBV_WC_REM_INV_REQ_ERR (9)" in error


class Impatient(RcSendTransport):
    """Gives up soon where the other end has no receive buffer."""

    def _connect(self, there: Any) -> None:
        self.qp.connect(
            psn=self.end.psn, remote_psn=there.psn, remote_qpn=there.qpn, mtu=self.path_mtu,
            gid_index=self.gid.number, remote_gid=bytes.fromhex(there.gid), rnr_retry=1,
        )  # fmt: skip


def test_a_receiver_without_buffers_is_told(pair: Places, ends: Ends) -> None:
    stream = setting(pattern="stream", size=64, messages=400, window=64)
    few = setting(pattern="pingpong", size=64, window=4)
    with (
        at_device(Impatient, prepare("client", stream, pair), "rxe0") as a,
        at_device(RcSendTransport, prepare("server", few, pair), "rxe1") as b,
    ):
        a.connect(b.describe())
        b.connect(a.describe())
        trial = Trial(messages=400, size=64, trial=1, batch=8, limit_ns=3_000_000_000)
        status = loop.run(trial, a, "stream", "client")
        assert "IBV_WC_RNR_RETRY_EXC_ERR (13)" in a.explain(status)


def test_a_link_that_goes_down_ends_the_trial_with_words(ends: Ends, spare: Wire) -> None:
    try:
        ends.connect(ends.prepare(setting(messages=10_000_000, limit=60.0), spare.places))
        for peer in ends.peers.values():
            peer.send(Start())
        ends.wait_until_moving()
        ip("link", "set", spare.links["server"], "down")
        # whichever had a message on its way says what became of that, unless the device tells of its port before
        peer, done = wait_first(ends.peers.values(), Done, 60)
        words = ["IBV_EVENT_PORT_ERR", "IBV_WC_RETRY_EXC_ERR (12)"]
        # the end whose own link is down may have found no route for a message that it had yet to send
        words += ["IBV_WC_LOC_QP_OP_ERR (2)"] if peer.name == "server" else []
        assert done.error.startswith(tuple(words))
        assert done.tally["delivered"] > 0
    finally:
        for role in ("client", "server"):
            ends.kill(role)  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "grace"), [("rdma-send", False), ("rdma-write", False), ("rdma-send", True)])
def test_an_end_that_only_waits_learns_that_its_port_went_down(ends: Ends, spare: Wire, path: str, grace: bool) -> None:
    """No message of its own is on its way, so no completion will tell it. A port that comes back at once is no end."""
    try:
        ends.connect(ends.prepare(setting(path, limit=60.0), spare.places))
        ends.peers["server"].send(Start())
        time.sleep(0.5)
        ip("link", "set", spare.links["server"], "down")
        if grace:
            ip("link", "set", spare.links["server"], "up")
            with pytest.raises(SilenceError):
                wait_for_replies({ends.peers["server"]: Done}, 3)
        else:
            done = wait_for_replies({ends.peers["server"]: Done}, 60)[ends.peers["server"]]
            assert done.error.startswith("IBV_EVENT_PORT_ERR (10): the port went down")
            assert done.error.endswith(f"(on {spare.devices['server']} port 1)")
    finally:
        if grace:  # it waits for its first message as long as its controller lets it
            ends.kill("server")
        ends.release()


# --- peers that die ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-write-imm", "rdma-ud"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_peer_that_is_killed_ends_the_trial(ends: Ends, path: str, role: Role) -> None:
    other: Role = "server" if role == "client" else "client"
    try:
        ends.connect(ends.prepare(setting(path, messages=10_000_000, limit=2.0)))
        for peer in ends.peers.values():
            peer.send(Start())
        ends.wait_until_moving()
        ends.kill(role)
        done = wait_for_replies({ends.peers[other]: Done}, 60)[ends.peers[other]]
        assert done.ended in ("limit", "error")
        if done.ended == "error":
            assert "IBV_WC_RETRY_EXC_ERR" in done.error
        assert done.tally["delivered"] > 0
    finally:
        ends.release()


def test_a_stream_notices_at_once_that_its_receiver_died(ends: Ends) -> None:
    try:
        ends.connect(ends.prepare(setting(pattern="stream", messages=10_000_000, limit=20.0)))
        for peer in ends.peers.values():
            peer.send(Start())
        ends.wait_until_moving()
        ends.kill("server")
        done = wait_for_replies({ends.peers["client"]: Done}, 60)[ends.peers["client"]]
        assert "IBV_WC_RETRY_EXC_ERR" in done.error
        assert "peer died" in done.error
    finally:
        ends.release()


# --- what cannot be, in words --------------------------------------------------------------------------------------


def refused(ends: Ends, kind: type[HwrxError], setting: Setting, places: Places | None = None) -> str:
    with pytest.raises(kind) as caught:
        ends.run(setting, places=places)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("path", ["rdma-send", "rdma-write", "rdma-ud"])
def test_two_ends_on_one_rxe_device_are_refused(ends: Ends, pair: Places, path: str) -> None:
    words = refused(ends, UsageError, setting(path), {"client": pair["client"], "server": pair["client"]})
    assert "both ends stand on the rxe device rxe0" in words


def test_a_port_that_is_down_is_named(ends: Ends, spare: Wire) -> None:
    ip("link", "set", spare.links["client"], "down")
    words = refused(ends, MachineError, setting(), spare.places)
    assert "port 1 is not active" in words


def test_a_device_that_does_not_exist_is_named(ends: Ends, pair: Places) -> None:
    nowhere = {**pair, "client": Place(verbs="mlx5_9")}
    assert "there is no verbs device 'mlx5_9'; there are rxe0, rxe1" in refused(ends, MachineError, setting(), nowhere)


def test_a_port_that_does_not_exist_is_named(ends: Ends, pair: Places) -> None:
    with pytest.raises(HwrxError, match="rxe0 has ports 1 to 1, not 2"):
        ends.run(setting(), places={**pair, "client": Place(verbs="rxe0", port=2)})


def test_a_device_is_found_by_its_netdev(ends: Ends, pair: Places) -> None:
    places: Places = {end: Place(address=place.address, netdev=place.netdev) for end, place in pair.items()}
    assert ends.run(setting(), places=places).prepared["server"].chosen["device"] == "rxe1"


def test_several_devices_and_none_named_is_a_question(ends: Ends, pair: Places) -> None:
    assert "several verbs devices" in refused(ends, UsageError, setting(), {**pair, "client": Place()})


def test_a_gid_that_does_not_exist_is_answered_with_the_table(ends: Ends) -> None:
    assert "port 1 has no GID 200; its table is 0:" in refused(ends, UsageError, setting(gid_index=200))


def test_gids_of_different_kinds_are_refused(ends: Ends, pair: Places) -> None:
    def other(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**remote, "gid": "fe80" + "00" * 13 + "01"} if role == "client" else remote

    with pytest.raises(HwrxError, match="GIDs of different kinds"):
        ends.run(setting(), tamper=other)


def test_a_netdev_without_an_address_falls_back_to_its_link_local_gid(ends: Ends, spare: Wire) -> None:
    for end in ("client", "server"):
        ip("-4", "address", "flush", "dev", spare.links[end])  # type: ignore[index]
    deadline = time.monotonic() + 20
    while True:  # the table follows the netdev a moment later
        try:
            prepared = ends.prepare(setting(), {e: Place(verbs=spare.devices[e]) for e in ("client", "server")})
        finally:
            ends.release()
        if prepared["client"].chosen["gid"].startswith("fe80"):
            break
        assert time.monotonic() < deadline, prepared["client"].chosen["gid"]
        time.sleep(0.2)


def test_a_datagram_above_the_mtu_is_refused(ends: Ends) -> None:
    words = refused(ends, UsageError, setting("rdma-ud", size=1025))
    assert "at most the MTU, 1024 bytes on rxe" in words  # whichever end says it first
    assert "port 1, not 1025" in words


def test_an_mtu_above_the_ports_is_refused(ends: Ends) -> None:
    assert "port 1 has an MTU of 1024 bytes, 4096 are asked for" in refused(ends, UsageError, setting(mtu=4096))


def test_a_peer_that_describes_nonsense_is_named(ends: Ends) -> None:
    with pytest.raises(PeerError, match="describes no verbs endpoint"):
        ends.run(setting(), tamper=lambda role, remote: {"qpn": "seven"})


def test_a_peer_that_cannot_be_reached_is_an_error_in_words(ends: Ends) -> None:
    def nobody(role: Role, remote: dict[str, Any]) -> dict[str, Any]:
        return {**remote, "qpn": remote["qpn"] ^ 0xFFF} if role == "client" else remote

    client = ends.run(setting(limit=10.0), tamper=nobody).done["client"]
    assert "IBV_WC_RETRY_EXC_ERR" in client.error


def test_too_little_lockable_memory_names_the_limit_and_the_command(pair: Places) -> None:
    script = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536));"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "from hwrx import paths; from hwrx.control.messages import Prepare, Setting, Place;"
        "from hwrx.errors import MachineError\n"
        "try: paths.open_endpoint(Prepare(trial=1, role='client', setting=Setting(path='rdma-send', size=65536),"
        " here=Place(verbs='rxe0'), there=Place()))\n"
        "except MachineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "the limit of locked memory is 65536 bytes" in done.stdout, done.stderr
    assert "ulimit -l" in done.stdout


def test_an_endpoint_closes_twice_and_unwinds_after_a_failure(pair: Places, ends: Ends) -> None:
    endpoint = paths.open_endpoint(prepare("client", setting(), pair))
    endpoint.close()
    endpoint.close()
    with pytest.raises(ValueError):
        endpoint.context.port(1)  # type: ignore[attr-defined]


def test_a_connect_after_the_other_device_went_away_is_an_error(ends: Ends, spare: Wire) -> None:
    try:
        prepared = ends.prepare(setting(), spare.places)
        remote = prepared["client"].remote
        ends.peers["server"].send(Connect({**remote, "gid": "0" * 20 + "ffff" + "c6124f63"}))
        with pytest.raises(HwrxError, match="ibv_modify_qp to RTR"):
            wait_for_replies({ends.peers["server"]: Done}, 60)
    finally:
        ends.release()


def test_a_thread_that_waits_by_event_is_bounded_by_its_limit(pair: Places, ends: Ends) -> None:
    """No other end: the read of the channel must end by itself, again and again."""
    waiting = setting(wait="event")
    with (
        paths.open_endpoint(prepare("client", waiting, pair)) as a,
        paths.open_endpoint(prepare("server", waiting, pair)) as b,
    ):
        a.connect(b.describe())
        b.connect(a.describe())
        trial = Trial(messages=5, size=64, trial=1, limit_ns=500_000_000)
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(loop.run(trial, a, "pingpong", "client")))
        thread.start()
        thread.join(30)
        assert loop.ENDED[result[0]] == "limit"
