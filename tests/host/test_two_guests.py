"""Two guests on one wire, each with a kernel of its own: the ends of a comparison."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hwrx
from hwrx.errors import UsageError
from hwrx.runs import reading
from hwrx.scripting.lab import Lab
from hwrx.wires import stations

pytestmark = pytest.mark.hwrx(needs=["root", "guest"])

LIMIT = 240.0  # seconds, against hanging


def frames_of(lab: Lab, guest: str) -> int:
    return int(lab.run(["cat", f"/sys/class/net/{stations.NETDEV}/statistics/rx_packets"], end=guest).stdout)


def flows_of(path: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    return [(row, json.loads(row["by_flow"])) for row in reading.load_run(path).rows]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with hwrx.Lab("wire", runs=tmp_path_factory.mktemp("runs")) as lab:
        yield lab


def test_each_end_has_a_kernel_of_its_own_and_every_message_crosses_the_wire(lab: Lab) -> None:
    assert lab.clock == "wall"
    boots = {lab.run(["cat", "/proc/sys/kernel/random/boot_id"], end=end).stdout for end in ("client", "server")}
    assert len(boots) == 2
    before = {end: frames_of(lab, end) for end in ("client", "server")}
    # a guest that gets no processor for seconds acknowledges nothing: 4 s each, and seven times
    run = lab.compare(
        paths=["udp", "tcp", "rdma-send", "rdma-write"], sizes=[64, 4096], messages=100, repeats=1, ack_timeout=20
    )
    assert run.path.exists()
    rows = flows_of(run.path)
    assert len(rows) == 8
    sent = 0
    for row, (flow,) in rows:
        assert (flow["client"], flow["server"]) == ("client", "server")
        assert flow["posted"] == flow["delivered"] == 216 and flow["lost"] == flow["corrupt"] == 0
        assert row["start_within_ns"] > 0
        sent += 216
    # rxe hands over what is for its own device without the wire: here nothing is
    assert all(frames_of(lab, end) - before[end] >= sent for end in before)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["emulated"] == manifest["guests"]["client"]["emulated"]
    assert manifest["wire"].startswith("between two guests")
    assert set(manifest["host machines"]) == {"client", "server"}


def test_a_lab_of_guests_refuses_what_it_has_not(lab: Lab) -> None:
    assert list(lab.guests) == ["client", "server"] and lab.guest is None
    with pytest.raises(UsageError, match="this lab has no guest sink") as caught:
        lab.compare(paths=["udp"], clients=["client"], servers=["sink"])
    assert "guests=" in caught.value.remedy
    with pytest.raises(UsageError, match="this topology has no end 'guest1'"):
        lab.run(["true"], end="guest1")
    with pytest.raises(UsageError, match="it is of two ends on one kernel"):
        lab.compare(paths=["udp"], trace=True)
    with pytest.raises(UsageError, match="needs NICs that hwrx drives"):
        lab.compare(paths=["nic-ring"])


def emulators_below(pid: int) -> list[int]:
    """QEMUs that a process has started."""
    found = []
    for child in Path("/proc").glob("[0-9]*"):
        try:
            stat = (child / "stat").read_text().rpartition(")")
        except OSError:
            continue
        if int(stat[2].split()[1]) == pid and "qemu" in stat[0]:
            found.append(int(child.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_no_guest_is_left_when_hwrx_ends_while_they_boot(tmp_path: Path, number: int) -> None:
    argv = [sys.executable, "-P", "-m", "hwrx", "compare", "--topology", "wire", "--paths", "udp"]
    process = subprocess.Popen([*argv, "--runs", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + LIMIT
    while len(guests := emulators_below(process.pid)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    while any(Path(f"/proc/{pid}/exe").exists() for pid in guests):
        assert time.monotonic() < deadline
        time.sleep(0.05)
