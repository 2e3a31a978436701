"""The bench through a real ssh: hosts that answer, hosts that do not, both ends elsewhere, and hwrx put onto one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_host import SSHD, serving

from hwrx.bench.inventory import load_bench
from hwrx.cli import main
from hwrx.control.environment import Host
from hwrx.control.messages import Describe, Described, Hello, Setting, frame_message
from hwrx.control.peers import Peer
from hwrx.runs import fleet, reading
from hwrx.runs.hosts import HostsBed

HWRX = str(Path(sys.executable).with_name("hwrx"))


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory, needs: Any) -> Iterator[Path]:
    needs("root", SSHD)
    with serving(tmp_path_factory.mktemp("ssh")) as config:
        yield config


def inventory(folder: Path, config: Path, **hosts: dict[str, str]) -> list[str]:
    """Write an inventory of hosts behind ssh; return the option that names it."""
    lines = []
    for name, table in hosts.items():
        fields = {"reach": f"ssh -F {config} {table.pop('to', 'box')} {{agent}}", "hwrx": HWRX, "address": "127.0.0.1"}
        lines += [f"[hosts.{name}]", *(f"{key} = '{value}'" for key, value in (fields | table).items())]
    file = folder / "bench.toml"
    file.write_text("\n".join(lines))
    return ["--bench", str(file)]


def test_each_host_says_what_it_is_or_why_it_does_not(
    ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    reply = frame_message(Hello(version=1, hwrx="0.0.1"))
    old.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write({reply!r})\nsys.stdout.flush()\nsys.stdin.read()\n"
    )
    loud = tmp_path / "loud"
    loud.write_text("#!/bin/sh\necho 'Welcome, you have mail'\n")
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    alien = tmp_path / "alien"  # an ELF file of another machine
    alien.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(100))
    for file in (old, loud, mute, alien):
        file.chmod(0o755)
    bench = inventory(
        tmp_path,
        ssh,
        one={},
        two={"netdev": "no-such"},
        stranger={"to": "stranger"},
        closed={"to": "closed"},
        without={"hwrx": "/nowhere/hwrx"},
        old={"hwrx": str(old)},
        loud={"hwrx": str(loud)},
        mute={"hwrx": str(mute)},
        alien={"hwrx": str(alien)},
    )
    assert main(["bench", "check", "--json", "--limit", "10", *bench]) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    hosts = {each["name"]: each for each in told["hosts"]}
    assert hosts["one"]["reached"] and hosts["one"]["machine"]["kernel"]["release"] == os.uname().release
    assert "synchronised" in hosts["one"]["timekeeping"]
    assert hosts["two"]["lacks"][0].startswith("there is no netdev no-such")
    for name, words, remedy in (
        ("stranger", "Permission denied (publickey)", "ssh-copy-id"),
        ("closed", "Connection refused", "is sshd running there"),
        ("without", "not found", "hwrx bench install"),
        ("old", "speaks version 1 of the control protocol", "install the same hwrx on both ends"),
        ("loud", "no frame of hwrx", "a login script"),
        ("mute", "no answer from mute in time", "overloaded"),
        ("alien", "Exec format error", "another architecture"),
    ):
        assert not hosts[name]["reached"]
        assert words in hosts[name]["error"], name
        assert remedy in hosts[name]["remedy"], name
    assert [pair["hosts"] for pair in told["pairs"]] == [["one", "two"]]
    assert told["pairs"][0]["verdict"] == "no"
    assert "7 of 9 hosts were not reached: stranger, closed" in printed.err
    # in words, and only of those that were asked for
    assert main(["bench", "check", "one", *bench]) == 0
    assert "hwrx 0.1.0" in capsys.readouterr().out


def test_both_ends_may_be_elsewhere(ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = inventory(tmp_path, ssh, one={}, two={})
    words = ["--paths", "tcp", "--messages", "50", "--repeats", "1", "--json", "--runs", str(tmp_path / "runs")]
    assert main(["compare", *words, *bench, "--client", "one", "--server", "two"]) == 0
    run = reading.load_run(tmp_path / "runs/latest")
    assert run.rows[0]["delivered"] == 166
    assert run.manifest["asked"]["client"]["name"] == "one"
    # each end's machine, asked there
    assert run.manifest["machine"]["command"][0] != sys.argv[0]
    assert run.manifest["server machine"]["kernel"]["release"] == os.uname().release
    capsys.readouterr()
    # what is to be run elsewhere is asked about before it is run again
    assert main(["rerun", str(run.path), "--dry-run"]) == 0
    assert main(["rerun", str(run.path)]) != 0
    assert "which is to start one's end" in capsys.readouterr().err


def test_an_agent_behind_ssh_that_is_killed_is_named(ssh: Path, tmp_path: Path) -> None:
    (tmp_path / "hwrx-of-two").symlink_to(HWRX)
    (bench,) = inventory(tmp_path, ssh, one={}, two={"hwrx": str(tmp_path / "hwrx-of-two")}, three={})[1:]
    hosts = [each.host for each in load_bench(Path(bench)).hosts.values()]
    told: list[tuple[float, str]] = []
    with fleet.Fleet(HostsBed(hosts)) as agents:
        agents.heed(lambda words: told.append((time.monotonic(), words)))
        agents.measure(0, Setting(path="udp", flows="one,two>three", messages=20))
        victim = pid_of(tmp_path / "hwrx-of-two")
        moments = []

        def kill() -> None:
            time.sleep(0.5)
            moments.append(time.monotonic())
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = agents.measure(1, Setting(path="udp", flows="one,two>three", messages=30_000))
        killer.join()
        assert told[0][0] - moments[0] < 2.0
        assert "two (client) is gone" in told[0][1]
        assert found.between["flow_count"] == 1
        (gone,) = [flow for flow in found.between["by_flow"] if "gone" in flow]
        assert gone["client"] == "two"


def pid_of(command: Path) -> int:
    """Return the process id of the agent that was started by a command: at the far end, which is this machine, too."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().split(b"\0")[1:3] == [str(command).encode(), b"agent"]:
                    return int(entry.name)
    raise AssertionError(f"no agent of {command} runs")


def test_hwrx_is_put_onto_a_host_that_has_none(ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    bench = inventory(tmp_path, ssh, box={"hwrx": f"{there}/bin/hwrx"})
    assert main(["bench", "install", "box", "--dry-run", *bench]) == 0
    assert f"into {there}" in capsys.readouterr().out and not there.exists()
    assert main(["bench", "install", "box", *bench]) == 0
    assert f"hwrx, version 0.1.0 in {there}" in capsys.readouterr().out
    with Peer.start(load_bench(Path(bench[1])).find_host("box").host, "box") as peer:
        assert peer.ask(Describe(), Described).machine["versions"]["hwrx"] == "0.1.0"
    # what is not an environment is left alone
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert main(["bench", "install", "box", "--into", str(other), *bench]) == 3
    assert "holds something else" in capsys.readouterr().err


def test_a_host_of_the_inventory_shows_its_verbs_devices(
    ssh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = inventory(tmp_path, ssh, one={})
    assert main(["devices", "--peer", "one", "--json", *bench]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    assert main(["devices", "--peer", "local"]) == 0
    capsys.readouterr()
    assert main(["devices", "--peer", "local", "--watch"]) == 2
    assert "--watch" in capsys.readouterr().err


def test_an_end_may_be_started_by_any_launcher(tmp_path: Path) -> None:
    """A launcher runs a program elsewhere with our pipes: as srun and mpirun do, `env` here."""
    host = Host(name="one", reach="env HWRX_ANY=1 {agent}", address="127.0.0.1")
    with Peer.start(host, "one") as peer:
        assert peer.ask(Describe(noise=True), Described).noise is not None
