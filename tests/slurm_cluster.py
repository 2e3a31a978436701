"""A real Slurm on this machine, for as long as a test wants it: three nodes of one CPU, all on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hwrx.host.processes import process_start

LIMIT = 240.0  # seconds, against hanging
NODES = ("n1", "n2", "n3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
CONFIGURATION = """
ClusterName=hwrx
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdTimeout=6
ReturnToService=2
MailProg=/bin/true
MpiDefault=none
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[3]}] CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName=all Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody has on loopback."""
    for first in range(27100, 29000, 10):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise AssertionError("no free ports")


def wait_for(what: str, check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT
    while not (found := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Cluster:
    """munged, slurmctld and three slurmd, all of them in a folder and on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        values = {"host": socket.gethostname(), "folder": self.folder, "ports": free_ports(4)}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log",
                 "seed-file": "munged.seed"}  # fmt: skip
        words = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._daemon("munged", "--foreground", "--force", *words)
        wait_for("munge's socket", lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
            self._daemon("slurmd", "-D", "-N", node, name=node)
        wait_for("three idle nodes", lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "3")

    def _daemon(self, program: str, *words: str, name: str = "") -> None:
        with (self.folder / f"{name or program}.out").open("wb") as out:
            self.daemons[name or program] = subprocess.Popen(
                [program, *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def processes_of(self, node: str | None = None) -> list[int]:
        """What Slurm has started for jobs, on a node or on all: slurmstepd and what is beneath it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                mine = f"SLURM_CONF={self.folder}/slurm.conf".encode() in environment
                its = [word for word in environment if word.startswith(b"SLURMD_NODENAME=")]
                if mine and its and (node is None or its[0] == f"SLURMD_NODENAME={node}".encode()):
                    found.append(int(process.name))
        return found

    def kill_node(self, node: str) -> None:
        """As if its power were gone: its daemon and all that it runs."""
        os.kill(self.daemons[node].pid, signal.SIGKILL)
        self.daemons[node].wait()
        self.kill_jobs(node)

    def kill_jobs(self, node: str | None = None) -> None:
        own = {daemon.pid for daemon in self.daemons.values()}
        for pid in self.processes_of(node):
            with contextlib.suppress(OSError, IndexError):
                above = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                name = Path(f"/proc/{above}/comm").read_text()
                for each in (above, pid) if name.startswith("slurmstepd") and above not in own else (pid,):
                    os.kill(each, signal.SIGKILL)

    def stop(self) -> None:
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        self.kill_jobs()
        for daemon in reversed(self.daemons.values()):
            if daemon.poll() is None:
                daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.kill_jobs()


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start one, and see that nothing of it is left."""
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        assert all(process_start(daemon.pid) is None for daemon in made.daemons.values())
        wait_for("nothing of the cluster is left", lambda: not made.processes_of())
