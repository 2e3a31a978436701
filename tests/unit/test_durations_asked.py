"""A duration in the place of a number of messages: what may be asked for, and what one end finds by its clock."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from two_sides import endpoint

from cython_ext.core.trial import Trial
from cython_ext.loops import loop
from hwrx import paths
from hwrx.cli import main
from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.paths import arrivals, mixes
from hwrx.runs import estimate, experiment, planning

LASTS = 50_000_000  # ns


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "tcp"])
def test_the_client_ends_by_its_clock_and_the_server_is_told(path: str, pattern: str) -> None:
    setting = Setting(path=path, pattern=pattern)  # type: ignore[arg-type]
    asks = Trial(messages=400_000, size=64, warmup=5, cooldown=3, trial=7, batch=16, lasts_ns=LASTS)
    answers = Trial(messages=400_000, size=64, warmup=5, cooldown=3, trial=7, batch=16, lasts_ns=LASTS, closes=False)
    ended: dict[str, str] = {}
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)

        def run(trial: Trial, end: object, role: str) -> None:
            ended[role] = loop.ENDED[loop.run(trial, end, pattern, role)]  # type: ignore[arg-type]

        threads = [
            threading.Thread(target=run, args=each) for each in ((answers, server, "server"), (asks, client, "client"))
        ]
        for thread in threads:
            thread.start()
        threads[1].join(60)
        assert not threads[1].is_alive()
        total = asks.counts()["expected"]
        answers.stop(total)
        threads[0].join(60)
        assert not threads[0].is_alive()
    assert ended["client"] == "complete"
    assert ended["server"] in ("complete", "finished")
    assert 8 < total < 400_008
    assert not asks.filled
    assert answers.counts()["delivered"] == total
    measured = total - 8
    posted = asks.posted
    assert np.all(posted[:measured] > 0)
    first, last = asks.meter.times
    assert last - first >= LASTS
    if pattern == "pingpong":  # a stream's first reading comes behind a whole batch
        assert posted[measured - 1] - posted[0] <= last - first


def test_a_trial_that_has_no_memory_for_more_says_so() -> None:
    setting = Setting(path="udp")
    trials = [Trial(messages=20, size=64, trial=7, lasts_ns=60_000_000_000, closes=closes) for closes in (True, False)]
    with endpoint("client", setting) as client, endpoint("server", setting) as server:
        ours, theirs = client.describe(), server.describe()
        client.connect(theirs)
        server.connect(ours)
        thread = threading.Thread(target=loop.run, args=(trials[1], server, "pingpong", "server"))
        thread.start()
        began = time.monotonic()
        assert loop.ENDED[loop.run(trials[0], client, "pingpong", "client")] == "complete"
        assert time.monotonic() - began < 50
        thread.join(60)
        assert not thread.is_alive()
    assert trials[0].filled
    assert trials[0].counts()["expected"] == 20


def test_an_open_loop_has_as_many_messages_as_are_due() -> None:
    even = Setting(path="udp", pattern="paced", rate=1000.0, duration=2.0, warmup=10)
    assert arrivals.timed_setting(even, 0, 1).messages == 2000
    random = Setting(path="udp", pattern="paced", rate=1000.0, duration=2.0, warmup=10, arrivals="poisson")
    found = arrivals.timed_setting(random, 0, 1)
    due = arrivals.schedule_sends(found, 0, 1)
    assert due[found.warmup + found.messages - 1] - due[9] <= 2e9 < due[found.warmup + found.messages] - due[9]
    assert arrivals.timed_setting(random, 1, 1).messages != found.messages
    assert arrivals.timed_setting(Setting(path="udp", duration=2.0), 0, 1).messages == 1000


def test_a_table_of_sizes_does_not_depend_on_how_many_came() -> None:
    timed = Setting(path="udp", mix="64:1,128:1", size=128, duration=1.0, messages=10)
    assert mixes.table_entries(timed, fetched=False) == mixes.ENTRIES


def test_a_plan_has_memory_for_what_may_come_and_lasts_as_long_as_was_asked() -> None:
    plan = planning.plan_run(
        experiment.parse_experiment('paths = ["udp"]\nrepeats = 1\n[setting]\nduration = 5.0', source="test")
    )
    assert plan.settings[0].messages == planning.MOST_TIMED
    assert 4 < estimate.estimate_run(plan).seconds < 20


def planned(text: str) -> planning.Plan:
    return planning.plan_run(experiment.parse_experiment(f'paths = ["udp"]\nrepeats = 1\n{text}', source="test"))


@pytest.mark.parametrize("where", ["path.udp", "path.udp.pingpong", "pattern.pingpong", 'size."64"', "setting"])
def test_there_is_memory_for_a_duration_wherever_it_stands(where: str) -> None:
    assert planned(f"sizes = [64]\n[{where}]\nduration = 5.0").settings[0].messages == planning.MOST_TIMED
    given = planned(f"sizes = [64]\n[setting]\nmessages = 77\n[{where.replace('setting', 'path.udp')}]\nduration = 5.0")
    assert given.settings[0].messages == 77


def test_an_open_loop_is_taken_to_last_its_duration_and_to_send_what_is_due() -> None:
    text = 'patterns = ["paced"]\n[setting]\nduration = 100.0\nrate = 100_000.0\nmessages = 10_000_000'
    found = estimate.estimate_run(planned(text))
    assert found.samples == 10_000_000
    assert found.seconds == pytest.approx(100, abs=5)
    with pytest.raises(UsageError, match="its budget is 50 s"):
        estimate.check_budget(planned(f"budget = 50.0\n{text}"))


@pytest.mark.parametrize(("messages", "rate"), [("messages = 1000", 10_000.0), ("", 300_000.0)])
def test_an_open_loop_with_more_messages_than_memory_is_refused_before_the_run(messages: str, rate: float) -> None:
    text = f'patterns = ["paced"]\n[setting]\nduration = 5.0\nrate = {rate}\n{messages}'
    with pytest.raises(UsageError, match="messages are due, and there is memory for") as refused:
        planned(text)
    assert f"messages = {round(5 * rate)}" in refused.value.remedy
    assert planned(text.replace(messages, "") + f"\nmessages = {round(5 * rate)}").settings


def test_a_rate_that_is_a_guess_is_not_held_against_the_memory() -> None:
    text = 'patterns = ["paced"]\nload = [0.5]\n[setting]\nduration = 5.0\nmessages = 1000\n'
    plan = planned(text)
    assert len(plan.settings) == 1
    key = planning.capacity_key(plan.settings[0], plan.experiment)
    with pytest.raises(UsageError, match="messages are due"):
        planned(f'{text}[capacity]\n"{key}" = 10_000.0')


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"pattern": "stream", "settle": 1000, "duration": 1.0}, "settle stops the sender")],
)
def test_what_a_duration_cannot_be_beside_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        paths.check_setting(Setting(path="udp", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["trace", "anatomy"])
def test_what_follows_messages_wants_a_number_of_them(key: str) -> None:
    text = f'paths = ["udp"]\nclock = "icount"\ntopology = "pair"\n{key} = true\n[setting]\nduration = 1.0'
    with pytest.raises(UsageError, match=f"{key}: it follows messages of a number"):
        experiment.parse_experiment(text, source="test")


@pytest.mark.parametrize("value", ["5s", "200ms", "2"])
def test_the_option_takes_a_unit(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--paths", "udp", "--duration", value, "--repeats", "1", "--dry-run"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("value", ["5h", "", "-1", "nan", "0", "1e9"])
def test_a_wrong_time_is_told(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--paths", "udp", "--duration", value, "--dry-run"]) == 2
    assert "duration" in capsys.readouterr().err
