"""The paths of whole frames on the guest's NICs: against themselves, and against the kernel's socket."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from guest_ends import Ends

from cython_ext.core.trial import Trial
from cython_ext.frames.datagram import DatagramTransport
from cython_ext.frames.xdp_ring import XdpRing
from cython_ext.loops import loop
from hwrx import paths
from hwrx.commands.nic import nic as command
from hwrx.control.messages import Prepare, Role, Setting, Start
from hwrx.control.places import Place
from hwrx.errors import MachineError, UsageError
from hwrx.host import tools, undo
from hwrx.nic import ne2k, pci, registers
from hwrx.wires import guest_nics, topology
from hwrx.wires.made import Made

MESSAGES = 200
KIND = 0x88B5  # IEEE: for experiments


@pytest.fixture(scope="module")
def segment() -> Iterator[Made]:
    with topology.build_topology("nic") as made:
        yield made


@pytest.fixture(autouse=True)
def given_back(segment: Made) -> Iterator[None]:
    yield
    assert [nic.driver for nic in pci.list_nics() if nic.supported] == ["e1000e", "e1000e", "ne2k-pci", "ne2k-pci"]
    assert not list(pci.KEPT.glob("*"))


class End(threading.Thread):
    """One end of a trial, opened and run in a thread of its own: ports belong to the thread that asked for them."""

    def __init__(self, role: Role, setting: Setting, here: Place, there: Place) -> None:
        super().__init__(daemon=True)
        self.prepare = Prepare(trial=3, role=role, setting=setting, here=here, there=there)
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.connected = threading.Event()
        self.go = threading.Event()
        self.counts: dict[str, int] = {}
        self.link_counts: dict[str, int] = {}
        self.ended = ""
        self.chosen: dict[str, Any] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
            self.said.put({})
            self.connected.set()

    def _run(self) -> None:
        setting = self.prepare.setting
        with paths.open_endpoint(self.prepare) as end:
            self.said.put(end.describe())
            end.connect(self.heard.get(timeout=60))
            self.connected.set()
            self.go.wait(60)
            trial = Trial(
                messages=setting.messages,
                size=setting.size,
                trial=self.prepare.trial,
                batch=setting.batch,
                check_every=1,
                limit_ns=20_000_000_000,
                patience_ns=10_000_000_000,  # nothing is lost here, and a guest on a busy machine is slow
            )
            status = loop.run(trial, end, setting.pattern, self.prepare.role)
            self.ended = loop.ENDED.get(status) or end.explain(status)
            self.counts = trial.counts()
            self.link_counts = end.link.statistics() if isinstance(end, DatagramTransport) else {}
            self.chosen = end.chosen()


def trial(segment: Made, client: str, server: str, pattern: str, size: int, wait: str) -> dict[Role, End]:
    common: dict[str, Any] = {
        "pattern": pattern,
        "size": size,
        "wait": wait,
        "messages": MESSAGES,
        "limit": 20.0,
        "patience": 10.0,
    }
    ends: dict[Role, End] = {}
    for role, path in (("client", client), ("server", server)):
        other = "server" if role == "client" else "client"
        ends[role] = End(role, Setting(path=path, **common), segment.places[role], segment.places[other])
    for end in ends.values():
        end.start()
    said = {role: end.said.get(timeout=120) for role, end in ends.items()}
    for role, end in ends.items():
        end.heard.put(said["server" if role == "client" else "client"])
    for end in ends.values():
        assert end.connected.wait(60)
    for end in (ends["server"], ends["client"]):
        end.go.set()
    for end in ends.values():
        end.join(120)
        assert not end.is_alive()
        if end.error is not None:
            raise end.error
    return ends


@pytest.mark.parametrize(
    ("path", "wait"),
    [
        *((path, "event") for path in ("nic-ring", "packet-ring", "xdp", "nic-pio")),
        *((path, "poll") for path in ("nic-ring", "xdp", "nic-pio")),
    ],
)
def test_ping_pong_on_the_nics(segment: Made, path: str, wait: str) -> None:
    ends = trial(segment, path, path, "pingpong", 64, wait)
    counts = ends["client"].counts
    assert ends["client"].ended == "complete"
    assert (counts["delivered"], counts["checked"], counts["corrupt"], counts["lost"]) == (MESSAGES, MESSAGES, 0, 0)


@pytest.mark.parametrize("path", ["nic-ring", "packet-ring", "xdp", "nic-pio"])
def test_a_stream_of_long_messages_loses_nothing(segment: Made, path: str) -> None:
    ends = trial(segment, path, path, "stream", 1400, "event")
    counts = ends["server"].counts
    assert (counts["delivered"], counts["checked"], counts["corrupt"], counts["lost"]) == (MESSAGES, MESSAGES, 0, 0)
    # a CPU writes each frame once on its way to us, but for the ring that the NIC itself fills
    copied = ends["server"].link_counts["cpu_copied_bytes"]
    assert copied == 0 if path == "nic-ring" else MESSAGES * 1442 <= copied <= (MESSAGES + 20) * 1514


@pytest.mark.parametrize(("client", "server"), [("udp", "nic-ring"), ("nic-ring", "udp")])
@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
def test_the_kernels_socket_may_be_the_other_end(segment: Made, client: str, server: str, pattern: str) -> None:
    ends = trial(segment, client, server, pattern, 256, "event")
    counts = ends["client" if pattern == "pingpong" else "server"].counts
    assert (counts["delivered"], counts["corrupt"], counts["lost"]) == (MESSAGES, 0, 0)
    ours = ends["client" if client == "nic-ring" else "server"]
    theirs = "server" if client == "nic-ring" else "client"
    assert ours.chosen["peer_mac"] == guest_nics.NIC_HARDWARE[theirs]  # it was asked for: a socket does not say it


@pytest.fixture
def abandoned(segment: Made) -> Iterator[Ends]:
    """Two agents in the middle of a trial that has no end of its own."""
    ends = Ends(segment.places)
    setting = Setting(path="nic-ring", messages=10_000_000, wait="event", limit=30.0)
    ends.connect(ends.prepare(setting))
    for peer in ends.peers.values():
        peer.send(Start())
    assert [nic.driver for nic in pci.list_nics() if nic.supported][:2] == ["vfio-pci", "vfio-pci"]
    yield ends
    ends.close()


def test_agents_whose_controller_goes_away_give_the_nics_back(abandoned: Ends) -> None:
    abandoned.close()  # as the end of the controller does: `given_back` looks at what they left


def test_an_agent_that_is_killed_in_a_trial_leaves_a_nic_that_unbind_mends(abandoned: Ends) -> None:
    held = pci.kept_state(pci.find_nic(guest_nics.NICS["server"]).address)
    assert held is not None
    pid = held.holder.split("-")[0]
    tools.run_tool("pkill", "-KILL", "-f", f"hwrx-keeper {undo.JOURNALS} {pid} ")  # or it might be first
    abandoned.kill("server")
    abandoned.close()
    left = [nic for nic in pci.list_nics() if nic.driver == "vfio-pci"]
    assert [nic.was for nic in left] == [guest_nics.NICS["server"]]
    done = CliRunner().invoke(command, ["unbind", left[0].address])
    assert f"driven by e1000e as {guest_nics.NICS['server']}" in done.output
    # somebody else has it by the time that the journal is carried out, and keeps it
    pci.take_nic(pci.inspect_nic(left[0].address), "vfio-pci", own=(guest_nics.NIC_ADDRESSES["server"],))
    try:
        assert [line.rsplit(" ", 1)[1] for line in undo.mend_leftovers()] == [pid]
        assert pci.inspect_nic(left[0].address).driver == "vfio-pci"
    finally:
        pci.give_back(left[0].address)


def test_a_nic_that_several_give_back_at_once_has_its_link(segment: Made) -> None:
    """A keeper, somebody at a terminal and a program that mends: whoever is late finds it given back."""
    nic = pci.find_nic(guest_nics.NICS["server"])
    pci.take_nic(nic, "vfio-pci", own=(guest_nics.NIC_ADDRESSES["server"],), holder="1-0000")
    program = f"from hwrx.nic.pci import give_back; give_back({nic.address!r}, '1-0000')"
    words = [sys.executable, "-P", "-c", program]
    several = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(each.communicate(timeout=300)[1], each.returncode) for each in several] == [("", 0)] * 4
    assert (pci.DEVICES / nic.address / "config").read_bytes()[registers.PCI_COMMAND] & registers.PCI_COMMAND_MASTER
    assert Path("/sys/class/net", guest_nics.NICS["server"], "carrier").read_text() == "1\n"
    assert not list(pci.KEPT.parent.glob("*.lock"))


def test_a_place_without_the_hardware_is_named(segment: Made) -> None:
    for path, words in (("nic-ring", "needs a network device"), ("nic-pio", "needs an NE2000")):
        prepare = Prepare(trial=1, role="client", setting=Setting(path=path), here=Place(), there=Place())
        with pytest.raises(UsageError, match=words):
            paths.open_endpoint(prepare)


def test_xdp_says_why_it_copies(segment: Made) -> None:
    netdev, mac = guest_nics.NICS["client"], guest_nics.NIC_HARDWARE["client"]
    with XdpRing(netdev, mac, 40_000) as ring:
        assert not ring.zero_copy
        assert ring.why_copy == "the device's driver has no zero-copy"  # e1000e of every kernel so far
    with XdpRing(netdev, mac, 40_000, zero_copy=False) as ring:
        assert ring.why_copy == ""
    with pytest.raises(MachineError, match=rf"AF_XDP on {netdev} cannot be zero-copy: the device's driver has no"):
        XdpRing(netdev, mac, 40_000, zero_copy=True)


def test_a_setting_that_wants_zero_copy_is_refused_by_a_driver_that_copies(segment: Made) -> None:
    place = segment.places["client"]

    def prepare(setting: Setting) -> Prepare:
        return Prepare(trial=1, role="client", setting=setting, here=place, there=segment.places["server"])

    with pytest.raises(MachineError, match="cannot be zero-copy: the device's driver has no zero-copy") as caught:
        paths.open_endpoint(prepare(Setting(path="xdp", xdp_mode="zero-copy")))
    assert "leave zero-copy out" in caught.value.remedy
    for mode, why in (("copy", False), ("auto", True)):
        endpoint = paths.open_endpoint(prepare(Setting(path="xdp", xdp_mode=mode)))  # type: ignore[arg-type]
        chosen = endpoint.chosen()
        endpoint.close()
        assert chosen["zero_copy"] is False
        assert ("copies_because" in chosen) == why


# --- programmed I/O ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "event"), [(1, False), (2, True), (4, True)])
def test_every_frame_byte_for_byte_through_the_port(segment: Made, width: int, event: bool) -> None:
    kernel = guest_nics.PIO_NICS["client"]
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(KIND)) as sender,
        ne2k.open_link(guest_nics.PIO_NICS["server"], width=width, event=event) as card,  # type: ignore[arg-type]
    ):
        subprocess.run(["ip", "link", "set", kernel, "up"], check=True)
        sender.bind((kernel, KIND))
        sender.settimeout(10)
        assert card.mac == guest_nics.PIO_HARDWARE["server"]
        ours, theirs = (bytes.fromhex(guest_nics.PIO_HARDWARE[end].replace(":", "")) for end in ("server", "client"))
        sent = [
            ours + theirs + KIND.to_bytes(2, "big") + bytes((i + k) & 0xFF for k in range(46 + 7 * i))
            for i in range(150)
        ]
        got: list[bytes] = []
        if event:
            # asleep when it comes: without its interrupt the card is looked at only each 50 ms
            late = threading.Timer(0.2, sender.send, [ours + theirs + b"\x88\xb6" + bytes(46)])
            late.start()
            assert card.receive(5.0)[0][12:14] == b"\x88\xb6"
            late.join()
            assert card.statistics()["interrupts"] > 0
        for at in range(0, len(sent), 10):
            for frame in sent[at : at + 10]:
                sender.send(frame)
            while len(got) < at + 10:
                frames = card.receive(5.0)
                assert frames
                got += [frame for frame in frames if frame[12:14] == KIND.to_bytes(2, "big")]
        assert [frame[: len(original)] for frame, original in zip(got, sent, strict=True)] == sent
        counts = card.statistics()
        assert counts["port_accesses"] * width == counts["bytes_carried"] > sum(map(len, sent))
        assert counts["out_of_step"] == 0
        for frame in sent[:20]:
            assert card.send(theirs + ours + frame[12:])
            assert sender.recv(2048)[: len(frame)] == theirs + ours + frame[12:]
        subprocess.run(["ip", "link", "set", kernel, "down"], check=True)
