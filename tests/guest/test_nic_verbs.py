"""Verbs, sockets and hwrx's own driver on the same two NICs, in turn, in the same agents."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from guest_ends import Ends, ip

from hwrx.control.messages import ENDS, Pattern, Role, Setting
from hwrx.errors import HwrxError, MachineError
from hwrx.nic import pci
from hwrx.runs import schedule
from hwrx.runs.testbed import Bed
from hwrx.verbs import rxe
from hwrx.wires import guest_nics, topology
from hwrx.wires.made import Made

MESSAGES = 60
KERNEL = ("e1000e", "e1000e")


@pytest.fixture(scope="module")
def segment() -> Iterator[Made]:
    with topology.build_topology("nic") as made:
        yield made


@pytest.fixture(scope="module")
def trials(segment: Made) -> Iterator[schedule.Pair]:
    with schedule.Pair(Bed(segment.places, segment.peers, {})) as ready:
        yield ready


def drivers() -> tuple[str | None, ...]:
    return tuple(nic.driver for nic in pci.list_nics() if nic.model == "82574L")


def setting(path: str, pattern: Pattern, size: int = 64) -> Setting:
    wait = "poll" if (path, pattern) == ("rdma-write", "pingpong") else "event"
    return Setting(path=path, pattern=pattern, size=size, wait=wait, messages=MESSAGES, warmup=10, check_every=1)


def sent(end: Role, what: str = "bytes") -> int:
    return int(Path(f"/sys/class/net/{guest_nics.NICS[end]}/statistics/tx_{what}").read_text())


# before the others, whose wire stands to the end
def test_a_jumbo_frame_carries_4096_bytes_of_rxe() -> None:
    with topology.build_topology("nic", mtu=4200) as made, schedule.Pair(Bed(made.places, made.peers, {})) as pair:
        for number, path in enumerate(("udp", "rdma-send"), 30):
            before = sent("client", "packets")
            measured = pair.measure(number, setting(path, "stream", 4000))
            assert measured.tally["delivered"] == measured.tally["expected"]
            assert sent("client", "packets") - before < 1.5 * measured.tally["expected"]
            assert np.all(measured.sequence == np.arange(MESSAGES))


def test_the_places_name_a_verbs_device_on_each_nic(segment: Made) -> None:
    for end in ENDS:
        device = segment.places[end].verbs
        assert device == guest_nics.NIC_DEVICES[end]
        assert rxe.netdev_of(device) == guest_nics.NICS[end] == segment.places[end].netdev


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "tcp", "rdma-send", "rdma-write", "rdma-write-imm"])
def test_every_kernel_path_crosses_the_nics(trials: schedule.Pair, path: str, pattern: Pattern) -> None:
    before = {end: sent(end) for end in ENDS}
    measured = trials.measure(1, setting(path, pattern, 1400))
    tally = measured.tally
    assert (tally["delivered"], tally["lost"], tally["corrupt"]) == (tally["expected"], 0, 0)
    assert sent("client") - before["client"] >= 1400 * MESSAGES
    assert sent("server") - before["server"] >= (1400 * MESSAGES if pattern == "pingpong" else 1)
    assert drivers() == KERNEL


def test_verbs_run_as_before_after_our_driver_had_the_nics(trials: schedule.Pair) -> None:
    for number, path in enumerate(("rdma-send", "nic-ring", "rdma-send", "nic-ring", "rdma-write-imm", "udp"), 10):
        measured = trials.measure(number, setting(path, "pingpong"))
        assert measured.tally["delivered"] == measured.tally["expected"], path
        assert drivers() == KERNEL
        for end in ENDS:
            assert rxe.on_netdev(guest_nics.NICS[end]) == guest_nics.NIC_DEVICES[end]
            assert rxe.gid_index(guest_nics.NIC_DEVICES[end], guest_nics.NIC_ADDRESSES[end]) is not None


def test_the_nics_stay_taken_for_a_trial_of_the_same_path_and_come_back_after_the_last(trials: schedule.Pair) -> None:
    for number, hold in ((20, True), (21, True), (22, False)):
        measured = trials.measure(number, setting("nic-ring", "pingpong"), hold=hold)
        assert measured.tally["delivered"] == measured.tally["expected"]
        assert drivers() == (("vfio-pci", "vfio-pci") if hold else KERNEL)
    trials.measure(23, setting("nic-ring", "pingpong"), hold=True)
    measured = trials.measure(24, setting("udp", "pingpong"))  # another one came instead
    assert measured.tally["delivered"] == measured.tally["expected"]
    assert drivers() == KERNEL
    trials.measure(25, setting("nic-ring", "pingpong"), hold=True)
    trials.renew()
    assert drivers() == KERNEL, "agents that end give back what they hold"


def test_a_nic_whose_verbs_device_is_in_use_is_not_taken(segment: Made) -> None:
    ends = Ends(segment.places)
    try:
        ends.connect(ends.prepare(setting("rdma-send", "pingpong")))
        nic = pci.find_nic(guest_nics.NICS["server"])
        with pytest.raises(
            MachineError, match=rf"{guest_nics.NIC_DEVICES['server']} on it has queue pairs of .*process"
        ):
            pci.take_nic(nic, "vfio-pci", own=(guest_nics.NIC_ADDRESSES["server"],))
        assert drivers() == KERNEL
    finally:
        ends.release()
        ends.close()
    assert pci.uses_of(nic, (guest_nics.NIC_ADDRESSES["server"],)) == []


def test_a_verbs_device_that_cannot_come_back_is_named(segment: Made) -> None:
    """Its name is given to another while the NIC is ours; as soon as that is gone, giving back mends it."""
    end = "server"
    nic = pci.find_nic(guest_nics.NICS[end])
    device = guest_nics.NIC_DEVICES[end]
    pci.take_nic(nic, "vfio-pci", own=(guest_nics.NIC_ADDRESSES[end],))
    ip("link", "add", "hwrxt0", "type", "veth", "peer", "name", "hwrxt1")
    try:
        ip("link", "set", "hwrxt0", "up")
        rxe.add_rxe(device, "hwrxt0")
        with pytest.raises(HwrxError, match=f"{guest_nics.NICS[end]} is back, but .*{device}"):
            pci.give_back(nic.address)
        rxe.remove_rxe(device)
    finally:
        subprocess.run(["ip", "link", "delete", "hwrxt0"], check=False, capture_output=True)
        pci.give_back(nic.address)
    assert rxe.on_netdev(guest_nics.NICS[end]) == device
