"""Processor time by actor: both ends put together, and what is not known."""

from __future__ import annotations

import pathlib
from typing import Any

import made_runs
import msgspec
import pytest

import hwrx
from hwrx.control.messages import Done, Setting
from hwrx.paths import cputime
from hwrx.report import actors

TIMERS = """Timer List Version: v0.9
cpu: 0
  .idle_calls     : 469
  .idle_sleeptime : 1000500 nsecs
  .iowait_sleeptime: 20 nsecs
"""


def end(**used: int) -> Done:
    given = {"messages": 1000, "elapsed": 9_000_000, "thread": 4_000_000, "user": 0, "system": 0, "tick": 4_000_000}
    given["housekeeping"] = 0
    return Done(tally={}, ended="complete", cpu={**given, **used})


def account(client: Done, server: Done, *, alone: bool = True, **setting: Any) -> tuple[dict[str, Any], dict[str, str]]:
    return cputime.account_time(Setting(**{"path": "udp", "messages": 1000, **setting}), client, server, alone)


def test_a_machine_of_one_cpu_is_busy_where_it_is_not_idle() -> None:
    found, missing = account(end(idle=500_000, worker=100_000), end(thread=4_100_000))
    assert (found["thread"], found["worker"], found["idle"]) == (8_100_000, 100_000, 500_000)
    assert found["busy"] == 8_500_000
    assert found["busy"] == found["thread"] + found["worker"] + found["other"]
    assert set(missing) == {"user", "system", "softirq", "interrupt"}
    assert all(";" in reason for reason in missing.values())  # what to do


def test_the_kernels_housekeeping_is_no_messages_cost() -> None:
    found, _ = account(end(idle=500_000, worker=100_000, housekeeping=300_000), end())
    assert (found["housekeeping"], found["busy"]) == (300_000, 8_200_000)


def test_what_either_end_does_to_the_bytes_of_checked_messages_is_no_messages_cost() -> None:
    """A meter leaves out what its own end does; `elapsed` of the one that reads for the machine holds the other's."""
    found, _ = account(end(idle=500_000, worker=100_000, away=70_000), end(thread=4_100_000, away=200_000))
    assert (found["thread"], found["busy"]) == (8_100_000, 8_300_000)


def test_kworkers_of_one_cpu_keep_house_and_rxes_do_not(tmp_path: pathlib.Path) -> None:
    names = ("kworker/0:1-events", "khugepaged", "kcompactd0", "kworker/u4:2+rxe_wq", "ksoftirqd/0")
    files = [tmp_path / str(number) / "schedstat" for number in range(len(names))]
    for file, name in zip(files, names, strict=True):
        file.parent.mkdir()
        file.with_name("comm").write_text(name + "\n")
    assert [cputime._keeps_house(str(file)) for file in files] == [True, True, True, False, False]


def test_the_machine_is_counted_once() -> None:
    """By the end that sees the messages arrive, whatever the other says of it."""
    found, _ = account(end(idle=500_000, worker=0), end(idle=700_000, worker=9))
    assert (found["idle"], found["worker"]) == (500_000, 0)
    found, _ = account(end(idle=500_000, worker=0), end(idle=700_000, worker=9), pattern="stream")
    assert (found["idle"], found["worker"]) == (700_000, 9)


def test_all_is_brought_to_the_measured_messages() -> None:
    """A receiver of batches was read where it had five messages more, or less."""
    found, _ = account(end(messages=995), end(messages=1005, idle=0, worker=2010, elapsed=10_050_000), pattern="stream")
    assert found["thread"] == round(4_000_000 / 0.995) + round(4_000_000 / 1.005)
    assert (found["worker"], found["busy"]) == (2000, 10_000_000)


def test_where_others_use_the_machine_only_the_threads_are_known() -> None:
    found, missing = account(end(), end(), alone=False)
    assert found["thread"] == 8_000_000
    assert not {"worker", "idle", "busy", "other"} & set(found)
    assert "others use this machine" in missing["busy"]


def test_several_cpus_and_several_senders_have_no_busy() -> None:
    found, missing = account(end(worker=7), end())
    assert found["worker"] == 7
    assert "several CPUs" in missing["busy"]
    _, missing = account(end(worker=7, idle=3), end(), senders=2)
    assert "several senders" in missing["busy"]


def test_user_and_system_are_divided_if_the_kernel_looked_often_enough() -> None:
    often = {"thread": 800_000_000, "user": 200_000_000, "system": 600_000_000}
    found, missing = account(end(**often), end(**often), alone=False)
    assert (found["user"], found["system"]) == (400_000_000, 1_200_000_000)
    assert "user" not in missing
    found, missing = account(end(user=4_000_000), end(system=4_000_000), alone=False)
    assert "user" not in found
    assert "less than 100 of those" in missing["user"]


def test_an_end_that_did_not_see_the_last_message_makes_the_time_unknown() -> None:
    nothing = Done(tally={}, ended="finished")
    found, missing = account(end(), nothing)
    assert found == {}
    assert "server" in missing["thread"]


@pytest.mark.parametrize(
    ("path", "pattern"), [("rdma-read", "pingpong"), ("rdma-read", "stream"), ("rdma-write", "stream")]
)
def test_an_end_whose_memory_alone_takes_part_uses_nothing(path: str, pattern: str) -> None:
    found, missing = account(end(), Done(tally={}, ended="complete"), alone=False, path=path, pattern=pattern)
    assert found["thread"] == 4_000_000
    assert "thread" not in missing


def test_idle_time_is_what_the_kernel_calls_so() -> None:
    assert cputime.idle_times(TIMERS) == [1_000_520]
    assert cputime.idle_times(TIMERS + TIMERS) == [1_000_520, 1_000_520]
    assert cputime.idle_times("") == []


def test_the_report_has_a_table_of_it(tmp_path: pathlib.Path) -> None:
    made = hwrx.load(made_runs.make(tmp_path, patterns=["pingpong", "stream"])).summary()
    (table,) = actors.actor_tables(made)
    assert [name for name, _ in table.columns[-5:]] == ["both ends' threads", "worker", "other", "idle", "busy"]
    assert f"Not known: softirq ({cputime.CHARGED}; --trace tells them apart)" in table.caption
    by_pattern = {row.pattern: row for row in made.rows}
    # made up: 11 µs of threads for a sample, which is a round trip of two messages, or a message of a stream
    assert by_pattern["stream"].cpu["thread"].value == pytest.approx(11)
    assert by_pattern["pingpong"].cpu["thread"].value == pytest.approx(5.5)
    assert by_pattern["pingpong"].cost is None  # the wall clock counts no instructions


def test_where_instructions_are_counted_what_was_busy_is_the_cost(tmp_path: pathlib.Path) -> None:
    run = hwrx.load(made_runs.make(tmp_path, patterns=["pingpong", "stream"], clock="icount", topology="pair"))
    by_pattern = {row.pattern: row for row in run.summary().rows}
    for pattern, cost in (("stream", 12_500), ("pingpong", 6250)):
        row = by_pattern[pattern]
        assert row.cost is not None
        assert row.cost.value == pytest.approx(cost)
        assert row.busy == pytest.approx([cost] * len(row.digests))
        assert row.cpu["busy"].value == pytest.approx(cost)


def test_several_senders_add_up() -> None:
    added = cputime.add_ends([end().cpu, end(thread=1).cpu], [1000, 1000])
    assert (added["thread"], added["messages"]) == (4_000_001, 2000)
    assert cputime.add_ends([end().cpu, {}], [1000, 1000]) == {}


def test_each_sender_is_brought_to_its_own_messages() -> None:
    """Of many connections a meter reads a few messages beside, and a time ends each sender at another number."""
    ends = [end(messages=800).cpu, end(messages=500, thread=1_000_000).cpu]
    added = cputime.add_ends(ends, [1000, 250])
    assert added["thread"] == 5_000_000 + 500_000
    found, _ = account(Done(tally={}, ended="complete", cpu=added), end(messages=1250), alone=False, messages=1250)
    assert found["thread"] == 5_500_000 + 4_000_000


def test_a_rest_is_nobodys_time() -> None:
    class Read:
        """A meter that has been read twice."""

        def found(self) -> dict[str, int]:
            return {"messages": 10, "beside": 0, "elapsed": 9000, "thread": 8000, "user": 0, "system": 0, "tick": 1}

    rested = cputime.time_used(Read(), alone=False, rest=500)  # type: ignore[arg-type]
    assert (rested["elapsed"], rested["thread"]) == (4000, 3000)


def test_what_runs_while_a_stream_settles_is_nobodys_message() -> None:
    """The receiver's first reading is before the sender's sleep: somebody else's 500 ns are in it, and in no cost."""
    setting = Setting(path="udp", pattern="stream", messages=10, settle=1000)
    same = {"messages": 10, "user": 0, "system": 0, "tick": 4000, "beside": 0, "housekeeping": 0}
    counters = {"housekeeping_began": 7, "housekeeping_ended": 7}
    client = {
        **same, **counters, "elapsed": 1000, "thread": 300, "worker": 0, "idle": 600, "began": 2000, "ended": 3000,
        "worker_began": 40, "worker_ended": 40, "idle_began": 5500, "idle_ended": 6100,
    }  # fmt: skip
    server = {
        **same, **counters, "elapsed": 1500, "thread": 200, "worker": 40, "idle": 500, "began": 1000, "ended": 2500,
        "worker_began": 0, "worker_ended": 45, "idle_began": 5000, "idle_ended": 5500,
    }  # fmt: skip
    ends = [Done(tally={}, ended="complete", cpu=cpu) for cpu in (client, server)]
    found, _ = cputime.account_time(setting, *ends, alone=True)
    assert (found["busy"], found["idle"], found["worker"], found["other"]) == (500, 0, 5, 0)
    plain = msgspec.structs.replace(setting, settle=0)
    found, _ = cputime.account_time(plain, *ends, alone=True)
    assert (found["busy"], found["idle"], found["worker"], found["other"]) == (1000, 500, 40, 460)


def test_of_many_connections_as_many_are_sent_meanwhile_as_come_or_there_is_no_figure() -> None:
    found, missing = account(end(), end(), connections=100)
    assert found == {}
    assert "set cooldown to as many as there are connections" in missing["thread"]
    found, _ = account(end(), end(), connections=100, cooldown=100)
    assert found["thread"] == 8_000_000
