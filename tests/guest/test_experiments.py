"""Small versions of the experiments `load`, `loss` and `fan-in`: what a trial does is what its figures stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from guest_ends import Places

from hwrx.control.messages import Role, Setting
from hwrx.control.peers import Peer
from hwrx.errors import UsageError
from hwrx.paths import arrivals
from hwrx.runs import collecting, schedule
from hwrx.runs.testbed import Bed
from hwrx.wires import topology

MENDING = ("tcp", "rdma-send")


@pytest.fixture(scope="module")
def trials(pair: Places) -> Iterator[schedule.Pair]:
    with schedule.Pair(Bed(pair, {"client": "local", "server": "local"}, {})) as ready:
        yield ready


def disciplines() -> str:
    """What stands on the wire's two ends."""
    return "".join(
        subprocess.run(["tc", "qdisc", "show", "dev", link], capture_output=True, text=True, check=True).stdout
        for link in topology.LINKS.values()
    )


@pytest.fixture
def clean() -> Iterator[None]:
    """Whatever netem did, nothing of it is left."""
    yield
    assert "netem" not in disciplines()


@pytest.mark.parametrize("path", ["udp", "rdma-send"])
def test_an_open_loop_means_to_send_when_the_arrivals_say_so(trials: schedule.Pair, path: str) -> None:
    setting = Setting(path=path, pattern="paced", rate=2000.0, arrivals="poisson", messages=200, warmup=20, cooldown=0)
    intended: list[np.ndarray] = []

    def look(peers: Mapping[Role, Peer]) -> None:
        intended.append(collecting.fetch_array(peers["client"], "intended", setting.messages))

    measured = trials.measure(1, setting, look, repeat=3)
    assert measured.client.ended == "complete"
    due = arrivals.schedule_sends(setting, 3, 0)[20:]
    assert np.array_equal(intended[0] - intended[0][0], due - due[0])
    assert measured.service_ns is not None
    assert (measured.ns >= measured.service_ns).all()  # nothing is sent before its time
    assert (measured.service_ns > 0).all()


@pytest.mark.parametrize("path", ["tcp", "rdma-send", "rdma-read"])
def test_an_open_loop_with_a_full_window_goes_on_as_answers_come(trials: schedule.Pair, path: str) -> None:
    setting = Setting(path=path, pattern="paced", rate=1e7, messages=300, warmup=0, cooldown=0, window=2)
    measured = trials.measure(2, setting)
    assert (measured.client.ended, len(measured.ns), measured.tally["lost"]) == ("complete", 300, 0)


def test_a_lossy_wire_costs_udp_messages_and_the_others_time(trials: schedule.Pair, clean: None) -> None:
    for path in ("udp", *MENDING):
        setting = Setting(path=path, messages=150, warmup=0, cooldown=0, netem="loss 3%")
        measured = trials.measure(3, setting)
        lost, resent = measured.tally["lost"], measured.tally["resent"]
        assert (lost > 0) == (path == "udp"), (path, measured.tally)
        assert (resent > 0) == (path in MENDING), (path, measured.tally)
        assert len(measured.ns) == 150 - lost


def test_a_wire_that_delays_and_reorders_is_mended_by_tcp_and_rc_alone(trials: schedule.Pair, clean: None) -> None:
    for path in ("udp", *MENDING):
        setting = Setting(path=path, pattern="stream", messages=400, warmup=0, netem="delay 2ms reorder 20%")
        measured = trials.measure(4, setting)
        assert (measured.tally["reordered"] > 0) == (path == "udp"), (path, measured.tally)
        assert measured.tally["delivered"] == measured.tally["expected"], path


def test_an_answer_that_comes_again_is_not_taken_for_a_damaged_one(trials: schedule.Pair, clean: None) -> None:
    """It carries a pattern only if its own message was to be checked in full."""
    setting = Setting(path="udp", messages=200, warmup=0, check_every=3, netem="duplicate 30%")
    measured = trials.measure(8, setting)
    assert measured.tally["duplicated"] > 0
    assert (measured.tally["corrupt"], measured.tally["lost"]) == (0, 0)


def test_netem_of_an_agent_that_was_killed_is_gone_with_the_next(trials: schedule.Pair, clean: None) -> None:
    link = topology.LINKS["client"]
    subprocess.run(["tc", "qdisc", "add", "dev", link, "root", "netem", "loss", "100%"], check=True)
    with schedule.Pair(trials._testbed) as fresh:
        measured = fresh.measure(5, Setting(path="udp", messages=20, warmup=0))
    assert measured.tally["lost"] == 0


def test_netem_that_the_kernel_does_not_know_is_refused_in_words(trials: schedule.Pair, clean: None) -> None:
    with pytest.raises(Exception, match="netem 'loss 1% 2% 3% 4%' is refused"):
        trials.measure(6, Setting(path="udp", messages=20, netem="loss 1% 2% 3% 4%"))
    assert trials.measure(6, Setting(path="udp", messages=20)).tally["lost"] == 0


@pytest.mark.parametrize("pattern", ["pingpong", "stream"])
@pytest.mark.parametrize("path", ["udp", "rdma-send"])
def test_all_senders_messages_are_counted_in_the_order_of_their_delivery(
    trials: schedule.Pair, path: str, pattern: str
) -> None:
    setting = Setting(path=path, pattern=pattern, senders=2, messages=200, warmup=10, cooldown=0)  # type: ignore[arg-type]
    measured = trials.measure(7, setting)
    assert (measured.tally["expected"], measured.tally["delivered"], measured.tally["lost"]) == (420, 420, 0)
    assert len(measured.ns) == len(measured.sequence) == 400
    assert np.array_equal(np.bincount(measured.sequence), np.full(200, 2))
    assert (measured.ns >= 0).all()
    if pattern == "stream":
        assert measured.ns[0] == 0


def test_a_wire_that_is_not_ours_is_left_alone() -> None:
    from hwrx.wires import impair

    with pytest.raises(UsageError, match="only wires that hwrx has made, and lo is none"):
        impair.spoil_wire("lo", "loss 1%")
    impair.mend_wire("lo")
