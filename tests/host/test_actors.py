"""Counted twins on this machine's kernel: whose time the measured messages took, against what the ends' meters read."""

from __future__ import annotations

import pathlib

import pytest

import hwrx
from hwrx.control.messages import Setting
from hwrx.runs import experiment, planning, schedule, store
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines import counted
from hwrx.wires import topology

TWINS = 7


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_the_ends_have_the_time_of_the_measured_messages_and_no_other(path: str) -> None:
    """Most messages are warm-up: with those in it, the time would be six times as long.

    The ends poll: of an end that sleeps, the kernel's clock of its thread has time in which its CPU was still idle.
    """
    setting = Setting(path=path, messages=1000, warmup=5000, check_every=0, wait="poll")
    twins = []
    with topology.netns() as made, Pair(Bed(made.places, made.peers, {})) as pair:
        plain = pair.measure(0, setting)
        counted.attach_counter(pair)
        for number in range(TWINS):
            twins.append(counted.run_twin(pair, 1, setting, counted.loop_seconds(plain, setting), alone=False))
            assert "other" not in twins[number][0]
            assert "idle" not in twins[number][0]
        # where others take the ends' CPUs in turn, the kernel's clock of a thread is off by up to a tick for each time:
        # the twin that had the least of that is compared
        found, measured = min(twins, key=lambda twin: twin[1].cpu["thread"])
        own = found["user"] + found["system"]
        assert 0 < own <= 1.1 * measured.cpu["thread"]
        # the meter's time of a thread has in it what softirqs and interrupts took of it; some took others'
        assert 0.9 * measured.cpu["thread"] < sum(found.values()) < 1.5 * measured.cpu["thread"]
        whole, again = counted.run_twin(pair, 2, setting, counted.loop_seconds(plain, setting), alone=True)
        start, stop = again.client.between
        assert sum(whole.values()) % (stop - start) == 0, "every CPU's sum is the time that has passed"
        assert whole["softirq"] > 0


def test_a_run_that_goes_on_counts_the_twins_that_it_was_interrupted_before(tmp_path: pathlib.Path) -> None:
    asked = experiment.from_options(
        name="broken-off", paths=["udp", "tcp"], topology="netns", repeats=2, messages=500, trace=True, seed=1
    )
    plan = planning.plan_run(asked)
    with topology.netns() as made:
        bed = Bed(made.places, made.peers, {})
        writer = store.Writer.create(tmp_path, plan, {"machine": {}})
        with pytest.raises(KeyboardInterrupt), writer:
            schedule.execute_trials(plan.trials, bed, writer)
            raise KeyboardInterrupt
        assert hwrx.load(writer.path).table("actors") is None
        again, left = store.Writer.resume(writer.path)
        with again, counted.counted_twins(asked, bed, again):
            assert not left.trials
    table = hwrx.load(writer.path).table("actors")
    assert table is not None
    first = {trial.number for trial in plan.trials if trial.repeat == 0}
    assert set(table["trial"].to_pylist()) == first
    assert set(table["path"].to_pylist()) == {"udp", "tcp"}
