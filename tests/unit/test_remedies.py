"""Remedies that are to help: where the obvious one would do nothing, or harm, another one is given."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import resource
import signal
import subprocess
import sys
from typing import Any

import pytest

from cython_ext.core import pinned
from hwrx.control import peers
from hwrx.control.messages import Failed, Hello, Prepare, Setting
from hwrx.control.peers import ProcessChannel
from hwrx.control.places import Place
from hwrx.errors import HwrxError, PathError, PeerError, UsageError
from hwrx.host import carrier, toml_text
from hwrx.host.shortage import shortage_remedy
from hwrx.lab import terminal
from hwrx.paths import agent
from hwrx.paths.families import sockets
from hwrx.runs import experiment, testbed


@pytest.mark.parametrize(
    ("total", "free", "reserved", "wanted", "remedy"),
    [
        (0, 0, 0, 3, "vm.nr_hugepages=3"),
        (64, 0, 0, 1, "vm.nr_hugepages=65"),  # 1 would take 63 away from whoever has them
        (64, 10, 4, 8, "vm.nr_hugepages=66"),
        (64, 64, 0, 1, "control group"),
    ],
)
def test_more_huge_pages_are_asked_for_never_fewer(
    total: int, free: int, reserved: int, wanted: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"Total": total, "Free": free, "Rsvd": reserved}
    monkeypatch.setattr(pinned, "_huge_pages", state.__getitem__)
    error = pinned.no_huge_pages(wanted << 21, 1 << 21)
    assert remedy in error.remedy
    assert ("nr_hugepages" in error.remedy) == (remedy != "control group")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max"), (errno.EAGAIN, "pids.max"), (errno.ENOMEM, "memory"),
     (errno.ENOENT, "is ip installed")],
)  # fmt: skip
def test_a_process_that_cannot_be_started_is_not_always_missing(
    code: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, "words")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(PeerError) as caught:
        ProcessChannel(["ip", "netns"], "server")
    assert remedy in caught.value.remedy


def test_too_few_descriptors_really() -> None:
    code = (
        "import os, resource\nfrom hwrx.control.peers import ProcessChannel\nfrom hwrx.errors import PeerError\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 3,) * 2)\n"
        "try:\n    ProcessChannel(['/bin/true'], 'server')\nexcept PeerError as error:\n    print(error.remedy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ulimit -n" in done.stdout, done.stderr


@pytest.mark.parametrize(("ended", "said"), [(1, True), (0, False)])
def test_an_agent_that_was_ended_for_want_of_memory_is_told_as_such(
    ended: int, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([5, 5 + ended])
    monkeypatch.setattr(peers, "killed_for_memory", lambda: next(counts))
    channel = ProcessChannel(["sleep", "60"], "server")
    channel.process.send_signal(signal.SIGKILL)
    try:
        assert ("out of memory" in channel.epitaph()) == said
    finally:
        channel.close()


def test_a_link_that_is_switched_on_already_is_not_to_be_switched_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "NETDEVS", tmp_path)
    for name, flags in {"off0": "0x1002", "on0": "0x1003", "bond0": "0x1403", "vlan0": "0x1003"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags").write_text(f"{flags}\n")
    (tmp_path / "bond0" / "bonding").mkdir()
    (tmp_path / "vlan0" / "lower_on0").mkdir()
    assert carrier.carrier_remedy("off0") == "ip link set off0 up"
    assert "plug its cable in" in carrier.carrier_remedy("on0")
    for name in ("bond0", "vlan0"):
        assert "none of the devices beneath it" in carrier.carrier_remedy(name)
    assert carrier.carrier_remedy("gone0") == "ip link set gone0 up"


def test_ends_of_two_address_families_are_refused_before_anything_starts() -> None:
    for wanted in (
        testbed.Wanted(peer="local", peer_address="::1", address="127.0.0.1"),
        testbed.Wanted(peer="ssh:node7", peer_address="192.0.2.7", address="2001:db8::1"),
    ):
        with pytest.raises(UsageError, match="are of two families") as caught:
            testbed.explicit_bed(wanted)
        assert "{" not in str(caught.value)


def test_a_sentence_on_an_address_holds_the_address_and_no_dictionary() -> None:
    prepare = Prepare(trial=1, role="client", setting=Setting(path="udp", size=64), here=Place(), there=Place())
    with contextlib.closing(sockets.open_endpoint(prepare)) as endpoint:
        for remote, said in (
            ({"address": "::1", "port": 9, "receive_buffer": 1}, "::1"),
            ({"port": 9}, "none was sent"),
        ):
            with pytest.raises(PathError, match=f"address cannot be used: {said}: ") as caught:
                endpoint.resolve(remote)
            assert "{" not in str(caught.value)


def test_a_byte_order_mark_is_passed_over_and_what_is_no_text_is_said(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "e.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "x"\npaths = ["udp"]\n')
    assert experiment.load_experiment(file).name == "x"
    assert toml_text.parse_toml("\ufeffa = 1", source="s") == {"a": 1}
    file.write_bytes(b"\xff\xfen\x00")
    with pytest.raises(HwrxError, match="cannot be read"):
        experiment.load_experiment(file)


# --- a command in a guest that goes on without output ---------------------------------------------------------------


class Quiet:
    """A pipe whose output has ended; its process does so only when it has been asked a few times."""

    def __init__(self, status: int | None) -> None:
        self.left, self.status = 7, status

    @property
    def ended(self) -> bool:
        return self.left == 0

    def wait(self, limit: float) -> int | None:
        self.left = max(0, self.left - 1)
        return self.status if self.ended else None

    def close(self) -> None:
        assert self.ended, "it was still at work"


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7, 7), (-9, 137)])
def test_a_command_that_closes_its_output_is_waited_for(
    status: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guest:
        def command(self, *args: object, **options: object) -> Any:
            return Quiet(status)

    monkeypatch.setattr(terminal, "_connect", lambda pipe: None)
    assert terminal.run_attached(Guest(), ["true"]) == code  # type: ignore[arg-type]


def test_an_agent_with_too_few_descriptors_says_so_in_words_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent.Agent()

    def refuse(message: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(made, "_do", refuse)
    failed = made.answer(Hello())
    assert isinstance(failed, Failed)
    assert failed.message == "Too many open files" and "ulimit -n" in failed.remedy


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((1024, 524_288), "than the 1024 that are allowed: ulimit -n 4096"),
        ((1024, resource.RLIM_INFINITY), "than the 1024 that are allowed: ulimit -n 4096"),
        ((8192, 10_000), "than the 8192 that are allowed: ulimit -n 10000"),
        ((4096, 4096), "than the 4096 that are allowed, and root alone may allow more: ulimit -n 8192"),
    ],
)
def test_who_has_run_out_of_files_is_told_a_limit_above_the_present_one(
    limits: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    assert said in shortage_remedy(errno.EMFILE)


def test_a_command_with_too_few_descriptors_says_what_to_type() -> None:
    words = 'ulimit -n 9; exec "$0" -m hwrx compare --paths udp --topology here --messages 9 --repeats 1'
    done = subprocess.run(["sh", "-c", words, sys.executable], capture_output=True, text=True)
    assert done.returncode != 0
    assert "than the 9 that are allowed" in done.stderr and "ulimit -n 4096" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "OSError" not in done.stderr
