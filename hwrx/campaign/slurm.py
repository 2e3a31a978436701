"""A cluster's engine: each batch of cells is a job array of Slurm's own.

Slurm's commands do all that a campaign needs (sbatch --array, squeue, scancel), and are there wherever Slurm is. A
library on top was weighed: submitit hands pickled functions over and learns of jobs from sacct, which knows nothing on
a cluster without an accounting database, so that a job lost with its node is never missed; Parsl keeps a pilot on each
node and two ports open to it. A cell is a command and a folder, and its result a file: what is left is two lists.

The campaign's folder, and hwrx at its place, have to be on a file system that the nodes share. A node that dies ends
its jobs: Slurm queues them again if it is set up so (--requeue), and if it does not, the cell is attempted again.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwrx.campaign.engines import UnansweredError, Work
from hwrx.errors import MachineError
from hwrx.host import tools

# of a job that has ended, and is listed a while longer
ENDED = frozenset({"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
                   "PREEMPTED", "TIMEOUT", "REVOKED", "SPECIAL_EXIT"})  # fmt: skip
LOST_AFTER = 3  # questions in turn that slurmctld does not answer: it may be starting again


class Slurm:
    """Slurm: it decides when and where a cell runs, and how many at a time unless `at_once` says it."""

    name = "slurm"
    looks_every = 1.0

    def __init__(
        self, folder: Path, words: Sequence[str] = (), *, at_once: int | None = None, alone: bool = False
    ) -> None:
        """Find Slurm.

        :param folder: the campaign's, where scripts and what Slurm says of them go.
        :param words: more words for sbatch.
        :param at_once: most cells that run at a time.
        :param alone: whether a cell has its node for itself, as one that measures time needs; `words` may undo it.
        :raises MachineError: if there is no sbatch here.
        """
        tools.find_tool("sbatch")
        self._folder = (folder / "slurm").resolve()
        self._words = [*(["--exclusive"] if alone else []), *words]
        self._at_once = at_once
        self._unanswered = 0
        self._known: dict[str, str] = {}

    def room(self) -> int:
        """See Engine: Slurm takes all, and lets them wait."""
        return 1 << 20

    def start(self, work: Sequence[Work]) -> list[str]:
        """See Engine: an array for each host that cells are for."""
        jobs: dict[int, str] = {}
        arrays: list[str] = []
        try:
            for host in dict.fromkeys(each.host for each in work):
                mine = [number for number, each in enumerate(work) if each.host == host]
                arrays.append(self._submit([work[number] for number in mine], host))
                jobs |= {number: f"{arrays[-1]}_{place}" for place, number in enumerate(mine)}
        except BaseException as error:
            # nobody else learns the numbers of those that Slurm took before it refused one
            if arrays and self._cancel(arrays) and isinstance(error, MachineError):
                raise MachineError(
                    f"{error.args[0]}; the arrays before it could not be cancelled",
                    remedy=f"scancel {' '.join(arrays)}, and see what sinfo shows",
                ) from error
            raise
        return [jobs[number] for number in range(len(work))]

    def _submit(self, work: Sequence[Work], host: str) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for place, each in enumerate(work):
            each.folder.mkdir(parents=True, exist_ok=True)
            # bash waits for it and does not become it: the cell ends with the process that started it
            log = shlex.quote(str(each.folder / "log.txt"))
            lines.append(f"{place}) {shlex.join(each.command)} >>{log} 2>&1 </dev/null; exit $? ;;")
        script = "#!/bin/bash\ncase $SLURM_ARRAY_TASK_ID in\n" + "\n".join(lines) + "\nesac\n"
        limit = f"%{self._at_once}" if self._at_once else ""
        command = [
            tools.find_tool("sbatch"), "--parsable", "--requeue", f"--array=0-{len(work) - 1}{limit}",
            "--job-name=hwrx", f"--output={self._folder}/%A_%a.txt", "--open-mode=append",
            *([f"--nodelist={host}"] if host else []), *self._words,
        ]  # fmt: skip
        done = subprocess.run(
            command, input=script, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        found = re.match(r"(\d+)", done.stdout)
        if done.returncode or not found:
            raise MachineError(
                f"Slurm did not take the cells: {(done.stderr or done.stdout).strip()[:500]}",
                remedy="sinfo shows what it has; --sbatch '--partition=…' chooses",
            )
        return found[1]

    def standing(self, jobs: Sequence[str]) -> dict[str, str]:
        """See Engine."""
        arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs if job))
        if not arrays:  # a driver that was killed while it handed them over: squeue would list everybody's
            return {}
        done = subprocess.run(
            [tools.find_tool("squeue"), "--noheader", "--array", "--states=all", "--format=%i|%T|%N",
             f"--jobs={arrays}"],
            capture_output=True, encoding="utf-8", errors="replace", check=False,
        )  # fmt: skip
        # an array that slurmctld has forgotten is an error of squeue's, too
        if done.returncode and "Invalid job id" not in done.stderr:
            self._unanswered += 1
            if self._unanswered < LOST_AFTER:
                return {job: self._known.get(job, "") for job in jobs}
            raise UnansweredError(
                f"Slurm does not answer: {done.stderr.strip()[:300]}",
                remedy="sinfo; then the same again, which finds the cells that go on",
            )
        self._unanswered = 0
        found = {}
        for line in done.stdout.splitlines():
            job, state, node = (*line.strip().split("|"), "", "")[:3]
            if state and state not in ENDED:
                found[job] = node
        self._known = {job: found[job] for job in jobs if job in found}
        return self._known

    def end(self, jobs: Sequence[str]) -> list[str]:
        """See Engine. scancel sends SIGTERM, then, after the cluster's KillWait, SIGKILL."""
        mine = [job for job in jobs if job]
        if not mine or not self._cancel(mine):
            return []
        try:  # one that had ended before is an error of scancel's, too
            return list(self.standing(mine))
        except UnansweredError:
            return mine

    def _cancel(self, jobs: Sequence[str]) -> bool:
        """Cancel jobs; return whether scancel failed."""
        done = subprocess.run([tools.find_tool("scancel"), *jobs], capture_output=True, check=False)
        return done.returncode != 0
