"""Network devices of a namespace made for the test: what uses them, and that they get back all that they had."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwrx.errors import MachineError
from hwrx.host import netns, tools
from hwrx.nic import belongings, uses

DEVICE = "hwtest0"
ADDRESS = "192.0.2.1"


@pytest.fixture
def space() -> Iterator[str]:
    """A namespace in which this thread is, with a veth pair whose first end has an address."""
    name = f"hwrx-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with netns.entered_namespace(name):
            ip("link add", DEVICE, "type veth peer name hwtest1")
            ip("link set", DEVICE, "up")
            ip("link set hwtest1 up")
            ip(f"address add {ADDRESS}/24 dev", DEVICE)
            yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def ip(*words: str) -> str:
    return tools.run_tool("ip", *" ".join(words).split())


@pytest.fixture
def own_sys(space: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """/sys as this namespace sees it: the one of the machine shows the devices of its own."""
    subprocess.run(["mount", "-t", "sysfs", "sysfs", tmp_path], check=True)
    for module in (belongings, uses):
        monkeypatch.setattr(module, "NETDEVS", tmp_path / "class/net")
    yield
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def found() -> list[str]:
    return uses.find_uses(DEVICE, belongings.read_tables(DEVICE), own=(ADDRESS,))


pytestmark = pytest.mark.usefixtures("own_sys")


def test_a_device_that_nothing_uses_is_free() -> None:
    assert found() == []
    assert uses.find_uses(DEVICE, belongings.read_tables(DEVICE)) == [f"it has the address {ADDRESS}/24"]


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ([f"link add link {DEVICE} name hwtest.7 type vlan id 7"], ["hwtest.7 stands on it"]),
        ([f"link add link {DEVICE} name hwmac type macvlan mode bridge"], ["hwmac stands on it"]),
        (["link add hwbr type bridge", f"link set {DEVICE} master hwbr"], ["it belongs to hwbr, a bridge"]),
        (
            [f"route add 198.51.100.0/24 via 192.0.2.2 dev {DEVICE} table 7"],
            ["it carries the route to 198.51.100.0/24"],
        ),
        (["-6 route add default dev " + DEVICE], ["it carries the default route"]),
        ([f"route add default via 192.0.2.2 dev {DEVICE} table 99"], ["it carries the default route"]),
    ],
)
def test_what_stands_on_a_device_counts_as_a_use(commands: list[str], words: list[str]) -> None:
    for command in commands:
        ip(command)
    assert found() == words


def test_a_vlan_of_another_namespace_counts_as_a_use(space: str) -> None:
    other = f"{space}-b"
    subprocess.run(["ip", "netns", "add", other], check=True)
    # a namespace without a process shows only where one can look: in one of its processes
    holder = subprocess.Popen(["ip", "netns", "exec", other, "sleep", "600"])
    try:
        ip(f"link add link {DEVICE} name hwtest.9 netns {other} type vlan id 9")
        assert found() == ["hwtest.9 (vlan) in another network namespace stands on it"]
    finally:
        holder.kill()
        holder.wait()
        subprocess.run(["ip", "netns", "delete", other], check=True)


def test_packet_sockets_of_other_processes_count_as_a_use_and_our_own_do_not() -> None:
    program = f"import socket, time; s = socket.socket(17, 3, 0x300); s.bind(({DEVICE!r}, 3)); print(flush=True)\n"
    with subprocess.Popen(["python3", "-c", program + "time.sleep(600)"], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline()
            assert found() == [f"packet sockets of python3 (process {other.pid}) are bound to it"]
        finally:
            other.kill()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as ours:
        ours.bind((DEVICE, 3))
        assert found() == []


def test_filters_and_trees_that_could_not_be_given_back_count_as_a_use() -> None:
    tools.run_tool("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    assert found() == ["it has filters of traffic control (clsact)"]
    tools.run_tool("tc", "qdisc", "delete", "dev", DEVICE, "clsact")
    tools.run_tool("tc", "qdisc", "add", "dev", DEVICE, "root", "handle", "1:", "prio")
    tools.run_tool("tc", "qdisc", "add", "dev", DEVICE, "parent", "1:1", "pfifo", "limit", "7")
    assert [words.split(" (")[0] for words in found()] == ["it has a tree of queueing disciplines"]


def change_everything() -> None:
    ip("link set", DEVICE, "down")
    for command in (
        "address 02:00:00:00:00:77",
        "mtu 1400",
        "txqueuelen 123",
        "promisc on",
        "allmulticast on",
        "alias something",
    ):
        ip("link set", DEVICE, command)
    for name, value in (
        ("ipv4/conf/{}/rp_filter", "2"),
        ("ipv4/conf/{}/arp_ignore", "1"),
        ("ipv4/neigh/{}/retrans_time_ms", "777"),
        ("ipv6/conf/{}/accept_ra", "0"),
        ("ipv6/conf/{}/hop_limit", "33"),
    ):
        Path("/proc/sys/net", name.format(DEVICE)).write_text(value)
    (belongings.NETDEVS / DEVICE / "queues/rx-0/rps_cpus").write_text("1")
    (belongings.NETDEVS / DEVICE / "gro_flush_timeout").write_text("20000")
    tools.run_tool("ethtool", "-K", DEVICE, "tso", "off", "gro", "on")
    ip("link set", DEVICE, "up")
    tools.run_tool("tc", "qdisc", "replace", "dev", DEVICE, "root", "handle", "8001:", "pfifo", "limit", "55")
    ip(f"address add 2001:2::7/64 dev {DEVICE} nodad")
    ip(f"neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev {DEVICE} nud permanent")
    ip(f"route add 198.51.100.0/24 via 192.0.2.2 dev {DEVICE} table 7 metric 5 mtu 1300")
    ip(f"-6 route add 2001:2:0:9::/64 via 2001:2::9 dev {DEVICE} metric 77")


def test_a_device_that_comes_back_has_all_that_it_had() -> None:
    """The device is made anew, as one whose driver came back is, and gets everything from what was kept."""
    fresh = belongings.read_belongings(DEVICE, belongings.read_tables(DEVICE))
    change_everything()
    had = belongings.read_belongings(DEVICE, belongings.read_tables(DEVICE))
    assert had.mac == "02:00:00:00:00:77" and had.qdisc.startswith("8001: pfifo limit 55")
    assert len(had.routes) == 2 and had.features != fresh.features
    ip("link delete", DEVICE)
    ip("link add", DEVICE, "type veth peer name hwtest1")
    ip("link set hwtest1 up")
    belongings.restore_belongings(had)
    back = belongings.read_belongings(DEVICE, belongings.read_tables(DEVICE))
    for field in had.__struct_fields__:
        assert getattr(back, field) == getattr(had, field), field


def test_what_cannot_be_given_back_is_named_and_all_else_is() -> None:
    had = belongings.read_belongings(DEVICE, belongings.read_tables(DEVICE))
    had.qdisc = "1: no-such-discipline"
    had.mtu = 1300
    with pytest.raises(MachineError, match=f"{DEVICE} is back, but not as it was: .*no-such-discipline"):
        belongings.restore_belongings(had)
    assert belongings.read_tables(DEVICE).link["mtu"] == 1300
