"""Topologies on this machine's own kernel: what is put up is taken down, on every way out."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hwrx import topology
from hwrx.errors import MachineError


def namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {file.name for file in folder.iterdir()} if folder.is_dir() else set()


def notes() -> set[str]:
    return {file.name for file in topology.NOTES.glob("topology-*.json")}


def test_netns_carries_packets_and_leaves_nothing() -> None:
    before = namespaces(), notes()
    with topology.netns() as made:
        spaces = {role: peer.removeprefix("netns:") for role, peer in made.peers.items()}
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
    assert (namespaces(), notes()) == before


def test_an_error_inside_takes_it_down_as_well() -> None:
    before = namespaces(), notes()
    with pytest.raises(ZeroDivisionError), topology.netns():
        _ = 1 / 0
    assert (namespaces(), notes()) == before


def test_what_a_killed_process_left_is_mended_by_the_next() -> None:
    before = namespaces(), notes()
    program = (
        "import sys, time; from hwrx import topology\nwith topology.netns(): print('up', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert len(namespaces() - before[0]) == 2
    assert any(str(child.pid) in line for line in topology.mend())
    assert (namespaces(), notes()) == before


def test_a_living_process_keeps_its_topology() -> None:
    with topology.netns() as made:
        assert topology.mend() == []
        assert made.peers["client"].removeprefix("netns:") in namespaces()


def test_a_link_mtu_is_that_of_both_ends() -> None:
    with topology.netns(mtu=topology.LARGE_MTU) as made:
        for peer in made.peers.values():
            shown = subprocess.check_output(
                ["ip", "-n", peer.removeprefix("netns:"), "link", "show", "veth0"], text=True
            )
            assert f"mtu {topology.LARGE_MTU}" in shown


def test_a_second_topology_in_one_process_is_refused_in_words() -> None:
    with topology.netns(), pytest.raises(MachineError, match="has put up a topology already"), topology.netns():
        pass


def test_no_rxe_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # a kernel without the module cannot be had on demand: the module's name is made one that no kernel has
    monkeypatch.setattr(topology, "RXE_MODULE", "hwrx_no_such_module")
    with pytest.raises(MachineError, match="no module hwrx_no_such_module") as caught:
        topology.load_rxe()
    assert "virtual machine" in caught.value.remedy
