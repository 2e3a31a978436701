"""The window of a UDP stream: whatever the size, the receiver's buffer holds it, and what is lost has a place."""

from __future__ import annotations

import pathlib
import socket
import struct
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from two_sides import TRIAL, Side

from cython_ext.sockets.receive_room import buffer_for, datagrams_held, truesize
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.paths import open_endpoint
from hwrx.runs import experiment, planning, reading, schedule, store, testbed

SO_MEMINFO = 55
SIZES = (1, 64, 257, 700, 1400, 1472, 1473, 1700, 2953, 4096, 8192, 16000, 65507)
DEFAULT = 212_992  # net.core.rmem_default of ordinary kernels


def memory(sock: socket.socket) -> tuple[int, int]:
    """Bytes that count against SO_RCVBUF, and datagrams dropped."""
    found = struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return found[0], found[8]


@pytest.fixture
def two() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DEFAULT // 2)
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
        yield sender, receiver


@pytest.mark.parametrize("size", SIZES)
def test_a_datagram_takes_no_more_of_the_buffer_than_is_counted_on(
    two: tuple[socket.socket, socket.socket], size: int
) -> None:
    sender, receiver = two
    sender.send(bytes(size))
    taken, drops = memory(receiver)
    assert 0 < taken <= truesize(size)
    assert drops == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_window_fits_though_what_was_read_is_given_back_late(
    two: tuple[socket.socket, socket.socket], size: int
) -> None:
    sender, receiver = two
    buffer = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    window = datagrams_held(buffer, size)
    for _ in range(window):
        sender.send(bytes(size))
    for _ in range(5):  # half a window is read and credited, and comes anew
        for _ in range(-(-window // 2)):
            receiver.recv(1 << 16)
        for _ in range(-(-window // 2)):
            sender.send(bytes(size))
    assert memory(receiver)[1] == 0


@pytest.mark.parametrize("size", SIZES)
def test_an_end_without_a_socket_says_a_buffer_that_holds_what_it_can(size: int) -> None:
    for count in (1, 2, 7, 64, 511):
        assert datagrams_held(buffer_for(count, size), size) == count


def test_what_the_window_loses_is_told_from_what_the_path_loses() -> None:
    """A sender that is told of a buffer much larger than the receiver's: all that is lost is lost there."""
    setting = Setting(path="udp", pattern="stream", size=4096, messages=500, window=400, check_every=1, limit=20.0)
    small, place = msgspec.structs.replace(setting, socket_buffer=8192), Place()
    with (
        open_endpoint(Prepare(trial=TRIAL, role="client", setting=setting, here=place, there=place)) as client,
        open_endpoint(Prepare(trial=TRIAL, role="server", setting=small, here=place, there=place)) as server,
    ):
        client.connect({**server.describe(), "receive_buffer": 1 << 30})
        server.connect(client.describe())
        sending = Side(client, setting, "client")
        time.sleep(0.2)  # a window of many times what the receiver holds has come before it begins to read
        receiving = Side(server, setting, "server")
        for side in (sending, receiving):
            side.join(timeout=120)
        assert receiving.counts["lost"] > 0
        assert server.counts()["socket_drops"] == receiving.counts["lost"]


@pytest.mark.parametrize("topology", ["netns", "here"])
def test_a_clean_wire_loses_nothing_at_default_settings(
    needs: Callable[..., None], tmp_path: pathlib.Path, topology: str
) -> None:
    needs(*(("root", "namespaces") if topology == "netns" else ()))
    sizes = [size for size in SIZES if size >= 64]
    plan = planning.plan_run(
        experiment.parse_experiment(
            f'paths = ["udp"]\npatterns = ["stream"]\nsizes = {sizes}\nrepeats = 1\ntopology = "{topology}"\n'
            "[setting]\nmessages = 600\ncheck_every = 1",
            source="test",
        )
    )
    with (
        testbed.opened_bed(plan.experiment, testbed.Wanted()) as bed,
        store.Writer.create(tmp_path, plan, {}) as writer,
    ):
        outcome = schedule.execute_trials(plan.trials, bed, writer)
    assert outcome.failed == []
    trials = reading.load_run(writer.path).trials.to_pylist()
    assert {trial["size"]: (trial["lost"], trial["socket_drops"]) for trial in trials} == dict.fromkeys(sizes, (0, 0))
