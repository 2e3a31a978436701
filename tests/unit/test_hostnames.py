"""What is published of a run says client, server, here or user, unless the names of hosts are asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import made_claims
import made_floods
import made_runs
import msgspec
import pytest

import hwrx
from hwrx.claims import run as claims_run
from hwrx.cli import main
from hwrx.report.anonymous import Names
from hwrx.report.hostnames import find_roles
from hwrx.runs import store

ROOT = Path(__file__).parents[2]
HERE = "builder-x9.example.net"
TARGETS = {
    "ssh:root@node7.example.org": ["node7", "example.org"],
    "ssh:alice@[2001:db8:77::7]": ["alice", "2001:db8:77"],
    "ssh:alice@2001:DB8:77:0::7": ["alice", "2001:db8:77", "2001:DB8:77"],
    "ssh:ssh://alice@node7.example.org:2222": ["alice", "node7", "example.org"],
    "ssh -p 2222 alice@node7.example.org -- {agent}": ["alice", "node7", "example.org"],
    "docker -H node7.example.org exec box9 {agent}": ["node7", "example.org", "box9"],
    "ssh:node7": ["node7"],
}
ADDRESS = "10.77.3.9"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: HERE)


def host_of(peer: str) -> str:
    """How another program writes the peer's host, in an error for example."""
    return "2001:db8:77::7" if "2001" in peer else "node7" if peer == "ssh:node7" else "node7.example.org"


def about(peer: str) -> dict[str, Any]:
    """What a run's manifest says beside its figures."""
    return {
        **made_runs.MANIFEST,
        "asked": {"peer": peer, "peer_address": ADDRESS, "address": "198.18.77.1"},
        "command": ["/home/bob/hwrx/.venv/bin/hwrx", "compare", "--peer", peer, f"--peer-address={ADDRESS}"],
        "wire": f"sockets to {peer} ",
        "warnings": [f"{HERE}: the governor is powersave", "builder-x9 has vm.nr_hugepages=0 and veth0@if3"],
        "guest": {"kernel": "/root/.cache/hwrx/kernels/6.1", "log": "/home/bob/console.txt"},
    }


def make(root: Path, peer: str, size: int = 64) -> Path:
    plan = made_runs.layout(sizes=[size], repeats=3, messages=200, question=f"Is {HERE} as fast as {host_of(peer)}?")
    with store.Writer.create(root, plan, about(peer)) as writer:
        writer.log(f"peer client at {peer} said: connect to host {host_of(peer)} ({ADDRESS}) port 22: refused")
        for trial in plan.trials[:-1]:
            made_runs.add(writer, trial)
        error = f"server: {host_of(peer)}: Permission denied (carol@gateway.example.com)"
        writer.add_trial(plan.trials[-1], status="failed", error=error)
    return writer.path


def words_of(peer: str) -> list[bytes]:
    listed = [*TARGETS[peer], ADDRESS, "builder-x9", "example.net", "/home/bob", "/root/", "carol", "gateway.example"]
    return [word.encode() for word in listed]


def found_in(folder: Path, words: list[bytes], *said: str) -> dict[str, list[str]]:
    """Which words stand in which files of a folder, or in what was said."""
    texts = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    texts |= {f"said {number}": text.encode() for number, text in enumerate(said)}
    held = {name: [word.decode() for word in words if word in text] for name, text in texts.items()}
    return {name: words for name, words in held.items() if words}


@pytest.mark.parametrize("peer", TARGETS)
def test_a_report_names_no_host_in_any_format_unless_asked(
    peer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path / "runs", peer)
    before = {file: file.read_bytes() for file in run.rglob("*")}
    others = ("svg", "pdf", "latex", "csv") if peer == next(iter(TARGETS)) else ()
    formats = [f"--to={each}" for each in ("table", "html", "json", *others)]
    assert main(["report", str(run), *formats, "--out", str(tmp_path / "out")]) == 0
    assert main(["report", str(run), "--json"]) == 0
    assert main(["report", str(run), "--schema"]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert found_in(tmp_path / "out", words_of(peer), said) == {}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "server" in page and "vm.nr_hugepages=0 and veth0@if3" in page and "198.18.77.1" in page

    # the run keeps what `rerun` needs
    assert {file: file.read_bytes() for file in run.rglob("*")} == before
    assert hwrx.load(run).manifest["asked"]["peer"] == peer

    assert main(["report", str(run), *formats, "--out", str(tmp_path / "named"), "--hostnames"]) == 0
    named = found_in(tmp_path / "named", words_of(peer))
    assert set(words_of(peer)) - {b"2001:db8:77", b"2001:DB8:77"} <= {
        word.encode() for words in named.values() for word in words
    }
    assert peer.replace("'", "&#39;") in (tmp_path / "named" / "report.html").read_text()
    assert {"report.html", "summary.json"} <= named.keys()


@pytest.mark.parametrize("peer", TARGETS)
def test_an_artifact_names_no_host_unless_asked_and_keeps_every_sample(peer: str, tmp_path: Path) -> None:
    run = make(tmp_path / "runs", peer)
    for name, *options in (("plain",), ("named", "--hostnames")):
        assert main(["artifact", str(run), "--out", str(tmp_path / f"{name}.tar.gz"), *options]) == 0
        with tarfile.open(tmp_path / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path / name)
        (tmp_path / name / run.name / "hwrx-source.tar.gz").unlink()  # the source; it has tests like this one
    plain, named = (hwrx.load(tmp_path / name / run.name / "run") for name in ("plain", "named"))
    tables = [repr(plain.table(name).to_pylist()) for name in plain.contents.tables] + [repr(plain.trials.to_pylist())]
    assert found_in(tmp_path / "plain", words_of(peer), *tables) == {}
    assert (plain.damage, plain.status) == ([], "complete")
    assert plain.samples.equals(hwrx.load(run).samples)
    if peer.startswith("ssh:"):
        assert plain.manifest["asked"]["peer"].removeprefix("ssh:") in ("server", "ssh://server")
    assert named.manifest == hwrx.load(run).manifest
    assert named.rows[-1]["error"] == hwrx.load(run).rows[-1]["error"]


def test_a_run_without_names_is_packed_as_it_is_and_one_that_cannot_be_renamed_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_runs.make(tmp_path / "plain")
    (run / "notes.txt").write_text("a page of mine")
    assert main(["artifact", str(run), "--out", str(tmp_path / "a.tar.gz")]) == 0
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert f"{run.name}/run/notes.txt" in archive.getnames()

    run = make(tmp_path / "named", "ssh:root@node7.example.org")
    content = bytearray((run / "samples.parquet").read_bytes())
    content[100] ^= 1
    (run / "samples.parquet").write_bytes(content)
    assert main(["artifact", str(run), "--out", str(tmp_path / "b.tar.gz")]) != 0
    assert "--hostnames leaves it as it is" in " ".join(capsys.readouterr().err.split())
    assert main(["artifact", str(run), "--out", str(tmp_path / "b.tar.gz"), "--hostnames"]) == 0
    assert main(["artifact", str(run), "--anonymous", "--hostnames"]) == 2


def test_a_difference_of_hosts_is_seen_though_neither_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make(tmp_path / name, f"ssh:root@{name}.example.org") for name in ("node7", "node8")]
    assert main(["diff", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert "asked.peer" in said and "ssh:server" in said
    assert "node7" not in said.replace(str(tmp_path), "") and "example" not in said
    assert main(["diff", *map(str, runs), "--hostnames"]) == 0
    assert "node7.example.org" in capsys.readouterr().out


def test_pages_of_claims_and_floods_name_no_host_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger"
    more = {"host": {"hostname": HERE}, "machines": [{"kernel": "/home/bob/vmlinuz"}]}
    known = made_claims.results()[0]
    with claims_run.Ledger.create(ledger, [known.claim], ["/home/bob/bin/hwrx", "claims"], more) as kept:
        kept.add(msgspec.structs.replace(known, words=f"so it is on {HERE}"))
    flood = made_floods.make_floods(tmp_path / "floods", about("ssh:root@node7.example.org"))
    words = words_of("ssh:root@node7.example.org")
    for option in ([], ["--hostnames"]):
        out = tmp_path / f"out{len(option)}"
        out.mkdir()
        for kind in ("html", "md"):
            assert main(["claims", "page", str(ledger), "--to", kind, "--out", str(out / f"page.{kind}"), *option]) == 0
        assert main(["flood", str(flood), *option]) == 0
        (out / "report.html").write_bytes((flood / "report.html").read_bytes())
        found = found_in(out, words, capsys.readouterr().out.replace(str(tmp_path), ""))
        assert found.keys() == ({"page.html", "report.html"} | ({"page.md"} & found.keys()) if option else set()), found


def test_words_that_are_hwrx_s_own_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "vm")
    names = Names.of_hosts({"asked": {"peer": "sudo ip netns exec red {agent}", "peer_address": "198.18.77.2"}})
    text = "vm.nr_hugepages=0, ip netns exec udp at 198.18.77.2, getty@tty1.service, veth0@if3, vm:pair"
    assert names.clean_text(text) == text
    asked = {"command": ["hwrx", "compare", "--peer", "netns:red", "--peer-address", "127.0.0.1"]}
    assert find_roles(asked) == find_roles({})


@pytest.mark.parametrize("environment", [{}, {"HOME": "/"}, {"HOME": "/nonexistent"}])
def test_a_user_without_a_name_or_a_home_can_report(environment: dict[str, str]) -> None:
    code = (
        "import os, sys; os.setuid(54321) if os.geteuid() == 0 else None\n"
        "from hwrx.report.anonymous import Names\n"
        "print(Names.of_hosts({'asked': {'peer': 'ssh:node7'}}).clean_text('node7 / 3, /home/bob/x'))\n"
        "print(len(Names.of_everything({}).clean_text('x')))"
    )
    kept = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["server / 3, ~/x", "1"], done.stderr


def test_hosts_of_the_inventory_keep_numbers_and_lose_their_names() -> None:
    hosts = [
        {"name": f"rack2n{number}", "reach": f"ssh:root@n{number}.example.org", "address": f"10.9.0.{number}"}
        for number in (1, 12)
    ]
    asked = {"hosts": [*hosts, {"name": "sinkhole", "reach": "ssh -F secret sinkhole9 {agent}"}]}
    names = Names.of_hosts({"asked": asked})
    said = "rack2n[1-12]>sinkhole rack2n1 n12.example.org root@n12.example.org 10.9.0.12 sinkhole9 a node [1]"
    assert names.clean_text(said) == "host[1-12]>hostb host1 host12 host12 host12 hostb a node [1]"
    everything = Names.of_everything({"asked": asked})
    assert everything.clean_text("rack2n12>sinkhole") == "host12>hostb"
    pair = {"client": {"name": "left4", "reach": "ssh:left4"}, "server": {"name": "right5", "reach": "local"}}
    assert Names.of_hosts({"asked": pair}).clean_text("left4 to right5") == "client to server"
