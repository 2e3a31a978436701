"""tests/guest, run inside a virtual machine that is booted once, and reported as if they ran here.

A pytest plugin on the host, and the program that it starts in the guest. The host collects and selects as ever (`-k`
works); the guest's pytest runs what was selected and sends its reports back, one JSON object a line. It does so from
the beginning, beside the unit tests, which no guest disturbs; when its last report is shown it is taken down, and the
tests of the host have the machine to themselves.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LAYER = "guest"
ORDER = ("unit", LAYER, "host", "hil")
SILENCE = 300.0  # seconds without a word from the guest's pytest, after which it is taken for hung
INSIDE = os.environ.get("HWRX_IN_GUEST") == "1"


def layer_of(item: pytest.Item) -> str:
    return item.path.parent.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs nothing first; what looks at the whole machine when the guest is gone."""
    items.sort(key=lambda item: ORDER.index(layer_of(item)) if layer_of(item) in ORDER else 0)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTSIDE] = Outside(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[OUTSIDE].close()


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Instead of running a guest's test here, report what the guest says of it."""
    if INSIDE:
        return None
    item.config.stash[OUTSIDE].begin(item.session)
    if layer_of(item) != LAYER:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in item.config.stash[OUTSIDE].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Outside:
    """The host's side: boots the guest, hears what its pytest says, and hands the reports out."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._guest: Any = None
        self._pipe: Any = None
        self._begun = False
        self._last = ""
        self._listener: threading.Thread | None = None
        self._heard = threading.Condition()
        self._seen: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._finished: set[str] = set()
        self._broken = ""

    def begin(self, session: pytest.Session) -> None:
        """Boot the guest and have it start, if any of its tests is wanted; once."""
        if self._begun:
            return
        self._begun = True
        wanted = [item.nodeid for item in session.items if layer_of(item) == LAYER]
        if wanted:
            self._last = wanted[-1]
            self._start(wanted)

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        with self._heard:
            self._heard.wait_for(lambda: item.nodeid in self._finished or self._broken)
        for data in self._seen.pop(item.nodeid, []):
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            assert isinstance(report, pytest.TestReport)
            yield report
        if item.nodeid not in self._finished:
            outcome: Any = "failed"
            words: Any = self._broken
            if self._guest is None and os.environ.get("HWRX_REQUIRE_HW") != "1":
                outcome, words = "skipped", (str(item.path), 0, f"Skipped: {self._broken}")
            yield pytest.TestReport(item.nodeid, item.location, {}, outcome, words, "setup")
        if item.nodeid == self._last:
            self.close()

    def _start(self, wanted: list[str]) -> None:
        from hwrx.errors import HwrxError
        from hwrx.lab.vm import Guest

        # one boot for all: the wire of `pair`, and beside it the NICs of `nic` and `queues`, whose taps want root
        root = os.geteuid() == 0
        guest = Guest("pair", beside=["nic", "queues"] if root else ["nic"], progress=self._say)
        try:
            guest.__enter__()
        except HwrxError as error:
            self._broken = f"the guest layer cannot run: {error}"
            return
        self._guest = guest
        self._pipe = guest.command(
            [sys.executable, __file__, "--", *(["-s"] if self._config.option.capture == "no" else [])],
            {"HWRX_REQUIRE_HW": "1" if root else "0"},  # the guest is made to have all that its tests need
            folder=self._config.rootpath,
        )
        self._pipe.sendall(json.dumps(wanted).encode())
        self._pipe.end_input()
        self._pipe.settimeout(SILENCE)
        # of its own: what the guest says has to be taken while the host's tests run, or it would wait to say more
        self._listener = threading.Thread(target=self._listen, daemon=True, name="guest's reports")
        self._listener.start()

    def _say(self, stage: str, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"guest: {text}")

    def _listen(self) -> None:
        rest = b""
        while not self._broken:
            try:
                data = self._pipe.recv(1 << 16)
                why = "" if data else f"ended before this test: {self._pipe.epitaph()}"
            except TimeoutError:
                data, why = b"", f"said nothing for {SILENCE:.0f} s"
            except OSError as error:
                data, why = b"", f"cannot be heard any more: {error}"
            *lines, rest = (rest + data).split(b"\n")
            with self._heard:
                for line in lines:
                    self._take(json.loads(line))
                if why:
                    self._broken = str(self._guest.failure(f"the guest's pytest {why}"))
                self._heard.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        if "finished" in message:
            self._finished.add(message["finished"])
        else:
            self._seen[message["nodeid"]].append(message)

    def close(self) -> None:
        if self._listener is not None:
            if self._listener.is_alive():
                self._pipe.kill()  # not wanted any more: its end is what the listener waits for
            self._listener.join(10)
        if self._pipe is not None:
            self._pipe.close()
        if self._guest is not None:
            self._guest.__exit__(None, None, None)
            self._guest = None


class Inside:
    """The guest's side: writes the reports to a descriptor that no test can print to."""

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


OUTSIDE = pytest.StashKey[Outside]()


def main() -> int:
    wanted = json.load(sys.stdin)
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).parent))
    arguments = ["-p", "no:cacheprovider", "-q", *sys.argv[2:], *wanted]
    return int(pytest.main(arguments, plugins=[Inside(ours)]))


if __name__ == "__main__":
    sys.exit(main())
