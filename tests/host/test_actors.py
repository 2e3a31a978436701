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


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_the_ends_have_the_time_of_the_measured_messages_and_no_other(path: str) -> None:
    """Most messages are warm-up: with those in it, the time would be six times as long.

    The kernel's clocks of the ends' threads are a bound only: where others take a CPU in turn, they have time of those
    others in them, for the kernel does not read its clock at each change (rq_clock_skip_update). In a guest, where
    nobody else is, they are compared exactly: test_timed_region.
    """
    setting = Setting(path=path, messages=1000, warmup=5000, check_every=0, wait="poll")
    with topology.netns() as made, Pair(Bed(made.places, made.peers, {})) as pair:
        plain = pair.measure(0, setting)
        counted.attach_counter(pair)
        found, measured = counted.run_twin(pair, 1, setting, counted.loop_seconds(plain, setting), alone=False)
        assert min(found["user"], found["system"], found["softirq"]) > 0
        # softirqs and interrupts are charged to whoever they interrupt: some took others' time
        assert sum(found.values()) < 2 * measured.cpu["thread"]
        assert "other" not in found
        assert "idle" not in found
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
