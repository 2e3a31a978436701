"""Repeats: every one has processes of its own, and nothing of one repeat runs beside a trial of the next; and where
the ends of a trial run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwrx
from hwrx.control.messages import Role, Setting
from hwrx.control.peers import Peer, ProcessChannel
from hwrx.control.places import Place
from hwrx.errors import TrialError
from hwrx.machine import placement
from hwrx.machine.placement import Wish
from hwrx.runs import experiment, planning, schedule, store, testbed
from hwrx.runs.planning import Plan
from hwrx.runs.schedule import Measured, Outcome, Pair
from hwrx.runs.store import Writer
from hwrx.runs.testbed import Bed
from hwrx.runs.trials import Trial

CHEAPEST = 0.1


class Counted(Bed):
    """The loopback device, and who was alive when an agent was started."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(("client", "server"), Place()), dict.fromkeys(("client", "server"), "local"), {})
        self.pids: list[int] = []
        self.alive_at_start: list[int] = []

    def start(self, role: Role) -> Peer:
        self.alive_at_start.append(sum(Path(f"/proc/{pid}").exists() for pid in self.pids))
        peer = super().start(role)
        self.pids.append(pid_of(peer))
        return peer


def pid_of(peer: Peer) -> int:
    assert isinstance(peer._channel, ProcessChannel)
    return peer._channel.process.pid


def layout(**options: object) -> Plan:
    given = {"paths": ["udp", "tcp"], "topology": "here", "repeats": 3, "messages": 50, "seed": 1, **options}
    return planning.plan_run(experiment.from_options(**given))


def carried_out(root: Path, plan: Plan, bed: Bed) -> tuple[Outcome, dict[int, set[tuple[int, int]]]]:
    """How the run went, and by repeat the pids of the ends of its trials."""
    pids: dict[int, set[tuple[int, int]]] = {}

    def look(pair: Pair, trial: Trial, measured: Measured, writer: Writer) -> None:
        pids.setdefault(trial.repeat, set()).add((pid_of(pair.peers["client"]), pid_of(pair.peers["server"])))

    with store.Writer.create(root, plan, {}) as writer:
        return schedule.execute_trials(plan.trials, bed, writer, twin=look), pids


def test_each_repeat_has_processes_of_its_own_and_its_trials_share_them(tmp_path: Path) -> None:
    bed = Counted()
    outcome, pids = carried_out(tmp_path, layout(), bed)
    assert outcome.measured == 6
    assert [len(pairs) for pairs in pids.values()] == [1, 1, 1]
    everybody = [pid for pairs in pids.values() for pair in pairs for pid in pair]
    assert len(set(everybody)) == 6
    # the client of a repeat is started beside its server, and beside nobody else
    assert bed.alive_at_start == [0, 1] * 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in bed.pids)


def test_each_sender_is_started_anew(tmp_path: Path) -> None:
    bed = Counted()
    outcome, _ = carried_out(tmp_path, layout(paths=["udp"], senders=3, repeats=2), bed)
    assert outcome.failed == []
    assert bed.alive_at_start == [0, 1, 2, 3, 4, 5] * 2


def test_an_agent_that_died_between_two_trials_ends_its_repeat_only_if_it_has_trials_left(tmp_path: Path) -> None:
    plan = layout(paths=["udp"], repeats=2)
    bed = Counted()

    def kill(pair: Pair, trial: Trial, measured: Measured, writer: Writer) -> None:
        os.kill(pid_of(pair.peers["server"]), signal.SIGKILL)

    with store.Writer.create(tmp_path, plan, {}) as writer:
        outcome = schedule.execute_trials(plan.trials, bed, writer, twin=kill)
    assert outcome.measured == 2

    plan = layout(repeats=1)
    with store.Writer.create(tmp_path, plan, {}) as writer, pytest.raises(TrialError, match=r"trial 1 .* broke off"):
        schedule.execute_trials(plan.trials, Counted(), writer, twin=kill)


def compare(runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "hwrx", "compare", "--paths", "udp", "--topology", "netns", *words]
    argv += ["--messages", "50", "--repeats", "1", "--runs", str(runs)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def placements(root: Path) -> list[dict[str, Any]]:
    return [line["extra"]["placement"] for line in hwrx.load(root / "latest").journal]


def test_the_ends_run_on_cpus_of_their_own_which_are_recorded(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("two CPUs")
    done = compare(tmp_path)
    assert done.returncode == 0, done.stderr
    (seen,) = placements(tmp_path)
    assert seen["by"] == "hwrx"
    assert seen["shared"] != "cpu"
    assert seen["client"]["pinned"]
    assert seen["server"]["pinned"]
    manifest = hwrx.load(tmp_path / "latest").manifest
    assert manifest["placement"] == seen
    assert "the layout of their memory" in manifest["renewal"]["renewed"]
    page = (tmp_path / "latest" / "report.html").read_text()
    assert "all repeats of the run shared the boot of the machine" in page


def test_the_user_chooses_the_cpus(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("two CPUs")
    first, *_, last = sorted(os.sched_getaffinity(0))
    for given, cpus in ((f"{first},{last}", (first, last)), (f"{last},{last}", (last, last))):
        assert compare(tmp_path / given, "--cpu", given).returncode == 0
        (seen,) = placements(tmp_path / given)
        assert (seen["client"]["cpu"], seen["server"]["cpu"]) == cpus
        assert seen["by"] == "the user"
    assert seen["shared"] == "cpu"
    assert compare(tmp_path / "any", "--cpu", "any").returncode == 0
    assert placements(tmp_path / "any")[0]["by"] == "the scheduler"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cpu", "4711"], "has no CPU 4711"),
        (["--numa", "77"], "no CPU of node 77"),
        (["--cpu", "0,0", "--wait", "poll"], "both ends are to share CPU 0"),
        (["--cpu", "1-2"], "is not CLIENT or CLIENT,SERVER"),
        (["--cpu", "-1"], "is not CLIENT or CLIENT,SERVER"),
        (["--cpu", "1,2,3"], "is not CLIENT or CLIENT,SERVER"),
    ],
)
def test_a_cpu_that_cannot_be_gets_words_and_makes_no_run(tmp_path: Path, words: list[str], said: str) -> None:
    done = compare(tmp_path, *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "latest").exists()


def test_pollers_that_the_machine_cannot_keep_apart_are_a_failed_trial_with_the_remedy(tmp_path: Path) -> None:
    plan = layout(paths=["udp"], waits=["poll"], repeats=1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # as taskset does; agents inherit it
    try:
        outcome, _ = carried_out(tmp_path, plan, Counted())
    finally:
        os.sched_setaffinity(0, before)
    assert outcome.measured == 0
    assert f"share CPU {max(before)}" in outcome.failed[0]
    assert "--cpu CLIENT,SERVER" in hwrx.load(tmp_path / "latest").journal[0]["error"]


def test_an_agent_on_one_cpu_of_many_runs_there_when_told(tmp_path: Path) -> None:
    bed = Counted()
    cpus = sorted(os.sched_getaffinity(0))
    with Pair(bed, Wish(cpu=(cpus[0], cpus[-1]))) as pair:
        setting = Setting(path="udp", messages=100)
        assert pair.measure(0, setting).placement["client"]["cpu"] == cpus[0]
    with Pair(bed, Wish(cpu="any")) as pair:
        pair.measure(0, setting)
        free = Path(f"/proc/{pid_of(pair.peers['client'])}/status").read_text()
    assert f"Cpus_allowed_list:\t{placement.show_cpus(cpus)}\n" in free


def test_counted_instructions_are_the_same_in_every_repeat(needs: Callable[..., None]) -> None:
    needs("guest")
    given = experiment.from_options(
        paths=["udp"], topology="netns", clock="icount", repeats=3, messages=200, check_every=0, seed=1
    )
    least = []
    with testbed.opened_bed(given, testbed.Wanted()) as bed, Pair(bed) as pair:
        for trial in planning.plan_run(given).trials:
            if trial.number:
                pair.renew()
            measured = pair.measure(trial.number, trial.setting, repeat=trial.repeat)
            # of messages of several kinds (who is woken interrupts, or waits) the cheapest: mixtures differ
            least.append(float(f"{np.quantile(measured.ns, CHEAPEST):.4g}"))
    assert measured.placement["shared"] == "cpu"
    assert "WAKEUP_PREEMPTION" in measured.placement["features_off"]
    assert (max(least) - min(least)) / min(least) < 2e-3
