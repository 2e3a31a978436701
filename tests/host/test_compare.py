"""The command as a user types it, on this machine's namespaces: what it prints, writes, and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hwrx

HWRX = [sys.executable, "-P", "-m", "hwrx"]
# the neighbour's, which no other run of these tests is to have at the same time (RFC 2544: for benchmarks)
NET = f"198.19.{os.getpid() % 256}"
STARTED = 120  # ticks of 10 ms; an agent has imported everything in less than half of it
LONG = ["--paths", "udp", "--topology", "netns", "--messages", "2000000", "--repeats", "2"]


def orphans() -> set[str]:
    """Namespaces of ours whose maker is gone; those of other processes that are at work are none of this test's."""
    folder = Path("/run/netns")
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    made = {name: re.match(r"hwrx-[ab]-(\d+)-", name) for name in names}
    return {name for name, found in made.items() if found and not Path("/proc", found[1]).exists()}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert orphans() == set()


def compare(runs: Path, *arguments: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    argv = [*HWRX, "compare", *arguments, "--runs", str(runs)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, **keywords)  # type: ignore[call-overload]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: object, limit: float = 120.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def begun(runs: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A comparison in the middle of its first, very long trial, and the pids of its two agents."""
    process = subprocess.Popen(
        [*HWRX, "compare", *LONG, "--runs", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def measuring() -> bool:
        return len(busy(process.pid)) == 2 and (runs / "latest").exists()

    try:
        wait_for(measuring)
        time.sleep(0.5)
        return process, busy(process.pid)
    except BaseException:
        # a run that goes on would be in the way of all tests that come after
        process.terminate()
        process.wait(60)
        raise


def busy(pid: int) -> list[int]:
    """The agents that have used more processor time than it takes to start one: they are in their loops."""
    found = []
    for child in children(pid):
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # a tool that was called meanwhile, and has ended
            continue
        if int(fields[11]) + int(fields[12]) > STARTED:
            found.append(child)
    return found


def test_a_comparison_ends_with_a_table_and_a_report(tmp_path: Path) -> None:
    # an open loop waits for nobody: the buffers hold all that it sends, while a busy machine keeps the receiver waiting
    done = compare(tmp_path, "--paths", "udp,tcp", "--size", "64,1400", "--pattern", "pingpong,stream,paced",
                   "--rate", "2000", "--messages", "300", "--repeats", "2", "--topology", "netns",
                   "--socket-buffer", str(1 << 20))  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.split()[-1])
    assert report.name == "report.html"
    assert report.stat().st_size > 20_000
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "complete"
    assert len(run.rows) == 2 * 2 * 2 * 3
    assert {row["status"] for row in run.rows} == {"ok"}
    assert all(row["lost"] == row["corrupt"] == row["duplicated"] == row["stale"] == 0 for row in run.rows)
    assert run.samples.num_rows == 300 * len(run.rows)
    assert 0 < run.manifest["machine"]["clock_cost_ns"]["p50"] < 100_000
    for name in ("udp", "tcp", "p50", "messages/s"):
        assert name in done.stdout
    assert "\x1b[" not in done.stdout


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    done = compare(tmp_path, "--paths", "udp", "--messages", "100", "--repeats", "1", "--topology", "here", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_the_sum_of_a_stream_is_its_duration(tmp_path: Path) -> None:
    assert (
        compare(tmp_path, "--paths", "tcp", "--pattern", "stream", "--repeats", "1", "--topology", "netns").returncode
        == 0
    )
    run = hwrx.load(tmp_path / "latest")
    ns = run.samples["ns"].to_numpy()
    assert ns[0] == 0
    assert (ns[1:] >= 0).all()


@pytest.mark.parametrize("which", [0, 1])
def test_an_agent_that_is_killed_ends_the_run_and_is_named(tmp_path: Path, which: int) -> None:
    process, agents = begun(tmp_path)
    killed = time.monotonic()
    os.kill(agents[which], signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    took = time.monotonic() - killed
    assert process.returncode == 1, errors
    assert re.search(
        r"trial 0 \(udp 64 B pingpong event\) broke off: peer (client|server) is gone: killed by SIGKILL", errors
    )
    assert output == ""
    run = hwrx.load(tmp_path / "latest")
    assert run.status == "partial"
    assert "broke off" in run.reason
    assert not any(Path(f"/proc/{agent}").exists() for agent in agents)
    assert took < 45  # a limit against hanging: nothing waits for the trial's own end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_marks_the_run_and_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    process, agents = begun(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert hwrx.load(tmp_path / "latest").status == "interrupted"
    assert not any(Path(f"/proc/{agent}").exists() for agent in agents)


def test_agents_die_with_a_controller_that_is_killed(tmp_path: Path) -> None:
    process, agents = begun(tmp_path)
    process.kill()
    process.communicate(timeout=120)
    wait_for(lambda: not any(Path(f"/proc/{agent}").exists() for agent in agents))
    assert hwrx.load(tmp_path / "latest").status == "partial"
    # the next one finds what was left, and takes it down
    assert (
        compare(tmp_path, "--paths", "udp", "--messages", "10", "--repeats", "1", "--topology", "netns").returncode == 0
    )


def test_a_disk_that_fills_up_is_said_in_words_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{' '.join(HWRX)} compare --paths udp --messages 40000 --repeats 30 --topology here --runs {disk}"
    script = f"""
        mount -t tmpfs -o size=8m tmpfs {disk} || exit 9
        {{
            until grep -qs . {disk}/20*/trials.jsonl; do sleep 0.1; done
            cat /dev/zero >{disk}/somebody-else
        }} 2>/dev/null &
        {command}; code=$?
        kill $! 2>/dev/null; cp -r {disk}/20* {tmp_path}/kept; exit $code
    """
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert re.search(r"(no space|disk is full|No space)", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    run = hwrx.load(tmp_path / "kept")
    assert run.status == "partial"
    assert run.samples.num_rows >= 40000


def test_a_disk_without_room_for_the_run_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{' '.join(HWRX)} compare --paths udp --messages 40000 --repeats 30 --topology here --runs {disk}"
    script = f"mount -t tmpfs -o size=400k tmpfs {disk} || exit 9; {command}; code=$?; ls {disk} >&2; exit $code"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "0.4 MB are free" in done.stderr
    assert "choose another place with --runs" in done.stderr
    assert "trial 0" not in done.stderr


def test_a_million_messages_stay_under_200_mb(tmp_path: Path) -> None:
    done = compare(tmp_path, "--paths", "tcp", "--pattern", "stream", "--messages", "1000000", "--repeats", "1",
                   "--topology", "here")  # fmt: skip
    assert done.returncode == 0, done.stderr
    resident = hwrx.load(tmp_path / "latest").journal[0]["extra"]["resident"]
    assert 0 < resident["client"] < 200e6
    assert 0 < resident["server"] < 200e6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "paths"),
        (["--paths", "pigeon"], 2, "there is no 'pigeon'"),
        (["--paths", "udp", "--size", "70000"], 2, "65,?507"),
        (["--paths", "udp", "--size", "7"], 2, "from 8"),
        (["--paths", "udp", "--size", "big"], 2, "neither a whole number of bytes nor a distribution"),
        (["no-such-file.toml"], 2, "there is no experiment file"),
        (["--paths", "rdma-send", "--device", "nosuch0,nosuch1"], 3, "nosuch0"),
        (["--paths", "rdma-send", "--device", "nosuch0"], 2, "both ends on one device"),
        (["--paths", "udp", "--clock", "icount", "--here", "--topology", "netns"], 2, "icount"),
        (["--paths", "udp", "--peer", "pigeon:coop"], 2, "is no peer"),
        (["--paths", "udp", "--peer", "ssh:nobody"], 2, "--peer-address ADDRESS"),
        (["--paths", "udp", "--address", "127.0.0.2"], 2, "--peer-address ADDRESS"),
        (["--paths", "udp", "--peer", "ssh:nobody", "--peer-address", "coop"], 2, "is not an IP address"),
    ],
)
def test_bad_input_gets_words(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = compare(tmp_path, *arguments)
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == code
    assert not list(tmp_path.glob("20*"))


def test_a_dry_run_says_what_would_be_and_does_nothing(tmp_path: Path) -> None:
    done = compare(tmp_path, "--paths", "udp,tcp", "--size", "64,70000", "--repeats", "2", "--dry-run")
    assert done.returncode == 0
    assert "trials" in done.stdout
    assert "left out: udp 70000 B" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A namespace at the other end of a veth pair of this one: .1 and .3 of NET here, .2 there."""
    name, here = f"hwrx-test-{os.getpid()}", f"hwt{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", "there", "netns", name)
        for address in (f"{NET}.1/24", f"{NET}.3/24"):
            ip("address", "add", address, "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "address", "add", f"{NET}.2/24", "dev", "there")
        ip("-n", name, "link", "set", "there", "up")
        yield name
    finally:
        # a namespace takes its devices with it, but later
        subprocess.run(["ip", "link", "delete", here], capture_output=True, check=False)
        ip("netns", "delete", name)


@pytest.mark.parametrize("own", [None, f"{NET}.3"], ids=["found", "given"])
def test_the_client_of_a_peer_without_devices_has_an_address_that_leads_there(
    tmp_path: Path, neighbour: str, own: str | None
) -> None:
    words = ["--paths", "udp,tcp", "--peer", f"netns:{neighbour}", "--peer-address", f"{NET}.2"]
    words += ["--address", own] if own else []
    done = compare(tmp_path, *words, "--messages", "500", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    run = hwrx.load(tmp_path / "latest")
    assert {row["status"] for row in run.rows} == {"ok"}
    assert run.manifest["asked"]["address"] == own
    shown = subprocess.run(["ip", "-n", neighbour, "-s", "-j", "link", "show", "there"], capture_output=True, text=True)
    packets = json.loads(shown.stdout)[0]["stats64"]
    assert min(packets["rx"]["packets"], packets["tx"]["packets"]) > 2 * 500
    used = subprocess.run(["ip", "-n", neighbour, "neighbour"], capture_output=True, text=True, check=True).stdout
    assert (own or f"{NET}.1") in used


def test_tracing_that_may_not_be_is_said_at_the_terminal(tmp_path: Path) -> None:
    words = ["--paths", "udp", "--topology", "here", "--trace", "--messages", "50", "--repeats", "1"]
    # root without what tracing needs: an ordinary user could not write into this test's folder
    lacking = "--bounding-set=-bpf,-perfmon,-sys_admin,-net_admin"
    command = ["setpriv", lacking, *HWRX, "compare", *words, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "NOT TRACED, though it was asked for" in said and "hwrx doctor says" in said
