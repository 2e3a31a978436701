"""Where a verbs device lives, from what its port's table of GIDs says."""

from __future__ import annotations

import pytest

from hwrx.errors import MachineError
from hwrx.verbs import devices
from hwrx.verbs.devices import Device, Gid, Port

GIDS = [
    Gid(0, "fe80::1", "RoCE v2", "eth0"),
    Gid(1, "::ffff:192.0.2.1", "RoCE v1", "eth0"),
    Gid(2, "::ffff:192.0.2.1", "RoCE v2", "eth0"),
    Gid(3, "::ffff:198.51.100.1", "RoCE v2", "eth0.7"),
    Gid(4, "fe80::1", "RoCE v2", "eth0.7"),
]


def device(*gids: Gid, state: str = "ACTIVE", netdev: str | None = "eth0") -> Device:
    port = Port(number=1, state=state, link_layer="Ethernet", rate="", netdev=netdev, gids=list(gids))
    return Device("mlx5_0", "mlx5_core", False, "", "", [port], {}, "sysfs")


def test_the_best_gid_is_routable_and_ipv4() -> None:
    place = devices.place_of(device(*GIDS))
    assert (place.address, place.netdev, place.verbs) == ("192.0.2.1", "eth0", "mlx5_0")


@pytest.mark.parametrize(
    ("index", "address", "netdev"),
    [(0, "fe80::1%eth0", "eth0"), (3, "198.51.100.1", "eth0.7"), (4, "fe80::1%eth0.7", "eth0.7")],
)
def test_sockets_go_by_the_netdev_of_the_gid_that_was_chosen(index: int, address: str, netdev: str) -> None:
    place = devices.place_of(device(*GIDS), gid_index=index)
    assert (place.address, place.netdev) == (address, netdev)


def test_a_vlan_whose_gid_is_the_only_routable_one_is_the_wire() -> None:
    place = devices.place_of(device(GIDS[0], GIDS[3]))
    assert (place.address, place.netdev) == ("198.51.100.1", "eth0.7")


def test_a_gid_without_a_netdev_is_its_ports() -> None:
    assert devices.place_of(device(Gid(0, "::ffff:192.0.2.1", "IB"), netdev="ib0")).netdev == "ib0"


def test_what_has_no_such_gid_or_no_active_port_is_said() -> None:
    with pytest.raises(MachineError, match="has no GID 9"):
        devices.place_of(device(*GIDS), gid_index=9)
    with pytest.raises(MachineError, match="no port of mlx5_0 is active"):
        devices.place_of(device(*GIDS, state="DOWN"))
