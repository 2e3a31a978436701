"""Many sockets of one process, between two network namespaces: each message is answered on its own, and all add up."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pyarrow.compute as pc
import pytest

from hwrx import paths
from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.report.rows import rows_of
from hwrx.runs import experiment, planning, reading, schedule, testbed
from hwrx.runs.reading import Run
from hwrx.runs.store import Writer


def carried_out(tmp_path: pathlib.Path, text: str) -> Run:
    plan = planning.plan_run(experiment.parse_experiment(text, source="test"))
    with testbed.opened_bed(plan.experiment, testbed.Wanted()) as bed, Writer.create(tmp_path, plan, {}) as writer:
        outcome = schedule.execute_trials(plan.trials, bed, writer)
        assert outcome.failed == []
    return reading.load_run(writer.path)


def asked(path: str, **fields: object) -> str:
    given = "\n".join(f"{name} = {value!r}".replace("'", '"') for name, value in fields.items())
    return f'paths = ["{path}"]\ntopology = "netns"\nrepeats = 1\n[setting]\n{given}'


@pytest.mark.parametrize("path", ["udp", "tcp"])
@pytest.mark.parametrize("connections", [2, 300])
def test_every_request_is_answered_on_its_own_connection(tmp_path: pathlib.Path, path: str, connections: int) -> None:
    run = carried_out(tmp_path, asked(path, connections=connections, messages=2000, check_every=1, patience=20.0))
    trial = run.trials.to_pylist()[0]
    # as many before and behind the measured ones as there are connections, and no less than of one
    total = 2000 + max(100, connections) + max(16, connections)
    assert (trial["status"], trial["connections"], trial["delivered"], trial["lost"]) == ("ok", connections, total, 0)
    assert trial["checked"] == 2 * total
    assert trial["corrupt"] == trial["strayed"] == trial["duplicated"] == trial["reordered"] == 0
    each = run.table("connections")
    assert each is not None
    assert each["connection"].to_pylist() == list(range(connections))
    for name in ("sent", "received", "answered"):
        assert pc.sum(each[name]).as_py() == total
    assert each["sent"].to_pylist() == each["received"].to_pylist() == each["answered"].to_pylist()
    assert pc.sum(each["unanswered"]).as_py() == 0
    assert trial["by_connection_answered_least"] == min(each["answered"].to_pylist())
    assert trial["samples"] == trial["answered_messages"] == 2000
    # not each connection has a message under way all the time: what messages take tells no more than a bound
    (row,) = rows_of(run, "")
    assert row.messages_per_s is not None
    assert row.messages_per_s.value == pytest.approx(trial["answered_per_s"])
    assert 0 < trial["answered_per_s"] < 1.1 * connections * 1e9 / run.trial_samples(trial["trial"]).ns.mean()


@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_each_of_several_senders_has_its_connections(tmp_path: pathlib.Path, path: str) -> None:
    run = carried_out(tmp_path, asked(path, senders=2, connections=3, messages=300, check_every=1, patience=20.0))
    trial = run.trials.to_pylist()[0]
    assert (trial["status"], trial["senders"], trial["connections"]) == ("ok", 2, 3)
    assert (trial["delivered"], trial["lost"], trial["strayed"], trial["samples"]) == (2 * 416, 0, 0, 600)
    each = run.table("connections")
    assert each is not None
    assert each["connection"].to_pylist() == list(range(6))
    sent = each["sent"].to_pylist()
    assert sent == each["received"].to_pylist() == each["answered"].to_pylist()
    assert sum(sent[:3]) == sum(sent[3:]) == 416  # of each sender all of its messages


def test_tcp_messages_that_no_socket_buffer_holds_are_sent_in_parts(tmp_path: pathlib.Path) -> None:
    text = asked("tcp", connections=8, messages=40, warmup=4, check_every=1, socket_buffer=65536)
    run = carried_out(tmp_path, text.replace("repeats = 1", "repeats = 1\nsizes = [300000]"))
    trial = run.trials.to_pylist()[0]
    assert (trial["status"], trial["lost"], trial["checked"]) == ("ok", 0, 2 * 60)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("tcp", {"wait": "select"}, "many sockets are waited for by epoll"),
        ("udp", {"rest": 100}, "rest is of a single connection"),
        ("tcp", {"zerocopy_send": True}, "zerocopy_send is of a single connection"),
        ("udp", {"hook": "tap"}, "a hook stands beside a single socket"),
    ],
)
def test_what_is_of_one_connection_is_refused(path: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        paths.check_setting(Setting(path=path, connections=5, **fields))  # type: ignore[arg-type]
    assert caught.value.remedy


def test_an_end_that_dies_is_named_and_nothing_hangs(tmp_path: pathlib.Path) -> None:
    """An agent is killed in the middle; what the command says names it."""
    argv = [sys.executable, "-P", "-m", "hwrx", "compare", "--paths", "tcp", "--topology", "netns", "--connections"]
    argv += ["50", "--messages", "3000000", "--repeats", "1", "--runs", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        killed = kill_agent(command.pid)
        _, said = command.communicate(timeout=120)
    assert killed
    assert command.returncode != 0
    assert re.search("peer (client|server) is gone: killed by SIGKILL", said)


def kill_agent(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # an agent that has all of its sockets is at work, or will be at once
        for child in found:
            try:
                if len(os.listdir(f"/proc/{child}/fd")) > 50:  # noqa: PTH208 -- there may be thousands
                    time.sleep(0.3)
                    os.kill(int(child), signal.SIGKILL)
                    return True
            except OSError:
                continue
        time.sleep(0.05)
    return False
