"""Repeats: every one has processes of its own, and nothing of one repeat runs beside a trial of the next."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hwrx import experiment, run, store
from hwrx.errors import TrialError
from hwrx.experiment import Plan, Trial
from hwrx.messages import Place, Role
from hwrx.peers import Peer, ProcessChannel
from hwrx.run import Measured, Outcome, Pair
from hwrx.store import Writer
from hwrx.testbed import Bed


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
    return experiment.plan(experiment.from_options(**given))


def carried_out(root: Path, plan: Plan, bed: Bed) -> tuple[Outcome, dict[int, set[tuple[int, int]]]]:
    """How the run went, and by repeat the pids of the ends of its trials."""
    pids: dict[int, set[tuple[int, int]]] = {}

    def look(pair: Pair, trial: Trial, measured: Measured, writer: Writer) -> None:
        pids.setdefault(trial.repeat, set()).add((pid_of(pair.peers["client"]), pid_of(pair.peers["server"])))

    with store.Writer.create(root, plan, {}) as writer:
        return run.execute(plan.trials, bed, writer, twin=look), pids


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
        outcome = run.execute(plan.trials, bed, writer, twin=kill)
    assert outcome.measured == 2

    plan = layout(repeats=1)
    with store.Writer.create(tmp_path, plan, {}) as writer, pytest.raises(TrialError, match=r"trial 1 .* broke off"):
        run.execute(plan.trials, Counted(), writer, twin=kill)
