"""What the tests inside the guest share: the pair of rxe devices, two agents on it, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_ends import ROLES, Ends, Places, Wire, ip, resources

from hwrx.control.messages import Role
from hwrx.control.places import Place
from hwrx.host import tools
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines.traced import RunTracer
from hwrx.verbs import rxe
from hwrx.wires import topology

TRACED = ["udp", "tcp", "rdma-send", "rdma-write", "rdma-write-imm", "rdma-read", "rdma-ud"]
TRACED += ["packet-ring", "xdp", "nic-ring", "nic-pio"]


class Tracing:
    """The programs of all paths: attached once for the files that trace, and gone before one that does not."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._tracer: RunTracer | None = None

    def tracer(self) -> RunTracer:
        if self._tracer is None:
            bed = Bed({}, dict.fromkeys(ROLES, "local"), {})
            self._tracer = self._stack.enter_context(RunTracer(bed, TRACED))
            self._tracer.attach()
        return self._tracer

    def close(self) -> None:
        self._tracer = None
        self._stack.close()


TRACING = Tracing()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or not nextitem.path.name.startswith("test_trace"):
        TRACING.close()


@pytest.fixture
def tracer() -> RunTracer:
    return TRACING.tracer()


@pytest.fixture(scope="module")
def traced_pair(pair: Places) -> Iterator[Pair]:
    """Two agents whose trials a tracer follows."""
    with Pair(Bed(pair, dict.fromkeys(ROLES, "local"), {})) as agents:
        yield agents


@pytest.fixture(scope="session")
def pair() -> Iterator[Places]:
    """The places of both ends: those of the guest, or of a pair that is put up for these tests."""
    # A READ of 1 MiB comes back in a burst of 1,024 packets, which rxe does not pace; the kernel's queue of 1,000 would
    # drop some, and rxe would send them again after its timeout, time and again.
    Path("/proc/sys/net/core/netdev_max_backlog").write_text("16384")
    if Path("/sys/class/infiniband", topology.DEVICES["client"]).exists():
        yield {
            end: Place(address=topology.ADDRESSES[end], netdev=topology.LINKS[end], verbs=topology.DEVICES[end])
            for end in ROLES
        }
        return
    with topology.pair() as made:
        yield made.places


@pytest.fixture(scope="session")
def agents(pair: Places) -> Iterator[Ends]:
    ends = Ends(pair)
    try:
        yield ends
    finally:
        ends.close()


@pytest.fixture
def ends(agents: Ends) -> Iterator[Ends]:
    """The agents; afterwards no device holds anything that it did not hold before."""
    before = resources()
    yield agents
    assert resources() == before


@pytest.fixture
def spare(pair: Places) -> Iterator[Wire]:
    """A second wire like that of `pair`, gone afterwards."""
    links: dict[Role, str] = {"client": "hwrxt0", "server": "hwrxt1"}
    devices: dict[Role, str] = {"client": "rxe2", "server": "rxe3"}
    addresses: dict[Role, str] = {"client": "198.18.78.1", "server": "198.18.78.2"}
    ip("link", "add", links["client"], "type", "veth", "peer", "name", links["server"])
    try:
        for end in ROLES:
            for key, value in (("accept_local", "1"), ("rp_filter", "0")):
                Path(f"/proc/sys/net/ipv4/conf/{links[end]}/{key}").write_text(value)
            ip("address", "add", f"{addresses[end]}/24", "dev", links[end])
            ip("link", "set", links[end], "up")
        for end in ROLES:
            rxe.add_rxe(devices[end], links[end])
        tools.wait_until(
            lambda: all(rxe.gid_index(devices[end], addresses[end]) is not None for end in ROLES), "the GIDs"
        )
        yield Wire(
            {end: Place(address=addresses[end], netdev=links[end], verbs=devices[end]) for end in ROLES},
            links,
            devices,
        )
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "delete", links["client"])
