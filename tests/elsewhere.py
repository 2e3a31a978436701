"""Tests that run elsewhere, and are reported as if they ran here: beside each other, as far as they do not disturb.

Lanes, each begun as soon as the machine has a CPU for it. tests/guest runs inside a virtual machine, booted once. What
is marked `beside` boots guests of its own, or builds, and nothing disturbs it: it runs in a second pytest. The unit
tests run here meanwhile. The tests of the host come last, and have the machine to themselves.

A pytest plugin here, and the program that it starts in the guest or as a child. It collects and selects as ever (`-k`
works); the other pytest runs what was selected and sends its reports back, one JSON object a line.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

UNIT, GUEST, BESIDE = "unit", "guest", "beside"
ORDER = (UNIT, GUEST, BESIDE, "host", "hil")
SILENCE = 600.0  # seconds without a word from a guest after which it is taken for hung: a busy machine is slow
CHILD = "HWRX_TEST_LANE"  # set for a pytest that is a lane itself
INSIDE = os.environ.get("HWRX_IN_GUEST") == "1" or CHILD in os.environ
LEAVES_WITHIN = 60.0  # seconds that a lane is given to take down what it has put up


def lane_of(item: pytest.Item) -> str:
    return BESIDE if item.get_closest_marker(BESIDE) else item.path.parent.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs nothing first; what looks at the whole machine when the other lanes have ended."""
    items.sort(key=lambda item: ORDER.index(lane_of(item)) if lane_of(item) in ORDER else 0)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{BESIDE}: runs beside other tests: nothing on the machine disturbs it")
    config.stash[LANES] = {} if INSIDE else {GUEST: GuestLane(config), BESIDE: ProcessLane(config)}


def pytest_unconfigure(config: pytest.Config) -> None:
    with contextlib.ExitStack() as stack:
        for lane in config.stash[LANES].values():
            stack.callback(lane.close)


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Instead of running a lane's test here, report what the lane says of it."""
    lanes = item.config.stash[LANES]
    here = lane_of(item)
    for name, lane in lanes.items():
        busy = sum(each.is_busy() for each in lanes.values()) + (here == UNIT)
        if name == here or busy < (os.cpu_count() or 1):
            lane.begin([each.nodeid for each in item.session.items if lane_of(each) == name])
    if here not in lanes:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in lanes[here].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Lane(abc.ABC):
    """Another pytest: started once, heard by a thread of its own, its reports handed out in the order of the items."""

    revivals = 0  # how often another one may run the rest, if one falls silent

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._begun = False
        self._wanted: list[str] = []
        self._last = ""
        self._listener: threading.Thread | None = None
        self._heard = threading.Condition()
        self._seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._finished: set[str] = set()
        self._broken = ""  # why there are no more reports
        self._lacking = False  # there never were any: the machine lacks what the lane needs

    def begin(self, wanted: list[str]) -> None:
        """Start it, if any of its tests is wanted; once."""
        if self._begun:
            return
        self._begun = True
        if wanted and self._start(wanted):
            self._wanted, self._last = wanted, wanted[-1]
            # of its own: what a lane says has to be taken while other tests run, or it would wait to say more
            self._listener = threading.Thread(target=self._listen, daemon=True, name="reports of a lane")
            self._listener.start()

    def is_busy(self) -> bool:
        """Whether it has begun, and more of its reports are to come."""
        return self._listener is not None and self._last not in self._finished and not self._broken

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        with self._heard:
            self._heard.wait_for(lambda: item.nodeid in self._finished or self._broken)
        for data in self._seen.pop(item.nodeid, []):
            if data["outcome"] == "skipped" and isinstance(data["longrepr"], list):
                data["longrepr"] = tuple(data["longrepr"])  # it has become a list on its way
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            assert isinstance(report, pytest.TestReport)
            yield report
        if item.nodeid not in self._finished:
            outcome: Any = "failed"
            words: Any = self._broken
            if self._lacking and os.environ.get("HWRX_REQUIRE_HW") != "1":
                outcome, words = "skipped", (str(item.path), 0, f"Skipped: {self._broken}")
            yield pytest.TestReport(item.nodeid, item.location, {}, outcome, words, "setup")
        if item.nodeid == self._last:
            self.close()

    def close(self) -> None:
        """End it, if it has not ended: what it has put up is taken down when this returns."""
        if self._listener is not None:
            if self.is_busy():
                self._end()
            self._listener.join(LEAVES_WITHIN)
            self._listener = None
        self._leave()

    def _options(self) -> list[str]:
        return ["-s"] if self._config.option.capture == "no" else []

    @abc.abstractmethod
    def _start(self, wanted: list[str]) -> bool:
        """Start the other pytest, or say in `_broken` why there is none."""

    @abc.abstractmethod
    def _receive(self) -> bytes:
        """Return the next piece of what it writes, b"" at its end; OSError if it cannot be heard."""

    @abc.abstractmethod
    def _failure(self, why: str) -> str:
        """Say in words, with what it wrote last, that the other pytest ended, or was silent."""

    @abc.abstractmethod
    def _end(self) -> None:
        """Break it off: its end is what the listener waits for."""

    @abc.abstractmethod
    def _leave(self) -> None:
        """Free what is held here."""

    def _listen(self) -> None:
        rest = b""
        while not self._broken:
            try:
                data = self._receive()
                why = "" if data else "ended before this test"
            except TimeoutError:
                if self.revivals:
                    self.revivals -= 1
                    self._revive()
                    rest = b""
                    continue
                data, why = b"", f"said nothing for {SILENCE:.0f} s"
            except OSError as error:
                data, why = b"", f"cannot be heard any more: {error}"
            *lines, rest = (rest + data).split(b"\n")
            with self._heard:
                for line in lines:
                    self._take(json.loads(line))
                if why:
                    self._broken = self._failure(why)
                self._heard.notify_all()

    def _revive(self) -> None:
        """Have another one run what is left: QEMU 7.2 stands still now and then. A test that hangs does so again."""
        left = [name for name in self._wanted if name not in self._finished]
        self._say("", f"silent for {SILENCE:.0f} s; another one runs the {len(left)} tests that are left")
        self._leave()
        with self._heard:
            for name in left:
                self._seen.pop(name, None)
            if not self._start(left):
                self._lacking = False  # it was there before
            self._heard.notify_all()

    def _say(self, stage: str, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"guest: {text}")

    def _take(self, message: dict[str, Any]) -> None:
        if "finished" in message:
            self._finished.add(message["finished"])
        else:
            self._seen[message["nodeid"]].append(message)


class GuestLane(Lane):
    """tests/guest, in a virtual machine."""

    revivals = 1
    _guest: Any = None
    _pipe: Any = None

    def _start(self, wanted: list[str]) -> bool:
        from hwrx.errors import HwrxError
        from hwrx.lab.vm import Guest

        # one boot for all: the wire of `pair`, and beside it the NICs of `nic` and `queues`, whose taps want root
        root = os.geteuid() == 0
        guest = Guest("pair", beside=["nic", "queues"] if root else ["nic"], progress=self._say)
        try:
            guest.__enter__()
        except HwrxError as error:
            self._broken, self._lacking = f"the guest layer cannot run: {error}", True
            return False
        self._guest = guest
        self._pipe = guest.command(
            [sys.executable, __file__, "--", *self._options()],
            {"HWRX_REQUIRE_HW": "1" if root else "0"},  # the guest is made to have all that its tests need
            folder=self._config.rootpath,
        )
        self._pipe.sendall(json.dumps(wanted).encode())
        self._pipe.end_input()
        self._pipe.settimeout(SILENCE)
        return True

    def _receive(self) -> bytes:
        return bytes(self._pipe.recv(1 << 16))

    def _failure(self, why: str) -> str:
        ended = f": {self._pipe.epitaph()}" if why.startswith("ended") else ""
        return str(self._guest.failure(f"the guest's pytest {why}{ended}"))

    def _end(self) -> None:
        self._pipe.kill()  # not wanted any more

    def _leave(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._guest is not None:
            self._guest.__exit__(None, None, None)
            self._guest = None


class ProcessLane(Lane):
    """What is marked `beside`, in a child."""

    _child: subprocess.Popen[bytes] | None = None
    _said: IO[bytes] | None = None

    def _start(self, wanted: list[str]) -> bool:
        options = self._options()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # `_leave` closes it
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options else self._said,
            env={**os.environ, CHILD: BESIDE},
            cwd=self._config.rootpath,
            start_new_session=True,  # Ctrl-C is for the pytest that the user sees
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(wanted).encode())
        self._child.stdin.close()
        return True

    def _receive(self) -> bytes:
        assert self._child is not None and self._child.stdout is not None
        return os.read(self._child.stdout.fileno(), 1 << 16)

    def _failure(self, why: str) -> str:
        assert self._child is not None and self._said is not None
        self._said.seek(0)
        last = self._said.read().decode(errors="replace")[-2000:]
        return f"the second pytest {why}, with exit code {self._child.wait()}:\n{last}"

    def _end(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGINT)

    def _leave(self) -> None:
        if self._child is None or self._said is None or self._child.stdout is None:
            return
        try:
            self._child.wait(LEAVES_WITHIN)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._said.close()
        self._child = None


class Inside:
    """The other side: writes the reports to a descriptor that no test can print to."""

    def __init__(self, config_fd: int) -> None:
        self._fd = config_fd
        self._config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._config is not None
        self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finished": nodeid})

    def _write(self, message: dict[str, Any]) -> None:
        data = memoryview(json.dumps(message, default=str).encode() + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]


LANES = pytest.StashKey[dict[str, Lane]]()


def main() -> int:
    wanted = json.load(sys.stdin)
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).parent))
    arguments = ["-p", "no:cacheprovider", "-q", *sys.argv[2:], *wanted]
    return int(pytest.main(arguments, plugins=[Inside(ours)]))


if __name__ == "__main__":
    sys.exit(main())
