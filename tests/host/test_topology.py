"""Topologies on this machine's own kernel: what is put up is taken down, on every way out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from hwrx.control.environment import parse_environment
from hwrx.errors import MachineError
from hwrx.host import netns, tools, undo
from hwrx.verbs import rxe
from hwrx.wires import topology

LIMIT = 60.0  # seconds, against hanging


def namespaces(pid: int) -> set[str]:
    """Those that a process has made, by their names: others may make some at the same time."""
    return {name for name in netns.namespace_names() if re.match(rf"hwrx-[ab]-{pid}-", name)}


def left_by(pid: int) -> set[str]:
    return namespaces(pid) | {file.name for file in undo.JOURNALS.glob(f"{pid}-*.json")}


def test_netns_carries_packets_and_leaves_nothing() -> None:
    before = left_by(os.getpid())
    with topology.netns() as made:
        spaces = {role: parse_environment(peer).name for role, peer in made.peers.items()}
        address = made.places["server"].address
        receive = f"import socket; s = socket.create_server(('{address}', 7)); s.accept()[0].sendall(b'through')"
        server = subprocess.Popen(["ip", "netns", "exec", spaces["server"], sys.executable, "-c", receive])
        send = (
            "import socket, time\n"
            "while True:\n"
            f"    try: print(socket.create_connection(('{address}', 7), 5).recv(7)); break\n"
            "    except ConnectionRefusedError: time.sleep(.05)"
        )
        client = ["ip", "netns", "exec", spaces["client"], sys.executable, "-c", send]
        assert subprocess.check_output(client, timeout=LIMIT) == b"b'through'\n"
        assert server.wait(timeout=LIMIT) == 0
    assert left_by(os.getpid()) == before


def test_an_error_inside_takes_it_down_as_well() -> None:
    before = left_by(os.getpid())
    with pytest.raises(ZeroDivisionError), topology.netns():
        _ = 1 / 0
    assert left_by(os.getpid()) == before


def test_what_a_killed_process_and_its_keeper_left_is_mended_by_the_next() -> None:
    program = "import time; from hwrx.wires import topology\n"
    program += "with topology.netns(): print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    tools.run_tool("pkill", "-KILL", "-f", f"hwrx-keeper {undo.JOURNALS} {child.pid} ")  # or it might be first
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(namespaces(child.pid)) == 2
    assert any(str(child.pid) in line for line in undo.mend_leftovers())
    assert left_by(child.pid) == set()


def test_a_living_process_keeps_its_topology() -> None:
    with topology.netns() as made:
        assert not [line for line in undo.mend_leftovers() if str(os.getpid()) in line]
        assert parse_environment(made.peers["client"]).name in namespaces(os.getpid())


def test_a_link_mtu_is_that_of_both_ends() -> None:
    with topology.netns(mtu=topology.LARGE_MTU) as made:
        for role, peer in made.peers.items():
            netdev = made.places[role].netdev
            assert netdev is not None
            shown = subprocess.check_output(
                ["ip", "-n", parse_environment(peer).name, "link", "show", netdev], text=True
            )
            assert f"mtu {topology.LARGE_MTU}" in shown


def test_two_topologies_at_once_do_not_meet() -> None:
    with topology.netns() as one, topology.netns() as other:
        assert not set(one.peers.values()) & set(other.peers.values())


def test_a_sysctl_gets_its_value_back_and_a_second_one_of_the_same_name_too() -> None:
    # in a namespace of its own: the machine's settings are not this test's
    program = """
from pathlib import Path
from hwrx.host.undo import Undo
file = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
before = file.read_text()
with Undo("a setting") as undo:
    undo.sysctl("net/ipv4/conf/all/rp_filter", "2")
    undo.sysctl("net/ipv4/conf/all/rp_filter", "1")
    assert file.read_text().strip() == "1"
assert file.read_text() == before
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stopped_process_takes_its_topology_down() -> None:
    program = "import time\nfrom hwrx.host.interruption import Ending\nfrom hwrx.wires import topology\n" + (
        "with Ending(), topology.netns(): print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=LIMIT)
    child.stdout.close()
    assert left_by(child.pid) == set()


def test_no_rxe_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # a kernel without the module cannot be had on demand: the module's name is made one that no kernel has
    monkeypatch.setattr(rxe, "RXE_MODULE", "hwrx_no_such_module")
    with pytest.raises(MachineError, match="no module hwrx_no_such_module") as caught:
        rxe.load_rxe()
    assert "virtual machine" in caught.value.remedy
