"""Several senders at once over rings of whole frames, and what a run records that only a connection decided."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from hwrx import experiment, run, store, testbed, topology
from hwrx.paths import sockets
from hwrx.store import Writer


def carried_out(tmp_path: pathlib.Path, text: str) -> store.Run:
    plan = experiment.plan(experiment.loads(text, source="test"))
    with testbed.opened(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        outcome = run.execute(plan.trials, bed, writer)
        assert outcome.failed == []
    return store.load(writer.path)


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
        link = ["ip", "netns", "exec", made.peers["client"].removeprefix("netns:")]
        netdev = str(made.places["client"].netdev)
        ask = "from hwrx.paths.sockets import checksummed_by; import sys; print(checksummed_by(sys.argv[1]))"

        def told() -> str:
            done = subprocess.run(
                [*link, sys.executable, "-c", ask, netdev], capture_output=True, text=True, check=True
            )
            return done.stdout

        assert "'checksum_sent_by': 'device'" in told()
        subprocess.run([*link, "ethtool", "-K", netdev, "tx", "off"], check=True, capture_output=True)
        assert "'checksum_sent_by': 'kernel'" in told()


def test_what_the_connection_decided_is_recorded(needs: Callable[..., None], tmp_path: pathlib.Path) -> None:
    needs("root", "namespaces")
    measured = []

    def look(pair: run.Pair, trial: experiment.Trial, found: run.Measured, writer: Writer) -> None:
        measured.append(found)

    plan = experiment.plan(
        experiment.loads(
            'paths = ["udp", "tcp"]\npatterns = ["stream"]\nrepeats = 1\ntopology = "netns"\n'
            "[setting]\nmessages = 200\n[path.udp.stream]\nwindow = 4096\n[path.tcp]\nsizes = [1400]",
            source="test",
        )
    )
    with testbed.opened(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        run.execute(plan.trials, bed, writer, twin=look)
    chosen = {found.chosen["client"].get("segment") is not None: found.chosen for found in measured}
    # the window that both sockets' buffers hold, and the segment that both devices carry
    assert chosen[False]["client"]["window"] == chosen[False]["server"]["window"] < 4096
    assert 1400 < chosen[True]["client"]["segment"] < 1500
    assert chosen[True]["server"]["segment"] == chosen[True]["client"]["segment"]
