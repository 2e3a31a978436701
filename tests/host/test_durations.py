"""Trials that go on for a time: how many messages came is known at the end, at both ends, and all add up."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from hwrx.report.rows import rows_of
from hwrx.runs import experiment, planning, reading, schedule, testbed
from hwrx.runs.reading import Run
from hwrx.runs.store import Writer

DURATION = 0.3


def carried_out(tmp_path: pathlib.Path, text: str) -> tuple[Run, list[str]]:
    plan = planning.plan_run(experiment.parse_experiment(text, source="test"))
    with testbed.opened_bed(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        outcome = schedule.execute_trials(plan.trials, bed, writer)
    return reading.load_run(writer.path), outcome.failed


def test_every_pattern_ends_by_the_clients_clock_and_its_account_closes(tmp_path: pathlib.Path) -> None:
    run, failed = carried_out(
        tmp_path,
        f"""
        paths = ["udp", "tcp", "packet-ring", "roce-write", "roce-read"]
        patterns = ["pingpong", "stream"]
        sizes = [64, "imix"]
        topology = "netns"
        repeats = 1
        [setting]
        duration = {DURATION}
        [path.tcp.stream]
        messages = 8_000_000  # of 64 bytes a fast machine sends more than there is memory for by default
        """,
    )
    assert failed == []
    for trial in run.trials.to_pylist():
        assert trial["status"] == "ok"
        assert trial["duration"] == DURATION
        # the number that came stands where a number that was asked for stands in other runs
        assert trial["expected"] == trial["messages"] + trial["warmup"] + trial["cooldown"] == trial["posted"]
        assert trial["samples"] + trial["lost"] >= trial["messages"]
        assert trial["delivered"] + trial["lost"] == trial["expected"]
        assert trial["corrupt"] == trial["wrong_size"] == trial["duplicated"] == trial["stale"] == 0
        if trial["pattern"] == "pingpong":  # without the checks, which are no part of any sample
            assert np.sum(run.trial_samples(trial["trial"]).ns) <= 1e9 * DURATION * 1.5
        assert trial["cpu_client_thread"], trial["label"]


def test_an_open_loop_sends_what_is_due_in_the_time(tmp_path: pathlib.Path) -> None:
    run, failed = carried_out(
        tmp_path,
        f"""
        paths = ["udp"]
        patterns = ["paced"]
        topology = "netns"
        repeats = 1
        [setting]
        duration = {DURATION}
        rate = 1000.0
        """,
    )
    assert failed == []
    assert run.trials.to_pylist()[0]["messages"] == 1000 * DURATION


@pytest.mark.parametrize("more", ["senders = 2", "connections = 3"])
def test_several_ends_each_find_their_own_number(tmp_path: pathlib.Path, more: str) -> None:
    run, failed = carried_out(
        tmp_path, f'paths = ["udp"]\ntopology = "netns"\nrepeats = 1\n[setting]\nduration = {DURATION}\n{more}'
    )
    assert failed == []
    trial = run.trials.to_pylist()[0]
    assert trial["delivered"] + trial["lost"] == trial["expected"]
    assert trial["samples"] > 0


@pytest.mark.parametrize("senders", [1, 2])
def test_a_message_costs_the_same_processor_time_by_a_time_as_by_a_number(tmp_path: pathlib.Path, senders: int) -> None:
    costs = []
    for length in (f"duration = {DURATION}", "messages = 5000"):
        run, failed = carried_out(
            tmp_path,
            f'paths = ["udp"]\ntopology = "netns"\nrepeats = 1\n[setting]\nsenders = {senders}\n{length}',
        )
        assert failed == []
        trial = run.trials.to_pylist()[0]
        costs.append(trial["cpu_thread"] / trial["samples"])
    # a busy machine moves either, and not by the hundreds that there was memory for
    assert 1 / 4 < costs[0] / costs[1] < 4, costs


def test_memory_that_is_full_before_the_time_is_told(tmp_path: pathlib.Path) -> None:
    run, failed = carried_out(
        tmp_path,
        'paths = ["tcp"]\ntopology = "netns"\nrepeats = 1\n[setting]\nduration = 30.0\nmessages = 50\n',
    )
    assert len(failed) == 1
    assert "the memory for 50 measured messages was full before 30 s were over" in failed[0]
    assert run.trials.to_pylist()[0]["samples"] == 50


def test_repeats_of_a_duration_are_one_row_however_many_messages_each_had(tmp_path: pathlib.Path) -> None:
    run, failed = carried_out(
        tmp_path,
        """
        paths = ["udp"]
        patterns = ["pingpong", "paced"]
        topology = "netns"
        repeats = 3
        [setting]
        duration = 0.1
        rate = 2000.0
        """,
    )
    assert failed == []
    assert len({trial["messages"] for trial in run.trials.to_pylist()}) > 2
    rows = rows_of(run, "")
    assert all("messages" not in row.setting and row.setting["duration"] == 0.1 for row in rows)
    assert sorted((row.pattern, len(row.repeats), row.swept) for row in rows) == [("paced", 3, {}), ("pingpong", 3, {})]
