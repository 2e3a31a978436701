"""Guests that do not come up, hang, die, or whose owner is killed: each ends, in words, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hwrx
from hwrx.campaign import measuring
from hwrx.control import endings, peers
from hwrx.control.environment import parse_environment
from hwrx.errors import GuestError, MachineError, StandstillError, UsageError
from hwrx.lab import inquest
from hwrx.lab.vm import Guest
from hwrx.runs import experiment as experiments
from hwrx.runs.testbed import Wanted

pytestmark = pytest.mark.beside

LIMIT = 60.0  # seconds, against hanging


@pytest.fixture(autouse=True)
def _needs(needs: Callable[..., None]) -> None:
    needs("guest")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    yield
    assert emulators(os.getpid()) == []


def emulators(owner: int) -> list[int]:
    """The QEMU processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if (
            fields["Name"].startswith("qemu-system")
            and int(fields["PPid"]) == owner
            and not fields["State"].startswith("Z")
        ):
            found.append(int(status.parent.name))
    return found


@pytest.mark.usefixtures("nothing_left")
def test_a_guest_whose_kernel_panics_ends_with_its_last_lines() -> None:
    # rdinit names a file that is not there, so the kernel looks for a disk to start from
    with pytest.raises(GuestError, match="ended while it came up") as caught, Guest(append=["rdinit=/no-such-file"]):
        pass
    assert "Kernel panic" in str(caught.value)


@pytest.mark.usefixtures("nothing_left")
def test_a_guest_that_hangs_is_ended_at_the_limit_with_its_last_lines() -> None:
    # process 1 is a program that waits for ever
    with (
        pytest.raises(GuestError, match="did not come up within 15 s") as caught,
        Guest(append=["rdinit=/bin/busybox", "--", "sleep", "1000000"], limit=15.0),
    ):
        pass
    assert "the guest's last lines" in str(caught.value)


@pytest.mark.usefixtures("nothing_left")
def test_what_fails_inside_while_coming_up_keeps_its_name_and_words() -> None:
    with (
        pytest.raises(UsageError, match="in the guest: a veth pair cannot have an MTU of 99"),
        Guest(options={"mtu": 99}),
    ):
        pass


@pytest.mark.usefixtures("nothing_left")
def test_qemu_that_cannot_start_says_why() -> None:
    with pytest.raises(GuestError, match="no-such-device"), Guest(qemu=["-device", "no-such-device"]):
        pass


# --- guests that stand still: QEMU is stopped, so that it is there and does nothing -----------------------------------


STILL = "stood still while it came up"


class Stopper:
    """Stops so many guests of this process, one after the other, as soon as each has come so far.

    Until then, and behind the last of them, a guest has all of its time: the machine may be busy.
    """

    def __init__(self, count: int, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = count
        self.stage = stage
        self._monkeypatch = monkeypatch
        self.said: list[str] = []
        self.stopped: list[int] = []

    def __call__(self, stage: str, text: str) -> None:
        self.said.append(f"{stage}: {text}")
        if STILL in text and len(self.stopped) == self.count:
            self._monkeypatch.undo()
        if stage == self.stage and len(self.stopped) < self.count:
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        deadline = time.monotonic() + LIMIT
        while not (found := [pid for pid in emulators(os.getpid()) if pid not in self.stopped]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(found[0], signal.SIGSTOP)
        self.stopped.append(found[0])
        self._monkeypatch.setattr(inquest, "IDLE_SILENCE", 3.0)
        if len(self.stopped) < self.count:  # the next one is booted without a word between
            self._stop()


@pytest.mark.usefixtures("nothing_left")
def test_a_guest_that_stands_still_while_it_comes_up_is_tried_again_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopper = Stopper(1, "boot", monkeypatch)
    with Guest(progress=stopper) as guest:
        assert guest.run(["echo", "up"]).stdout == "up\n"
    assert len(stopper.stopped) == 1
    words = [words for words in stopper.said if f"{STILL}: it printed nothing for" in words]
    assert len(words) == 1 and words[0].endswith("another one is booted")


@pytest.mark.usefixtures("nothing_left")
def test_a_second_guest_that_stands_still_is_an_error_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper(2, "boot", monkeypatch)
    with pytest.raises(StandstillError, match="stood still while it came up") as caught, Guest(progress=stopper):
        pass
    assert "the guest's last lines:" in str(caught.value)
    assert len(stopper.stopped) == 2


@pytest.mark.usefixtures("nothing_left")
def test_another_guest_goes_on_if_one_stands_still_in_the_middle_of_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = 'topology = "pair"\nclock = "wall"\npaths = ["udp"]\nrepeats = 3\n[setting]\nmessages = 20\n'
    experiment = experiments.parse_experiment(text, source="a test")
    layout = measuring.settle_plan(experiment, Wanted(), lambda stage, text: None)
    said: list[str] = []

    class Stops(measuring.Quiet):
        def stage(self, stage: str, text: str) -> None:
            said.append(f"{stage}: {text}")
            if "another one goes on" in text:
                monkeypatch.undo()

        def trial(self, done: int, total: int, label: str, lane: str = "") -> None:
            if done == 1 and total == 3:
                for pid in emulators(os.getpid()):
                    os.kill(pid, signal.SIGSTOP)
                # until it is noticed; guests that go on have all of their time
                for module in (peers, endings):
                    monkeypatch.setattr(module, "ANSWER_WITHIN", 8.0)
                monkeypatch.setattr(inquest, "ANSWER", 3.0)

    outcome, path = measuring.measure_plan(layout, Wanted(), tmp_path, progress=Stops())
    run = hwrx.load(path)
    assert (outcome.measured, outcome.failed, run.status) == (3, [], "complete")
    assert [row["status"] for row in run.rows] == ["ok"] * 3
    assert any("the guest stands still" in words and "another one goes on" in words for words in said)


def test_what_is_felt_of_a_guest_is_by_its_cpu_time_not_by_the_hosts_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pulse = inquest.Pulse()
    used = 0.0
    for _ in range(60):  # a machine so busy that it gets a twentieth of a CPU
        now, used = now + 10.0, used + 0.5
        assert pulse.feel(used, 0) == ""
    now += inquest.IDLE_SILENCE + 1
    assert "did nothing" in pulse.feel(used, 0)
    spinning = inquest.Pulse()
    assert spinning.feel(inquest.BUSY_SILENCE - 1, 0) == ""
    assert spinning.feel(inquest.BUSY_SILENCE - 1, 1) == ""
    assert spinning.feel(2 * inquest.BUSY_SILENCE - 2, 1) == ""
    assert "of CPU time" in spinning.feel(2 * inquest.BUSY_SILENCE + 1, 1)


def test_a_topology_that_does_not_exist_is_named_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="no topology 'ring'"):
        Guest("ring")


def test_icount_with_kvm_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot go with KVM"):
        Guest(clock="icount", accelerator="kvm")


def test_no_static_busybox_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "busybox").symlink_to("/bin/ls")  # a program that needs libraries
    (tmp_path / "busybox").resolve()
    from hwrx.lab import initramfs

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="no static busybox"):
        initramfs.find_busybox()


OWNER = """
import sys, time
from hwrx.lab.vm import Guest
with Guest(progress=lambda stage, text: print(stage, flush=True)) as guest:
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_no_guest_and_no_file_outlives_its_owner(number: signal.Signals, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert owner.stdout is not None
    started: list[int] = []
    while not started:
        assert owner.poll() is None
        started = emulators(owner.pid)
        time.sleep(0.05)
    owner.send_signal(number)
    owner.wait(timeout=LIMIT)
    owner.stdout.close()
    deadline = time.monotonic() + LIMIT
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def guest(needs: Callable[..., None]) -> Iterator[Guest]:
    needs("guest")
    with Guest() as up:
        yield up


def test_a_command_runs_in_the_guest_and_its_exit_code_comes_back(guest: Guest) -> None:
    done = guest.run(["sh", "-c", "uname -r; echo on stderr >&2; exit 7"])
    assert done.returncode == 7
    assert done.stdout.splitlines() == [guest.describe()["kernel"], "on stderr"]


def test_a_command_that_does_not_exist_is_named(guest: Guest) -> None:
    pipe = guest.command(["no-such-command"])
    assert pipe.recv(100) == b""
    assert "cannot run no-such-command" in pipe.epitaph()
    assert pipe.returncode == 127
    pipe.close()


def test_a_command_that_never_answers_is_ended_with_the_log(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"`sleep 1000000` did not end within 2 s") as caught:
        guest.run(["sleep", "1000000"], limit=2.0)
    assert "the guest's last lines" in str(caught.value)
    assert "sleep 1000000" not in guest.run(["ps", "-eo", "args"]).stdout


def test_what_a_module_prints_comes_line_by_line(guest: Guest) -> None:
    lines = guest.lines("json.tool", b'["a", "b"]', silence=60.0, who="the tool")
    assert list(lines) == [b"[", b'    "a",', b'    "b"', b"]"]
    with pytest.raises(GuestError, match=r"the tool ended before its time: .*Expecting"):
        list(guest.lines("json.tool", b"[", silence=60.0, who="the tool"))
    with pytest.raises(GuestError, match="the server in the guest said nothing for 2 s"):
        list(guest.lines("http.server", b"", silence=2.0, who="the server"))


def test_a_killed_process_is_an_end_of_file_with_its_signal_and_last_words(guest: Guest) -> None:
    pipe = guest.command(["sh", "-c", "echo dying >&2; echo ready; sleep 1000000"])
    assert pipe.recv(100) == b"ready\n"
    pipe.kill()
    pipe.settimeout(LIMIT)
    assert pipe.recv(100) == b""
    assert pipe.epitaph().splitlines()[0] == "killed by SIGKILL"
    assert "dying" in pipe.epitaph()
    pipe.close()


def test_closing_a_pipe_ends_a_process_that_does_not_end_by_itself(guest: Guest) -> None:
    pipe = guest.command(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    pipe.close()
    assert pipe.returncode == -signal.SIGKILL


def test_many_processes_talk_at_once_and_each_gets_its_own_bytes(guest: Guest) -> None:
    pipes = [guest.command(["cat"]) for _ in range(8)]
    blocks = [bytes([number]) * 50_000 for number in range(8)]
    for pipe, block in zip(pipes, blocks, strict=True):
        pipe.settimeout(LIMIT)
        pipe.sendall(block)
        pipe.end_input()
    for pipe, block in zip(pipes, blocks, strict=True):
        received = b""
        while data := pipe.recv(1 << 16):
            received += data
        assert received == block
        assert pipe.wait(LIMIT) == 0
        pipe.close()


def test_an_agent_greets_through_the_port(guest: Guest) -> None:
    from hwrx.control.peers import Peer

    for role in ("client", "server"):
        with Peer.greet(guest.agent(role), role):
            pass


def test_the_host_files_are_seen_and_writes_stay_inside(guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("of the host")
    assert guest.run(["sh", "-c", f"cat {file}; echo inside >{file}; cat {file}"]).stdout == "of the hostinside\n"
    assert file.read_text() == "of the host"


def test_a_guest_that_is_well_says_so(guest: Guest) -> None:
    guest.check()
    about = guest.describe()
    assert about["accelerator"] in ("kvm", "tcg")
    assert about["accelerator_reason"]
    assert about["emulated"] == (about["accelerator"] == "tcg")


def test_a_guest_that_dies_ends_its_pipes_and_is_told_of() -> None:
    with Guest() as guest:
        pipe = guest.command(["sleep", "1000000"])
        pipe.settimeout(LIMIT)
        # the kernel's own way to fall over at once
        crash = guest.command(["sh", "-c", "echo c >/proc/sysrq-trigger"])
        assert pipe.recv(1) == b""
        assert "the guest is gone" in pipe.epitaph()
        assert pipe.returncode is None
        with pytest.raises(GuestError, match="the guest is gone"):
            guest.run(["true"])
        crash.close()
        pipe.close()


def test_a_folder_that_is_shared_takes_what_the_guest_writes(tmp_path: Path) -> None:
    with Guest("netns", writable=[tmp_path]) as guest:
        guest.run(["sh", "-c", f"echo from inside >{tmp_path}/file"])
        # and its agents are in the namespaces of the topology
        assert guest.peers["client"].startswith("netns:")
        here = guest.run(["ip", "-o", "link"], netns=parse_environment(guest.peers["client"]).name).stdout
        assert "hwrx0" in here
        assert "hwrx1" not in here.replace("hwrx0@", "")
    assert (tmp_path / "file").read_text() == "from inside\n"
