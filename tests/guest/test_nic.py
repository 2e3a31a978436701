"""The driver on emulated hardware: the guest's second 82574L in hwrx's hands, the first in the kernel's.

Both are on one segment. Each test takes the NIC and gives it back; what it was before is compared at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from nic_frames import KIND, LIMIT, OTHER, OURS, Kernel, frame, number_of, peeked, received

import hwrx.nic
from hwrx.commands.nic import nic as command
from hwrx.errors import MachineError, PathError, UsageError
from hwrx.host import tools, undo
from hwrx.nic import pci
from hwrx.nic import registers as reg
from hwrx.nic.e1000e import E1000e
from hwrx.wires import guest_nics, topology
from hwrx.wires.made import Made


@pytest.fixture(scope="module")
def segment() -> Iterator[Made]:
    with topology.build_topology("nic") as made:
        yield made


@pytest.fixture
def kernel(segment: Made) -> Iterator[Kernel]:
    end = Kernel()
    yield end
    end.socket.close()


def own(address: str = guest_nics.NIC_ADDRESSES["server"]) -> dict[str, tuple[str, ...]]:
    return {"own": (address,)}


@contextlib.contextmanager
def taken(**options: object) -> Iterator[E1000e]:
    with hwrx.nic.open_nic(OURS, **own(), **options) as nic:  # type: ignore[arg-type]
        yield nic


def state() -> dict[str, object]:
    """What must be the same after a NIC was taken and given back."""
    nic = pci.find_nic(OURS)
    shown = subprocess.run(
        ["ip", "-oneline", "-4", "addr", "show", "dev", guest_nics.NICS["server"]],
        capture_output=True,
        text=True,
        check=True,
    )
    neighbours = subprocess.run(["ip", "neigh", "show", "nud", "permanent"], capture_output=True, text=True, check=True)
    return {
        "driver": nic.driver,
        "netdev": nic.netdev,
        "addresses": shown.stdout.split("inet")[1:],
        "neighbours": sorted(neighbours.stdout.splitlines()),
        "kept": list(pci.KEPT.glob("*")),
        "up": "1" if (Path("/sys/class/net") / guest_nics.NICS["server"] / "carrier").read_text() == "1\n" else "0",
    }


@pytest.fixture(autouse=True)
def as_it_was(segment: Made) -> Iterator[None]:
    before = state()
    yield
    assert state() == before


# --- packets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "interrupt"),
    [("vfio", None), ("vfio", "msix"), ("vfio", "msi"), ("vfio", "intx"), ("uio", None), ("uio", "intx")],
)
def test_every_frame_byte_for_byte_both_ways(kernel: Kernel, access: str, interrupt: str | None) -> None:
    if access == "uio":
        Path("/proc/sys/vm/nr_hugepages").write_text("16\n")
    sent = [frame(i, size=60 + i % 1400) for i in range(500)]
    with taken(access=access, interrupt=interrupt) as nic:
        assert nic.device.access == access
        assert nic.link == 1000 and nic.mac == OURS

        def send() -> None:
            for at in range(0, len(sent), 20):
                kernel.send(*sent[at : at + 20])
                time.sleep(0.002)

        sender = threading.Thread(target=send)
        sender.start()
        got = []
        for packet in nic.receive(timeout=10):
            if packet.data[12:14].tobytes() == KIND.to_bytes(2, "big"):
                got.append(bytes(packet))
            if len(got) == len(sent):
                break
        sender.join()
        assert got == sent
        if interrupt is not None:
            assert nic.rx.interrupt is not None and nic.rx.interrupt.kind == interrupt
            assert nic.rx.interrupt.fired > 0
        statistics = nic.statistics()
        assert statistics["GPRC"] >= len(sent) and statistics["MPC"] == 0

        answers = [frame(i, size=60 + i, destination=OTHER) for i in range(300)]
        assert nic.send(answers) == len(answers)
        assert nic.flush()
        assert kernel.receive(len(answers)) == answers


def test_a_view_is_the_memory_that_the_nic_wrote(kernel: Kernel) -> None:
    with taken() as nic:
        kernel.send(frame(1), frame(2))
        views = peeked(nic, lambda numbers: 2 in numbers)
        assert [number_of(view) for view in views] == [1, 2]
        held = nic.rx.held
        # 600 further frames go once round the ring and leave what is held alone
        for at in range(600):
            kernel.send(frame(100 + at))
        time.sleep(0.2)
        assert nic.rx.held == held
        assert [number_of(view) for view in views] == [1, 2]
    # given back, and still readable
    assert [number_of(view) for view in views] == [1, 2]


def test_filters_on_the_nic(kernel: Kernel) -> None:
    stranger, group = bytes.fromhex("020000000001"), bytes.fromhex("01005e000001")
    with taken() as nic:

        def heard(*frames: bytes) -> list[int]:
            kernel.send(*frames, frame(99))
            return received(nic, 99)[:-1]

        everything = [frame(1), frame(2, destination=stranger), frame(3, destination=group)]
        everything.append(frame(4, destination=b"\xff" * 6))
        assert heard(*everything) == [1, 4]
        nic.accept("01:00:5e:00:00:01")
        assert heard(*everything) == [1, 3, 4]
        nic.set_promiscuous(True)
        assert heard(*everything) == [1, 2, 3, 4]


def test_throttled_interrupts_are_fewer(kernel: Kernel) -> None:
    fired, took = {}, {}
    for microseconds in (0, 10_000):
        began = time.monotonic()
        with taken(interrupt="msix", throttle=microseconds) as nic:
            stop = time.monotonic() + 0.5
            sender = threading.Thread(target=lambda: [kernel.send(frame(i)) or time.sleep(0.001) for i in range(200)])
            sender.start()
            while time.monotonic() < stop:
                if nic.rx.wait_for(0.05):
                    nic.rx.drain()
            sender.join()
            assert nic.rx.interrupt is not None
            fired[microseconds] = nic.rx.interrupt.fired
            took[microseconds] = time.monotonic() - began
    assert fired[0] > 0
    # one in 10 ms, where a machine that is not busy has one for each of the frames, 1 ms apart
    assert 0 < fired[10_000] <= took[10_000] / 0.010 + 2, (fired, took)


# --- faults --------------------------------------------------------------------------------------------------------


def test_ring_full_loses_the_newest_counts_them_and_recovers_in_order(kernel: Kernel) -> None:
    with taken(rx=64) as nic:
        kernel.send(*(frame(i) for i in range(100)))
        first = [number_of(view) for view in peeked(nic, lambda numbers: len(numbers) >= 63)]
        assert first == list(range(63))
        lost = nic.statistics()["MPC"] + nic.statistics()["RNBC"]
        assert any("the ring was full" in sentence for sentence in nic.diagnose()) == (lost > 0)
        nic.rx.release(len(first))
        later = [number_of(packet.data) for packet in nic.receive(timeout=0.5)]
        # the segment keeps a few and brings them late; then new ones come, all of them, in order
        kernel.send(*(frame(i) for i in range(1000, 1040)))
        fresh = received(nic, 1039)
        assert [number for number in fresh if number >= 1000] == list(range(1000, 1040))
        assert not {*later, *fresh} & set(first)


def test_an_address_that_the_iommu_refuses(kernel: Kernel) -> None:
    with taken(guard=True) as nic:
        nic.rx.table[1, 0] = 0x3F_0000_0000  # mapped for nobody
        kernel.send(frame(1), frame(2), frame(3))
        assert [number_of(view) for view in peeked(nic, lambda numbers: 3 in numbers)] == [1, 3]
        assert nic.rx.counts["unwritten"] == 1
        with pytest.raises(PathError, match="an IOMMU refuses addresses of the ring"):
            nic.check()
        nic.rx.release(2)


def test_without_the_guard_the_stale_buffer_is_delivered_and_looks_like_an_old_frame(kernel: Kernel) -> None:
    with taken(rx=64) as nic:
        kernel.send(*(frame(i) for i in range(63)))
        assert received(nic, 62) == list(range(63))
        kernel.send(frame(63))  # so many come at once, and each of the buffers has held a frame
        assert received(nic, 63) == [63]
        slot = nic.rx.fresh
        nic.rx.table[slot, 0] = 0x3F_0000_0000
        kernel.send(frame(1000), frame(1001))
        seen = received(nic, 1001)
        assert seen[-1] == 1001 and 1000 not in seen and len(seen) == 2


def test_a_frame_over_several_buffers_is_dropped_and_counted(kernel: Kernel) -> None:
    with taken(buffer=256, long_frames=True) as nic:
        kernel.send(frame(1), frame(2, size=1400), frame(3))
        assert received(nic, 3) == [1, 3]
        assert nic.rx.counts["oversize"] == 1


def test_a_reset_under_us_is_seen_and_mended(kernel: Kernel) -> None:
    with taken() as nic:
        kernel.send(frame(1))
        assert received(nic, 1) == [1]
        # what a reset leaves; QEMU 7.2's CTRL.RST resets the station's address alone
        for register in (reg.RCTL, reg.TCTL, reg.RDBAL, reg.RDH, reg.RDT, reg.IMC):
            nic.bar.write(register, 0)
        with pytest.raises(PathError, match="somebody reset the NIC"):
            next(nic.receive(timeout=5))
        nic.start()
        assert nic.wait_for_link(5)
        kernel.send(frame(2))
        assert number_of(next(nic.receive(timeout=5)).data) == 2


def test_bus_master_off_is_seen_and_mended(kernel: Kernel) -> None:
    with taken() as nic:
        nic.device.bus_master = False
        kernel.send(frame(1))
        with pytest.raises(PathError, match="bus mastering is off"):
            next(nic.receive(timeout=5))
        nic.device.bus_master = True
        nic.start()
        assert nic.wait_for_link(5)
        kernel.send(frame(2))
        assert received(nic, 2)[-1] == 2


def test_the_link_goes_down_and_comes_back(kernel: Kernel) -> None:
    with taken() as nic:
        nic.renegotiate()
        assert nic.link == 0
        assert "the link is down" in nic.diagnose()
        assert nic.wait_for_link(10)
        kernel.send(frame(7))
        assert received(nic, 7)[-1] == 7


def test_an_interrupt_that_is_lost_costs_time_and_no_packet(kernel: Kernel) -> None:
    with taken(interrupt="msix") as nic:
        nic.rx.drain()
        done = threading.Event()

        def mask_then_send() -> None:
            while not nic.bar.read(reg.IMS):
                time.sleep(0.001)
            nic.bar.write(reg.IMC, reg.INT_ALL)
            kernel.send(frame(1))
            done.set()

        thread = threading.Thread(target=mask_then_send)
        thread.start()
        assert nic.rx.wait_for(10)
        thread.join()
        assert nic.rx.lost >= 1
        assert number_of(nic.rx.peek()[0]) == 1


def test_a_spurious_interrupt_is_slept_over(kernel: Kernel) -> None:
    with taken(interrupt="msix") as nic:
        nic.rx.drain()
        thread = threading.Timer(0.05, lambda: nic.bar.write(reg.ICS, reg.INT_RXQ0))
        thread.start()
        deadline = time.monotonic() + LIMIT
        while not nic.rx.spurious:
            assert not nic.rx.wait_for(0.3)
            assert time.monotonic() < deadline
        thread.join()


# --- taking and giving back ----------------------------------------------------------------------------------------


def test_a_nic_in_use_is_refused(segment: Made) -> None:
    with pytest.raises(
        MachineError, match=rf"{guest_nics.NICS['server']} is in use: it has the address 198.18.78.2/24"
    ):
        hwrx.nic.open_nic(OURS)
    subprocess.run(["ip", "route", "add", "default", "dev", guest_nics.NICS["server"]], check=True)
    try:
        with pytest.raises(MachineError, match="carries the default route"):
            hwrx.nic.open_nic(OURS, **own())
    finally:
        subprocess.run(["ip", "route", "del", "default", "dev", guest_nics.NICS["server"]], check=True)


def test_an_open_connection_is_a_use(segment: Made) -> None:
    with (
        socket.create_server((guest_nics.NIC_ADDRESSES["server"], 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        assert any("open connection" in reason for reason in pci.uses_of(pci.find_nic(OURS)))
        with pytest.raises(MachineError, match="2 open connections use its address"):
            hwrx.nic.open_nic(OURS)
    assert pci.find_nic(OURS).driver == "e1000e"


def test_a_nic_that_is_no_82574(segment: Made) -> None:
    with pytest.raises(UsageError, match="ne2k_pci, which this driver does not know"):
        hwrx.nic.open_nic(guest_nics.PIO_NICS["client"])


def test_an_exception_gives_the_nic_back(segment: Made) -> None:
    with pytest.raises(ZeroDivisionError), taken() as nic:
        assert pci.find_nic(OURS).driver == "vfio-pci"
        _ = 1 / 0
    assert nic.closed


def test_two_processes_cannot_have_it(segment: Made) -> None:
    with taken() as nic, program(f"import hwrx.nic; hwrx.nic.open_nic({nic.device.address!r})") as other:
        _, words = other.communicate(timeout=60)
        assert "in use by another process" in words


def program(text: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-X", "faulthandler", "-c", text]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that has the NIC and receives."""
    with program(HOLD) as running:
        assert running.stdout is not None and running.stderr is not None
        word = running.stdout.readline()
        assert word == "open\n", running.stderr.read()
        yield running
        running.wait(60)


HOLD = f"""
import hwrx.nic
nic = hwrx.nic.open_nic({OURS!r}, own=({guest_nics.NIC_ADDRESSES["server"]!r},))
print("open", flush=True)
for packet in nic.receive(): pass
"""


def test_sigterm_gives_the_nic_back(kernel: Kernel) -> None:
    with holder() as running:
        kernel.send(frame(1))
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 128 + signal.SIGTERM
    assert pci.find_nic(OURS).driver == "e1000e"


def test_after_a_kill_its_keeper_gives_the_nic_back(kernel: Kernel) -> None:
    with holder() as running:
        running.kill()
    journals = f"{running.pid}-*.json"
    deadline = time.monotonic() + 120  # a Python that is started, in an emulated guest
    while list(undo.JOURNALS.glob(journals)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list(undo.JOURNALS.glob(journals))
    assert pci.find_nic(OURS).driver == "e1000e"
    assert pci.find_nic(OURS).netdev == guest_nics.NICS["server"]


def test_after_a_kill_of_the_keeper_too_it_can_be_opened_again_and_is_given_back_then(kernel: Kernel) -> None:
    with holder() as running:
        keepers = [
            int(pid) for pid in tools.run_tool("pgrep", "-f", f"hwrx-keeper {undo.JOURNALS} {running.pid}").split()
        ]
        assert len(keepers) == 1
        os.kill(keepers[0], signal.SIGKILL)
        running.kill()
    # frames still come for a NIC that nobody drives: the kernel took bus mastering away with the file descriptor
    kernel.send(*(frame(i) for i in range(100)))
    left = pci.find_nic(OURS)
    assert left.driver == "vfio-pci" and left.was == guest_nics.NICS["server"]
    with taken() as nic:
        kernel.send(frame(1))
        assert number_of(next(nic.receive(timeout=5)).data) == 1
    assert pci.find_nic(OURS).driver == "e1000e"
    assert not list(undo.JOURNALS.glob(f"{running.pid}-*.json"))


# --- the command ---------------------------------------------------------------------------------------------------


def hwrx_nic(*words: str) -> str:
    """What the command prints; here, because an emulated guest needs a minute to start another Python."""
    done = CliRunner().invoke(command, words)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_list_shows_all_four(segment: Made) -> None:
    shown = hwrx_nic("list", "--json")
    assert shown.count('"82574L"') == 2 and shown.count('"ne2k_pci"') == 2
    assert "it has the address 198.18.78.2/24" in shown


def test_bind_refuses_and_forces(segment: Made) -> None:
    with pytest.raises(MachineError, match="in use"):
        hwrx_nic("bind", OURS)
    assert "bound to vfio-pci" in hwrx_nic("bind", "--force", OURS)
    assert "driven by e1000e" in hwrx_nic("unbind", OURS)


def test_dump_shows_registers_rings_and_counters(kernel: Kernel) -> None:
    done = threading.Event()

    def send() -> None:
        while not done.wait(0.05):
            kernel.send(frame(1, size=99))

    sender = threading.Thread(target=send)
    sender.start()
    lines = hwrx_nic("dump", "--force", OURS, "--packets", "2", "--timeout", "30").splitlines()
    done.set()
    sender.join()
    assert any(line.startswith("RCTL") and " EN UPE MPE BAM " in line for line in lines)
    assert any(line.startswith("receive ring: 512 descriptors") for line in lines)
    assert sum("length    99 status DD EOP" in line for line in lines) >= 2
    assert any(line.startswith("GPRC") for line in lines)


def test_recv_writes_every_byte_to_the_file(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "packets.pcapng"
    sent = [frame(i, size=60 + 100 * i) for i in range(5)]

    def send() -> None:
        while pci.find_nic(OURS).driver != "vfio-pci":
            time.sleep(0.05)
        for _ in range(100):
            kernel.send(*sent)
            time.sleep(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    hwrx_nic("recv", "--force", OURS, "-n", "5", "-w", str(file), "--own")
    sender.join()
    data = file.read_bytes()
    assert all(one in data for one in sent)
    assert b"0000:00:" in data
