"""Endpoints of RoCEv2 on network devices of the kernel: two of them over a veth pair between two namespaces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from hwrx import roce
from hwrx.errors import HwrxError, MachineError, PathError, UsageError
from hwrx.host import tools
from hwrx.host.netns import entered_namespace
from hwrx.wires import topology

OURS, THEIRS = "198.18.77.70", "198.18.77.71"
OURS_V6, THEIRS_V6 = "2001:2:0:77::70", "2001:2:0:77::71"
LIMIT = 30.0


@pytest.fixture(scope="module")
def wire() -> Iterator[topology.Made]:
    with topology.netns() as made:
        yield made


@pytest.fixture
def opened(wire: topology.Made) -> Iterator[object]:
    with contextlib.ExitStack() as stack:

        def opens(end: str, address: str, **options) -> roce.Endpoint:
            name = wire.peers[end].removeprefix("netns:")
            with entered_namespace(name):
                return stack.enter_context(roce.endpoint(topology.LINKS[end], address, **options))

        opens.name = {end: peer.removeprefix("netns:") for end, peer in wire.peers.items()}
        yield opens


def work(*ends: roce.Endpoint, until) -> None:
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline, [end.queue_pair.counters for end in ends]
        for end in ends:
            end.drive()


@pytest.mark.parametrize(("ours", "theirs"), [(OURS, THEIRS), (OURS_V6, THEIRS_V6)], ids=["IPv4", "IPv6"])
def test_two_endpoints_speak_over_the_kernels_devices(opened, ours: str, theirs: str) -> None:
    us, them = opened("client", ours), opened("server", theirs)
    memory, there = bytearray(b"x" * 100_000), bytearray(100_000)
    us.connect(them.parameters.to_line())
    them.connect(us.parameters.to_line())
    region = them.register(there)
    them.post_receive(region, wr_id=3)
    us.post_send("send", us.register(memory), wr_id=4)
    found = []
    work(us, them, until=lambda: found.extend(them.queue_pair.poll_receives()) or found)
    assert found == [(3, "IBV_WC_SUCCESS", "IBV_WC_RECV", 100_000, None)]
    assert there == memory


@pytest.mark.parametrize(("version", "ours"), [("-4", OURS), ("-6", OURS_V6)])
def test_the_kernel_is_told_our_address_and_asked_for_its_own(opened, version: str, ours: str) -> None:
    us = opened("client", ours)
    kernels = topology.ADDRESSES["server"] if version == "-4" else topology.ADDRESSES_V6["server"]
    assert us.find_mac(kernels) == us.find_mac(kernels)
    # the other namespace's kernel asks for ours, because it has something to send; nobody but us can answer
    ip = ("ip", "-n", opened.name["server"], version)
    tools.run_tool(*ip, "neighbour", "replace", ours, "dev", topology.LINKS["server"], "nud", "none", "managed")
    deadline = time.monotonic() + LIMIT
    while us.link.mac not in (shown := tools.run_tool(*ip, "neighbour", "show", ours)):
        assert time.monotonic() < deadline, shown
        with contextlib.suppress(PathError):
            us.find_mac("2001:2:0:77::99" if version == "-6" else "198.18.77.99", patience=0.1)


def test_one_number_is_one_endpoints(opened) -> None:
    first = opened("client", OURS, qpn=0x11)
    with pytest.raises(UsageError, match=r"another endpoint has queue pair 0x11 of 198\.18\.77\.70 on hwrx0"):
        opened("client", OURS, qpn=0x11)
    opened("client", OURS, qpn=0x12)
    first.close()
    opened("client", OURS, qpn=0x11)


def test_numbers_that_are_not_given_differ(opened) -> None:
    assert len({opened("client", OURS).parameters.qpn for _ in range(8)}) == 8


def test_the_kernels_own_address_is_refused(opened) -> None:
    with pytest.raises(UsageError, match="an address of this machine's kernel"):
        opened("client", topology.ADDRESSES["client"])


def test_a_device_that_is_not_there_or_may_not_be_used_is_told(opened) -> None:
    with pytest.raises(MachineError, match="no network device 'nosuch0'"):
        roce.endpoint("nosuch0", OURS)
    with pytest.raises(HwrxError, match="the link of ifdown0 is down"):
        tools.run_tool("ip", "link", "add", "ifdown0", "type", "veth", "peer", "name", "ifdown1")
        try:
            roce.endpoint("ifdown0", OURS)
        finally:
            tools.run_tool("ip", "link", "delete", "ifdown0")


def test_nothing_that_stands_on_the_wire_answers_for_nobody(opened) -> None:
    us = opened("client", OURS)
    with pytest.raises(PathError, match=r"nobody on this link says to have 198\.18\.77\.99"):
        us.connect("QPN 0x11, PSN 0x1, GID ::ffff:198.18.77.99", patience=0.2)
