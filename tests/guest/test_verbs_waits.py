"""Where a client that waits by event asks for it: within its round trip, as the tools do that it is compared with."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from guest_ends import ROLES, Places

from hwrx.control.messages import Role, Setting
from hwrx.control.peers import Peer, ProcessChannel
from hwrx.runs.collecting import fetch_array
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed

MESSAGES = 200
# nsecs is CLOCK_MONOTONIC, by which both ends stamp
PROGRAM = 'BEGIN {{ printf("ready"); }} kprobe:rxe_req_notify_cq /pid == {pid}/ {{ printf("%llu", nsecs); }}'

Int64s = npt.NDArray[np.int64]


@contextlib.contextmanager
def requests_of(pid: int, found: list[int]) -> Iterator[None]:
    """Note when a process asks for an event of a completion queue, in ns, from here to the end of the block."""
    command = ["bpftrace", "-f", "json", "-e", PROGRAM.format(pid=pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "ready" in line:
                break
        else:
            assert process.stderr is not None
            pytest.fail(f"bpftrace did not start: {process.stderr.read()}")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=60)
    said = [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    found.extend(int(line["data"]) for line in said if line["type"] == "printf")


def test_a_client_asks_for_its_event_within_its_round_trip(needs: Callable[..., None], pair: Places) -> None:
    """Not before it, though there would be time: the question is a system call, and part of what waiting costs.

    Over rdma-send: what rdma-read asks for stands there when its request has been posted, so that nobody waits for it.
    """
    needs("bpftrace")
    posted = delivered = np.empty(0, np.int64)

    def look(peers: Mapping[Role, Peer]) -> None:
        nonlocal posted, delivered
        posted, delivered = (fetch_array(peers["client"], array, MESSAGES) for array in ("posted", "delivered"))

    asked: list[int] = []
    with Pair(Bed(pair, dict.fromkeys(ROLES, "local"), {})) as agents:
        channel = agents.peers["client"]._channel
        assert isinstance(channel, ProcessChannel)
        with requests_of(channel.process.pid, asked):
            setting = Setting(path="rdma-send", messages=MESSAGES, warmup=20, cooldown=0, wait="event", limit=60.0)
            agents.measure(1, setting, look)
    measured = [at for at in asked if posted[0] <= at <= delivered[-1]]
    places = np.searchsorted(posted, measured, side="right") - 1
    within = np.unique(places[np.array(measured) <= delivered[places]])
    # an answer that stands there at the first look is not asked for: where others use the machine, that may be many
    assert len(within) > 0.1 * MESSAGES
    assert len(measured) - len(within) <= 0.05 * MESSAGES
