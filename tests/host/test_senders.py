"""Several senders at once over rings of whole frames, and what a run records that only a connection decided."""

from __future__ import annotations

import errno
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from two_sides import TRIAL, Side

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.errors import MachineError
from hwrx.paths import open_endpoint
from hwrx.paths.families import sockets
from hwrx.runs import experiment, planning, reading, schedule, store, testbed
from hwrx.runs.store import Writer
from hwrx.runs.trials import Trial
from hwrx.wires import topology


def carried_out(tmp_path: pathlib.Path, text: str) -> store.Run:
    plan = planning.plan_run(experiment.parse_experiment(text, source="test"))
    with testbed.opened_bed(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        outcome = schedule.execute_trials(plan.trials, bed, writer)
        assert outcome.failed == []
    return reading.load_run(writer.path)


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
def test_each_request_is_answered_by_its_own_server(
    needs: Callable[..., None], tmp_path: pathlib.Path, pattern: str
) -> None:
    needs("root", "namespaces")
    done = carried_out(
        tmp_path,
        f'paths = ["packet-ring"]\npatterns = ["{pattern}"]\ntopology = "netns"\nrepeats = 1\n'
        "[setting]\nsenders = 2\nmessages = 300\ncheck_every = 1",
    )
    trial = done.trials.to_pylist()[0]
    assert (trial["status"], trial["delivered"], trial["lost"]) == ("ok", 2 * 416, 0)
    # what both servers answered would come to each client twice
    assert (trial["duplicated"], trial["stale"], trial["corrupt"]) == (0, 0, 0)
    assert trial["nobody's"] == 0


def test_who_sums_is_told_of_sockets_and_of_rings() -> None:
    """A loopback device leaves checksums out, and says that it offloads them."""
    assert sockets.checksummed_by("lo") == {"checksum_sent_by": "device", "checksum_verified_by": "device"}
    assert sockets.checksummed_by("no-such-device") == {}


def test_a_device_that_does_not_offload_leaves_summing_to_the_kernel(needs: Callable[..., None]) -> None:
    needs("root", "namespaces", "ethtool")
    with topology.netns() as made:
        link = ["ip", "netns", "exec", parse_environment(made.peers["client"]).name]
        netdev = str(made.places["client"].netdev)
        ask = "from hwrx.paths.families.sockets import checksummed_by; import sys; print(checksummed_by(sys.argv[1]))"

        def told() -> str:
            done = subprocess.run(
                [*link, sys.executable, "-c", ask, netdev], capture_output=True, text=True, check=True
            )
            return done.stdout

        assert "'checksum_sent_by': 'device'" in told()
        subprocess.run([*link, "ethtool", "-K", netdev, "tx", "off"], check=True, capture_output=True)
        assert "'checksum_sent_by': 'kernel'" in told()


REFUSED = """
import sys
from hwrx.errors import MachineError
from hwrx.errors import MachineError
from hwrx.control.messages import Prepare, Setting
from hwrx.control.places import Place
from hwrx.paths import open_endpoint
setting = Setting(path="udp", socket_buffer=1 << 29)
try:
    open_endpoint(Prepare(trial=1, role="client", setting=setting, here=Place(), there=Place()))
except MachineError as error:
    print(error)
"""


def test_a_buffer_that_the_kernel_would_cut_off_is_refused(needs: Callable[..., None]) -> None:
    needs("root", "setpriv")
    command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", REFUSED]
    done = subprocess.run(command, stdout=-1, text=True, check=True)
    assert "the kernel grants a socket buffer of" in done.stdout
    assert "remedy: run as root" in done.stdout


def test_a_socket_that_may_not_poll_its_device_is_refused() -> None:
    """Linux 6.18 lets everybody; those before it want CAP_NET_ADMIN."""

    class Forbidden(socket.socket):
        def setsockopt(self, *asked: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    with Forbidden() as sock, pytest.raises(MachineError, match="SO_BUSY_POLL: Operation not permitted") as caught:
        sockets._busy_poll(sock)
    assert "wait by block or poll" in caught.value.remedy


def test_a_poll_that_finds_no_queue_of_a_driver_is_told() -> None:
    setting = Setting(path="udp", messages=20, warmup=0, cooldown=0, wait="busy-poll", limit=10.0)
    place = Place()
    with (
        open_endpoint(Prepare(trial=TRIAL, role="client", setting=setting, here=place, there=place)) as client,
        open_endpoint(Prepare(trial=TRIAL, role="server", setting=setting, here=place, there=place)) as server,
    ):
        client.connect(server.describe())
        server.connect(client.describe())
        for side in (Side(server, setting, "server"), Side(client, setting, "client")):
            side.join(timeout=60)
        assert "nothing came from a device that can be polled" in server.chosen()["busy_poll"]


def test_what_the_connection_decided_is_recorded(needs: Callable[..., None], tmp_path: pathlib.Path) -> None:
    needs("root", "namespaces")
    measured = []

    def look(pair: schedule.Pair, trial: Trial, found: schedule.Measured, writer: Writer) -> None:
        measured.append(found)

    plan = planning.plan_run(
        experiment.parse_experiment(
            'paths = ["udp", "tcp"]\npatterns = ["stream"]\nrepeats = 1\ntopology = "netns"\n'
            "[setting]\nmessages = 200\n[path.udp.stream]\nwindow = 4096\n[path.tcp]\nsizes = [1400]",
            source="test",
        )
    )
    with testbed.opened_bed(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        schedule.execute_trials(plan.trials, bed, writer, twin=look)
    chosen = {found.chosen["client"].get("segment") is not None: found.chosen for found in measured}
    # the window that both sockets' buffers hold, and the segment that both devices carry
    assert chosen[False]["client"]["window"] == chosen[False]["server"]["window"] < 4096
    assert 1400 < chosen[True]["client"]["segment"] < 1500
    assert chosen[True]["server"]["segment"] == chosen[True]["client"]["segment"]
