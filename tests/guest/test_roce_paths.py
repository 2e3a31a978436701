"""Our own queue pair as a path, on the guest's two NICs: all verbs and patterns, in place, and with rxe at one end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_ends import ROLES, Ends, Outcome, ip

from hwrx.control.messages import Role, Setting
from hwrx.errors import MachineError
from hwrx.nic import pci
from hwrx.wires import guest_nics
from hwrx.wires.made import Made

VERBS = ("roce-send", "roce-write", "roce-write-imm", "roce-read")
MESSAGES = 200
COMMON: dict[str, Any] = {"messages": MESSAGES, "warmup": 0, "cooldown": 0, "limit": 30.0, "patience": 10.0}
LONG = 4200  # the wire's MTU, by which RoCE's is 4,096


@pytest.fixture(scope="module", params=[1500, LONG], ids=["mtu 1500", "mtu 4200"])
def segment(request: pytest.FixtureRequest) -> Iterator[Made]:
    with guest_nics.nic(mtu=request.param) as made:
        yield made


@pytest.fixture(scope="module")
def agents(segment: Made) -> Iterator[Ends]:
    ends = Ends(segment.places)
    yield ends
    ends.close()
    assert [nic.driver for nic in pci.list_nics() if nic.supported] == ["e1000e", "e1000e", "ne2k-pci", "ne2k-pci"]


def mtu_of(outcome: Outcome) -> int:
    return int(outcome.done["client"].chosen["mtu"])


def receives(path: str, pattern: str) -> tuple[Role, ...]:
    """The ends at which messages arrive."""
    if path == "roce-read":
        return ("client",)
    return ("server",) if pattern == "stream" else ROLES


def checked(outcome: Outcome, path: str, pattern: str) -> None:
    """Every message came once, and right."""
    assert [done.ended for done in outcome.done.values()] == ["complete"] * 2 or (
        path == "roce-write" and outcome.done.get("server", outcome.done["client"]).ended == "finished"
    ), [(done.ended, done.error, done.tally) for done in outcome.done.values()]
    seen = outcome.done["server" if pattern == "stream" and path in ("roce-send", "roce-write-imm") else "client"].tally
    assert (seen["delivered"], seen["corrupt"], seen["lost"]) == (MESSAGES, 0, 0)
    for done in outcome.done.values():
        assert (done.tally["roce_sent"], done.tally.get("roce_sent_again", 0)) > (0, 0) or path == "roce-read"
        assert done.tally.get("roce_wrong_icrc", 0) == 0


@pytest.mark.parametrize(("path", "wait"), [*((path, "event") for path in VERBS), ("roce-send", "poll")])
def test_ping_pong_with_no_copy(agents: Ends, path: str, wait: str) -> None:
    outcome = agents.run(Setting(path=path, pattern="pingpong", size=64, wait=wait, check_every=1, **COMMON))
    checked(outcome, path, "pingpong")
    for role in ROLES:
        tally = outcome.done[role].tally
        assert (tally.get("roce_copied", 0), tally.get("roce_copied_out", 0)) == (0, 0), tally


@pytest.mark.parametrize(
    ("path", "size"),
    [*((path, 5000) for path in VERBS), *((path, size) for path in VERBS[:2] for size in (8, 1024, 65536))],
)
def test_a_stream_of_any_size_is_whole_and_in_place(agents: Ends, path: str, size: int) -> None:
    outcome = agents.run(Setting(path=path, pattern="stream", size=size, window=16, check_every=1, **COMMON))
    checked(outcome, path, "stream")
    one_piece = size <= mtu_of(outcome) or mtu_of(outcome) == 4096
    for role in receives(path, "stream"):
        tally = outcome.done[role].tally
        delivered = tally.get("roce_placed", 0) + tally.get("roce_in_frames", 0)
        if one_piece:
            assert (tally.get("roce_copied", 0), delivered) == (0, MESSAGES * size), tally
        else:
            assert tally["roce_copied"] == MESSAGES * size
            assert outcome.done[role].chosen["lands"].startswith("copied: ")
    assert all(done.tally.get("roce_copied_out", 0) == 0 for done in outcome.done.values())


@pytest.mark.parametrize("path", ["roce-send", "roce-write"])
def test_long_messages_of_a_ping_pong_land_between_acknowledgements(agents: Ends, path: str) -> None:
    outcome = agents.run(Setting(path=path, pattern="pingpong", size=20_000, check_every=8, **COMMON))
    checked(outcome, path, "pingpong")
    if mtu_of(outcome) == 4096:
        assert [done.tally.get("roce_copied", 0) for done in outcome.done.values()] == [0, 0]


@pytest.mark.parametrize("path", ["roce-send", "roce-write"])
def test_an_open_loop(agents: Ends, path: str) -> None:
    outcome = agents.run(Setting(path=path, pattern="paced", size=256, rate=50.0, **COMMON))
    checked(outcome, path, "paced")


@pytest.mark.parametrize("path", VERBS)
@pytest.mark.parametrize("ours", ROLES)
def test_rxe_may_be_the_other_end(agents: Ends, path: str, ours: Role) -> None:
    theirs: Role = "server" if ours == "client" else "client"
    twin = path.replace("roce", "rdma")
    at = guest_nics.NICS[theirs]
    # the NIC that we drive answers no ARP
    ip("neighbour", "replace", guest_nics.NIC_ADDRESSES[ours], "lladdr", guest_nics.NIC_HARDWARE[ours], "dev", at)
    try:
        settings: dict[Role, Setting] = {
            role: Setting(path=path if role == ours else twin, pattern="pingpong", size=700, check_every=1, **COMMON)
            for role in ROLES
        }
        outcome = agents.run(settings)
    finally:
        ip("neighbour", "del", guest_nics.NIC_ADDRESSES[ours], "dev", at)
    assert outcome.done["client"].ended == "complete", [(d.ended, d.error) for d in outcome.done.values()]
    assert (outcome.done["client"].tally["delivered"], outcome.done["client"].tally["corrupt"]) == (MESSAGES, 0)


# --- another way to the wire -----------------------------------------------------------------------------------------


@pytest.fixture
def huge_pages() -> Iterator[Path]:
    """How many there are is read and written there; afterwards as many as before."""
    file = Path("/proc/sys/vm/nr_hugepages")
    before = file.read_text()
    yield file
    file.write_text(before)


@pytest.mark.parametrize("wait", ["poll", "event"])
@pytest.mark.parametrize("path", VERBS)
def test_through_uio_the_nic_is_told_physical_addresses(agents: Ends, huge_pages: Path, path: str, wait: str) -> None:
    huge_pages.write_text("160")
    setting = Setting(path=path, pattern="pingpong", size=700, wait=wait, link="uio", check_every=1, **COMMON)
    outcome = agents.run(setting)
    checked(outcome, path, "pingpong")
    for role in receives(path, "pingpong"):
        done = outcome.done[role]
        assert (done.chosen["access"], done.chosen["wait"]) == ("uio", "intx" if wait == "event" else "poll")
        # without an IOMMU only a SEND of one packet is delivered where the NIC wrote it
        assert ("roce_in_frames" in done.tally) == (path == "roce-send")
        assert ("roce_copied" in done.tally) == (path != "roce-send")


def test_without_huge_pages_uio_is_refused(agents: Ends, huge_pages: Path) -> None:
    huge_pages.write_text("0")
    with pytest.raises(MachineError, match="huge pages of 2048 KiB are wanted and 0 are free") as caught:
        agents.run(Setting(path="roce-send", link="uio", **COMMON))
    assert "nr_hugepages" in caught.value.remedy


@pytest.mark.parametrize("link", ["packet-ring", "xdp"])
@pytest.mark.parametrize("path", VERBS)
def test_over_rings_of_the_kernels_driver(agents: Ends, path: str, link: str) -> None:
    mtu = 1024  # what AF_XDP's chunks hold of the longer wire's is less than a packet of its MTU
    setting = Setting(path=path, pattern="stream", size=5000, window=16, link=link, mtu=mtu, check_every=1, **COMMON)
    outcome = agents.run(setting)
    checked(outcome, path, "stream")
    assert all(done.chosen["netdev"] == guest_nics.NICS[role] for role, done in outcome.done.items())
