"""Topologies on this machine's own kernel: what is put up is taken down, on every way out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hwrx.control.environment import parse_environment
from hwrx.errors import MachineError
from hwrx.host import undo
from hwrx.verbs import rxe
from hwrx.wires import topology


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def journals() -> set[str]:
    return {file.name for file in undo.JOURNALS.glob("*.json")}


def test_netns_carries_packets_and_leaves_nothing() -> None:
    before = namespaces(), journals()
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
        assert subprocess.check_output(client, timeout=20) == b"b'through'\n"
        assert server.wait(timeout=20) == 0
    assert (namespaces(), journals()) == before


def test_an_error_inside_takes_it_down_as_well() -> None:
    before = namespaces(), journals()
    with pytest.raises(ZeroDivisionError), topology.netns():
        _ = 1 / 0
    assert (namespaces(), journals()) == before


def test_what_a_killed_process_left_is_mended_by_the_next() -> None:
    before = namespaces(), journals()
    program = "import time; from hwrx.wires import topology\n"
    program += "with topology.netns(): print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(namespaces() - before[0]) == 2
    assert any(str(child.pid) in line for line in undo.mend_leftovers())
    assert (namespaces(), journals()) == before


def test_a_living_process_keeps_its_topology() -> None:
    with topology.netns() as made:
        assert undo.mend_leftovers() == []
        assert parse_environment(made.peers["client"]).name in namespaces()


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
    before = namespaces(), journals()
    program = "import time\nfrom hwrx.host.interruption import Ending\nfrom hwrx.wires import topology\n" + (
        "with Ending(), topology.netns(): print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=20)
    child.stdout.close()
    assert (namespaces(), journals()) == before


def test_no_rxe_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # a kernel without the module cannot be had on demand: the module's name is made one that no kernel has
    monkeypatch.setattr(rxe, "RXE_MODULE", "hwrx_no_such_module")
    with pytest.raises(MachineError, match="no module hwrx_no_such_module") as caught:
        rxe.load_rxe()
    assert "virtual machine" in caught.value.remedy
