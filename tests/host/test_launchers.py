"""Agents that a cluster's own launchers start, with our pipe as their standard input and output: srun, mpirun."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cluster import PROGRAMS, Cluster, slurm_cluster, wait_for

from hwrx.bench.inventory import load_bench
from hwrx.cli import main
from hwrx.control.messages import Setting
from hwrx.errors import PeerError, TrialError
from hwrx.runs import fleet, reading
from hwrx.runs.hosts import HostsBed

# as the guide has them, on nodes that are all this machine
BENCH = """
[hosts."n[1-9]"]
reach = "srun --nodelist={host} --ntasks=1 --cpu-bind=none --unbuffered {agent}"
address = "127.0.0.1"

[hosts."rank[1-2]"]
reach = "mpirun --allow-run-as-root --host localhost -n 1 --bind-to none {agent}"
address = "127.0.0.1"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, needs: Callable[..., None]) -> Iterator[Cluster]:
    needs(*PROGRAMS, "srun")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    file = tmp_path / "bench.toml"
    file.write_text(BENCH)
    return file


def compared(bench: Path, client: str, server: str) -> list[dict[str, object]]:
    words = ["compare", "--paths", "udp,tcp", "--size", "64,65000", "--messages", "100", "--repeats", "2", "--json"]
    words += ["--bench", str(bench), "--client", client, "--server", server, "--runs", str(bench.parent)]
    assert main(words) == 0
    return reading.load_run(bench.parent / "latest").rows


def test_srun_starts_agents_on_two_nodes_and_ends_them(
    cluster: Cluster, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    rows = compared(bench, "n1", "n2")
    assert [row["delivered"] for row in rows] == [216] * 8
    # each agent was a job, and none is left when the run has ended
    wait_for("the queue is empty", lambda: not cluster.ask("squeue", "-h").strip())
    assert not cluster.processes_of()


def kill_agents(cluster: Cluster, node: str) -> None:
    """What runs on a node is killed, as the kernel does that is out of memory; Slurm's own step stays."""
    for pid in cluster.processes_of(node):
        if b"agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def test_an_agent_that_is_killed_on_a_node_is_named_at_once(
    cluster: Cluster, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    hosts = [each.host for each in load_bench(bench).find_hosts(["n1", "n3"])]
    told: list[str] = []
    with fleet.Fleet(HostsBed(hosts)) as agents:
        agents.heed(told.append)
        agents.measure(0, Setting(path="udp", flows="n1>n3", messages=20))
        killer = threading.Timer(1.0, kill_agents, [cluster, "n1"])
        killer.start()
        with pytest.raises(TrialError, match=r"n1 \(client\) is gone(?s:.*)task 0: Killed"):
            agents.measure(1, Setting(path="udp", flows="n1>n3", messages=2_000_000, limit=30.0))
        killer.join()
        assert "n1 (client) is gone" in told[0]


def test_what_srun_refuses_is_said_in_its_words(cluster: Cluster, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.folder / "slurm.conf"))
    hosts = [each.host for each in load_bench(bench).find_hosts(["n1", "n9"])]
    with fleet.Fleet(HostsBed(hosts)) as agents, pytest.raises(PeerError, match=r"n9 \(server\) is gone") as caught:
        agents.measure(0, Setting(path="udp", flows="n1>n9", messages=20))
    assert "srun: error" in str(caught.value)


def test_mpirun_starts_agents_and_ends_them(needs: Callable[..., None], bench: Path) -> None:
    needs("mpirun")
    rows = compared(bench, "rank1", "rank2")
    assert [row["delivered"] for row in rows] == [216] * 8
