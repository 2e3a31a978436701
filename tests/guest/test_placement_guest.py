"""Inside the guest: whose netdev a GID is, where the ends run, and the scheduler that `batch` leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_ends import ROLES, Places, ip

from hwrx.control.messages import Setting
from hwrx.control.places import Place
from hwrx.host import tools
from hwrx.machine import scheduling
from hwrx.paths import verbs_end
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.verbs import devices, rxe
from hwrx.wires import topology

VLAN, ADDRESS = "hwrx0.7", "198.18.99.1"


@pytest.fixture
def vlan(pair: Places) -> Iterator[str]:
    """A VLAN on the client's link, with an address: a GID of its own in the table of the device beneath."""
    device = topology.DEVICES["client"]
    ip("link", "add", "link", topology.LINKS["client"], "name", VLAN, "type", "vlan", "id", "7")
    try:
        ip("address", "add", f"{ADDRESS}/24", "dev", VLAN)
        ip("link", "set", VLAN, "up")
        tools.wait_until(lambda: rxe.gid_index(device, ADDRESS) is not None, "the GID of the VLAN")
        yield device
    finally:
        ip("link", "delete", VLAN)


@pytest.mark.hwrx(needs="rxe")
def test_a_gid_of_a_vlan_is_reached_by_the_vlans_netdev(vlan: str) -> None:
    (device,) = [found for found in devices.verbs_devices() if found.name == vlan]
    place = devices.place_of(device, gid_index=rxe.gid_index(vlan, ADDRESS))
    assert (place.address, place.netdev) == (ADDRESS, VLAN)
    untagged = devices.place_of(device, gid_index=rxe.gid_index(vlan, topology.ADDRESSES["client"]))
    assert untagged.netdev == topology.LINKS["client"]
    assert verbs_end.netdevs_of(vlan) == {VLAN, topology.LINKS["client"]}
    names = [found.name for found in devices.verbs_devices()]
    assert verbs_end.choose_device(Place(netdev=VLAN), names) == vlan


@pytest.mark.hwrx(needs="two CPUs")
def test_the_ends_run_apart_and_batch_lets_nobody_interrupt_for_its_trial_alone(pair: Places) -> None:
    with Pair(Bed(pair, dict.fromkeys(ROLES, "local"), {})) as ends:
        for policy, off in (("batch", True), ("normal", False)):
            setting = Setting(path="udp", messages=50, schedule=policy)  # type: ignore[arg-type]
            placement = ends.measure(0, setting).placement
            assert placement["shared"] == "nothing"
            assert placement["client"]["pinned"]
            assert ("WAKEUP_PREEMPTION" in placement.get("features_off", [])) == off
            assert scheduling.features_off() == []
