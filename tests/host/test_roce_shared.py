"""Our own queue pair over rings that it shares with the kernel, between two network namespaces: no NIC of ours."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cython_ext.frames.xdp_ring import XdpRing
from hwrx.control.messages import Connect, Done, Prepare, Prepared, Ready, Release, Released, Role, Setting, Start
from hwrx.control.peers import Peer, wait_for_replies
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools
from hwrx.host.netns import entered_namespace
from hwrx.wires import topology
from hwrx.wires.made import Made

MESSAGES = 200
OTHER: dict[Role, Role] = {"client": "server", "server": "client"}


class Shared:
    """Two agents on a veth pair."""

    def __init__(self, made: Made) -> None:
        self.places = made.places
        self.namespaces = made.peers
        self.peers = {role: Peer.start(made.peers[role], role) for role in OTHER}

    def set_mtu(self, mtu: int) -> None:
        for role, peer in self.namespaces.items():
            name = peer.removeprefix("netns:")
            tools.run_tool("ip", "-n", name, "link", "set", topology.LINKS[role], "mtu", str(mtu))

    def command(self, role: Role) -> list[str]:
        """What comes before a command that is to run where an end is, and before words of setpriv."""
        return ["ip", "netns", "exec", self.namespaces[role].removeprefix("netns:"), "setpriv"]

    def prepare(self, setting: Setting) -> dict[Role, Prepared]:
        return {
            role: peer.ask(
                Prepare(trial=1, role=role, setting=setting, here=self.places[role], there=self.places[OTHER[role]]),
                Prepared,
            )
            for role, peer in self.peers.items()
        }

    def run(self, setting: Setting) -> dict[Role, Done]:
        said = self.prepare(setting)
        for role, peer in self.peers.items():
            peer.send(Connect(said[OTHER[role]].remote))
        wait_for_replies(dict.fromkeys(self.peers.values(), Ready), 30)
        for role in ("server", "client"):
            self.peers[role].send(Start())  # type: ignore[index]
        done = wait_for_replies(dict.fromkeys(self.peers.values(), Done), 60)
        found = {role: done[peer] for role, peer in self.peers.items()}
        for peer in self.peers.values():
            peer.ask(Release(), Released)
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with topology.netns() as made:
        agents = Shared(made)
        yield agents
        for peer in agents.peers.values():
            peer.close()


@pytest.mark.parametrize("link", ["packet-ring", "xdp"])
@pytest.mark.parametrize("size", [64, 5000])
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["roce-send", "roce-write", "roce-write-imm", "roce-read"])
def test_every_verb_over_a_ring_that_the_kernel_fills(
    shared: Shared, path: str, pattern: str, size: int, link: str
) -> None:
    setting = Setting(
        path=path, pattern=pattern, size=size, link=link, messages=MESSAGES, warmup=0, cooldown=0, window=16,
        check_every=1, limit=20.0, patience=5.0,
    )  # fmt: skip
    done = shared.run(setting)
    assert done["client"].ended == "complete", (done["client"].error, done["server"].error)
    seen = done["server" if pattern == "stream" and path in ("roce-send", "roce-write-imm") else "client"].tally
    assert (seen["delivered"], seen["corrupt"], seen["lost"]) == (MESSAGES, 0, 0)
    receiver = done["client" if path == "roce-read" else "server"]
    # the kernel into its ring; what is in one packet is delivered there
    assert receiver.tally["cpu_copied_bytes"] >= MESSAGES * size
    in_frames = path == "roce-send" and size == 64
    assert (receiver.tally.get("roce_in_frames", 0) > 0) == in_frames
    assert (receiver.tally.get("roce_copied", 0) > 0) != in_frames


def test_the_kernel_keeps_what_is_not_for_the_queue_pair(shared: Shared) -> None:
    """AF_XDP gets the packets of one queue pair; all else on the device is the stack's, RoCE's port included."""
    setting = Setting(path="roce-send", link="xdp", wait="event", patience=1.0)
    name = {role: peer.removeprefix("netns:") for role, peer in shared.namespaces.items()}
    prepared = shared.prepare(setting)
    address = {role: place.address for role, place in shared.places.items()}
    number = prepared["server"].remote["qpn"]
    with entered_namespace(name["server"]):
        heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        heard.bind((address["server"], 4791))
        heard.settimeout(20)
    with heard, entered_namespace(name["client"]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sends:
        # the queue pair's own packet first: it would come first
        for qpn in (number, number + 0x1000):
            sends.sendto(b"\x04\x00\xff\xff\x00" + qpn.to_bytes(3, "big") + bytes(12), (address["server"], 4791))
        assert heard.recv(100)[5:8] == (number + 0x1000).to_bytes(3, "big")
    for peer in shared.peers.values():
        peer.ask(Release(), Released)


def test_a_packet_that_no_chunk_holds_is_refused(shared: Shared) -> None:
    shared.set_mtu(4300)
    try:
        with pytest.raises(UsageError, match=r"a frame of 4224 bytes does not fit a chunk") as caught:
            shared.prepare(Setting(path="roce-send", link="xdp", mtu=4096))
    finally:
        shared.set_mtu(1500)
    assert "packet-ring" in caught.value.remedy


def test_a_device_takes_one_program(shared: Shared) -> None:
    netdev, mac = topology.LINKS["server"], "02:00:00:00:00:09"
    with (
        entered_namespace(shared.namespaces["server"].removeprefix("netns:")),
        XdpRing(netdev, mac, 4791, qpn=2),
        pytest.raises(MachineError, match=r"no AF_XDP socket on hwrx\d: (bind|BPF_LINK_CREATE)") as caught,
    ):
        XdpRing(netdev, mac, 4791, qpn=3)
    assert "CONFIG_XDP_SOCKETS" in caught.value.remedy


@pytest.mark.parametrize(
    ("without", "call"),
    [
        ("-all", "Operation not permitted"),  # the socket itself: xsk_create wants CAP_NET_RAW
        ("-bpf,-sys_admin,-perfmon", "BPF_MAP_CREATE: Operation not permitted"),
    ],
)
def test_who_lacks_a_permission_is_told_what_was_refused(shared: Shared, without: str, call: str) -> None:
    netdev = topology.LINKS["server"]
    program = f"from cython_ext.frames.xdp_ring import XdpRing; XdpRing('{netdev}', '02:00:00:00:00:09', 4791)"
    child = [*shared.command("server"), f"--bounding-set={without}", f"--inh-caps={without}", sys.executable, "-c"]
    done = subprocess.run([*child, program], capture_output=True, text=True, timeout=60, check=False)
    assert f"MachineError: no AF_XDP socket on {netdev}: {call}\n  remedy: run as root" in done.stderr


@pytest.mark.parametrize("link", ["nic", "uio"])
def test_a_device_that_no_driver_of_ours_is_for_is_refused(shared: Shared, link: str) -> None:
    with pytest.raises(UsageError, match=r"hwrx\d") as caught:
        shared.prepare(Setting(path="roce-send", link=link))  # type: ignore[arg-type]
    assert caught.value.remedy


def test_an_mtu_that_the_device_does_not_have_is_refused(shared: Shared) -> None:
    with pytest.raises(UsageError, match=r"packets of 4096 bytes do not fit hwrx\d, whose MTU is 1500"):
        shared.prepare(Setting(path="roce-send", mtu=4096))
