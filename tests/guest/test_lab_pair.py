"""The guest's own topology, and what the machine's commands say of it, on a kernel that has SoftRoCE."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hwrx import cli, load
from hwrx.campaign import measuring
from hwrx.control.environment import parse_environment
from hwrx.control.messages import ENDS
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools, undo
from hwrx.machine import description
from hwrx.runs import experiment, planning
from hwrx.runs.testbed import Wanted
from hwrx.verbs import devices, rxe
from hwrx.wires import topology

HWRX = [sys.executable, "-m", "hwrx"]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def hwrx(*arguments: str) -> Done:
    """Run the command in this process: starting Python takes seconds here."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
    return Done(code, out.getvalue(), err.getvalue())


def test_both_rxe_devices_have_the_gid_of_their_address() -> None:
    for end in ENDS:
        assert rxe.gid_index(topology.DEVICES[end], topology.ADDRESSES[end]) is not None


def test_the_devices_can_be_opened_without_udev() -> None:
    assert len(list(Path("/dev/infiniband").glob("uverbs*"))) >= 2


def test_a_second_pair_is_refused_in_words() -> None:
    with pytest.raises(MachineError, match="another `pair` is up"), topology.pair():
        pass
    # and what it found is still there
    assert (topology.NETDEVS / "hwrx0").exists()
    assert (rxe.VERBS / "rxe0").exists()


def test_a_namespace_has_no_rxe_but_a_wire() -> None:
    with topology.netns() as made:
        client, server = (parse_environment(made.peers[end]).name for end in ENDS)
        script = (
            f"import socket; s = socket.create_server(('{made.places['server'].address}', 9)); print(s.accept()[1][0])"
        )
        listener = subprocess.Popen(
            ["ip", "netns", "exec", server, sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        )
        connect = f"""
import socket, time
while True:
    try:
        socket.create_connection(('{made.places["server"].address}', 9)); break
    except ConnectionRefusedError:
        time.sleep(.1)
"""
        subprocess.run(["ip", "netns", "exec", client, sys.executable, "-c", connect], check=True, timeout=120)
        assert listener.communicate(timeout=120)[0].strip() == made.places["client"].address


def test_devices_lists_what_is_there_as_pyverbs_and_sysfs_know_it() -> None:
    found = {device.name: device for device in devices.verbs_devices()}
    assert {"rxe0", "rxe1"} <= found.keys()
    for end in ENDS:
        device = found[topology.DEVICES[end]]
        assert device.asked == "pyverbs"
        assert device.software
        (port,) = device.ports
        assert (port.state, port.link_layer, port.netdev) == ("ACTIVE", "Ethernet", topology.LINKS[end])
        assert (port.active_mtu, port.max_mtu) == (1024, 4096)
        assert topology.ADDRESSES[end] in [gid.address for gid in port.gids]
        assert all(gid.type == "RoCE v2" for gid in port.gids)
        assert device.limits["max_qp"] > 0
        # the other way to learn it says the same, as far as it knows
        from_sysfs = devices._from_sysfs(device.name, "")
        assert from_sysfs.ports[0].gids == port.gids
        assert (from_sysfs.ports[0].state, from_sysfs.node_guid) == (port.state, device.node_guid)


def test_sockets_share_the_wire_of_a_verbs_device() -> None:
    for device in devices.verbs_devices():
        if device.name == "rxe1":
            place = description.place_of(device)
    assert (place.address, place.netdev, place.verbs) == ("198.18.77.2", "hwrx1", "rxe1")


def test_the_command_devices_prints_json_that_holds_them() -> None:
    done = hwrx("devices", "--json")
    assert done.returncode == 0, done.stderr
    assert {"rxe0", "rxe1"} <= {device["name"] for device in json.loads(done.stdout)}


def test_devices_named_on_the_command_line_are_compared_without_a_virtual_machine(tmp_path: Path) -> None:
    """All that `hwrx compare --device rxe0,rxe1` does, but for the report: that takes a minute in an emulated guest."""
    paths = ["udp", "tcp", "rdma-send", "rdma-write"]
    described = experiment.from_options(
        paths=paths, sizes=[64], waits=["poll"], repeats=1, messages=200, check_every=1, topology="hosts"
    )
    outcome, directory = measuring.measure_plan(
        planning.plan_run(described), Wanted(devices=("rxe0", "rxe1")), tmp_path
    )
    assert not outcome.failed
    run = load(directory)
    assert (run.status, run.manifest["wire"]) == ("complete", "rxe0 to local rxe1")
    assert {row["path"] for row in run.rows} == set(paths)
    for row in run.rows:
        assert row["delivered"] == row["expected"] > 0, row
        assert row["checked"] == 2 * row["expected"], row  # each end checks what comes to it
        assert not row["lost"] + row["duplicated"] + row["reordered"] + row["corrupt"], row


def test_the_doctor_finds_verbs_here() -> None:
    done = hwrx("doctor", "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["verbs device"]["fine"]
    assert findings["SoftRoCE module"]["fine"]
    assert (done.returncode == 0) == report["healthy"]
    assert all(finding["fine"] or finding["remedy"] for finding in report["findings"])


def test_the_manifest_knows_the_guest_for_what_it_is() -> None:
    about = description.describe_machine()
    assert about["kernel"]["clocksource"] == "tsc"
    assert "clocksource=tsc" in about["kernel"]["command_line"]
    assert "rdma_rxe" in about["modules"]
    assert {"hwrx0", "hwrx1"} <= {nic["name"] for nic in about["nics"]}
    assert next(nic for nic in about["nics"] if nic["name"] == "hwrx0")["driver"] == "veth"
    assert "missing" not in (about["versions"]["libibverbs"], about["versions"]["pyverbs"])
    json.dumps(about)


@pytest.fixture
def spare_netdev() -> Iterator[str]:
    subprocess.run(["ip", "link", "add", "spare0", "type", "veth", "peer", "name", "spare1"], check=True)
    try:
        yield "spare0"
    finally:
        subprocess.run(["ip", "link", "delete", "spare0"], check=True)


def test_rxe_goes_up_and_down_and_the_watcher_sees_it(spare_netdev: str) -> None:
    done = hwrx("rxe", "up", spare_netdev)
    assert done.returncode == 3
    assert "the link of spare0 is down" in done.stderr
    assert f"ip link set {spare_netdev} up" in done.stderr
    for name in ("spare0", "spare1"):
        subprocess.run(["ip", "link", "set", name, "up"], check=True)

    watcher = subprocess.Popen([*HWRX, "devices", "--watch", "--json"], stdout=subprocess.PIPE)
    try:
        assert watcher.stdout is not None
        assert b'"present"' in watcher.stdout.readline()
        done = hwrx("rxe", "up", spare_netdev, "--name", "rxe7")
        assert done.returncode == 0, done.stderr
        assert "rxe7 on spare0" in done.stdout
        assert rxe.on_netdev(spare_netdev) == "rxe7"
        assert rxe.netdev_of("rxe7") == spare_netdev
        twice = hwrx("rxe", "up", spare_netdev)
        assert twice.returncode == 2
        assert "rxe7 stands on spare0 already" in twice.stderr
        done = hwrx("rxe", "down", spare_netdev)
        assert done.returncode == 0, done.stderr
        assert not (rxe.VERBS / "rxe7").exists()
        seen = events(watcher)
        assert ("add", "rxe7") in seen
        assert ("remove", "rxe7") in seen
    finally:
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(timeout=60) == 130
        watcher.stdout.close()


def events(watcher: subprocess.Popen[bytes]) -> list[tuple[str, str]]:
    """What the watcher has printed, until it is silent."""
    assert watcher.stdout is not None
    data = b""
    while select.select([watcher.stdout], [], [], 5.0)[0]:
        data += os.read(watcher.stdout.fileno(), 1 << 16)
        if b'"remove","subsystem":"infiniband"' in data:
            break
    lines = [json.loads(line) for line in data.splitlines()]
    return [(line["event"], line["name"]) for line in lines]


def test_a_device_that_is_no_rxe_is_not_taken_away() -> None:
    with pytest.raises(UsageError, match="no rxe device 'mlx5_0'"):
        rxe.take_down("mlx5_0")
    done = hwrx("rxe", "up", "no-such-netdev")
    assert done.returncode == 2
    assert "there is no netdev 'no-such-netdev'" in done.stderr
    assert "hwrx0" in done.stderr


KILLED = """
import sys, time
from hwrx.wires import topology
# another pair's names: this one's are in use
topology.LINKS.update(client="other0", server="other1")
topology.DEVICES.update(client="rxe8", server="rxe9")
topology.ADDRESSES.update(client="198.19.77.1", server="198.19.77.2")
topology.ADDRESSES_V6.update(client="2001:2:0:78::1", server="2001:2:0:78::2")
with topology.pair():
    print("up", flush=True)
    time.sleep(1000)
"""


def test_a_pair_whose_process_and_keeper_were_killed_is_mended() -> None:
    setting = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
    before = setting.read_text()
    setting.write_text("2\n")
    try:
        child = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert setting.read_text() == "0\n"
        assert rxe.on_netdev("other0") == "rxe8"
        subprocess.run(["pkill", "-KILL", "-f", f"hwrx-keeper {undo.JOURNALS} {child.pid} "], check=True)
        child.kill()
        child.wait()
        child.stdout.close()
        assert (rxe.VERBS / "rxe8").exists()
        assert hwrx("lab", "down").stdout == f"taken down: a veth pair with rxe devices, left by process {child.pid}\n"
        assert setting.read_text() == "2\n"
        assert not (rxe.VERBS / "rxe8").exists()
        assert not (topology.NETDEVS / "other0").exists()
        assert undo.mend_leftovers() == []
        assert hwrx("lab", "down").stdout == "nothing is left over\n"
    finally:
        setting.write_text(before)


def test_a_port_with_more_gids_than_a_page_shows_all() -> None:
    netdev, device = topology.LINKS["client"], topology.DEVICES["client"]
    more = [f"198.18.{200 + number // 250}.{number % 250 + 1}/32" for number in range(300)]
    try:
        tools.run_tool("ip", "-batch", "-", given="\n".join(f"address add {address} dev {netdev}" for address in more))
        # the kernel fills the table on a work queue
        tools.wait_until(lambda: rxe.gid_index(device, more[-1].split("/")[0]) is not None, "the last GID")
        found = next(each for each in devices.verbs_devices() if each.name == device)
        addresses = {gid.address for gid in found.ports[0].gids}
        assert found.asked == "pyverbs" and addresses >= {address.split("/")[0] for address in more}
        assert {gid.address for gid in devices._from_sysfs(device, "").ports[0].gids} == addresses
    finally:
        tools.run_tool("ip", "-batch", "-", given="\n".join(f"address delete {each} dev {netdev}" for each in more))


def test_one_who_is_not_root_is_told() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *HWRX, "rxe", "up", "hwrx0"], capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "needs root" in done.stderr
