"""Tracing on the host's kernel, whatever it allows, over a veth pair between two namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tracing import ONE_CPU, actors, check, check_batches, check_short_reads, count, snmp, trace

import hwrx
from hwrx import stages
from hwrx.cli import cli
from hwrx.control.environment import parse_environment
from hwrx.control.messages import Setting
from hwrx.errors import MachineError
from hwrx.probes.recording import Ledger
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology


@pytest.fixture
def bed() -> Iterator[Bed]:
    with topology.netns() as made:
        yield Bed(made.places, made.peers, {})


def programs() -> set[int]:
    """Ids of all BPF programs that are loaded."""
    return {program["id"] for program in json.loads(subprocess.check_output(["bpftool", "-j", "prog", "list"]))}


def namespaces(bed: Bed) -> dict[str, str]:
    return {role: parse_environment(spec).name for role, spec in bed._peers.items()}


def udp_counters(namespace: str) -> dict[str, int]:
    text = subprocess.check_output(["ip", "netns", "exec", namespace, "cat", "/proc/net/snmp"], text=True)
    return {name: snmp(text, "Udp", name) for name in ("InDatagrams", "OutDatagrams")}


@pytest.mark.parametrize("size", [64, 1400])
def test_ten_thousand_datagrams_have_complete_timelines(bed: Bed, size: int) -> None:
    setting = Setting(path="udp", size=size, messages=10_000, wait="event")
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    assert found.traced.lost == 0
    for timelines in found.timelines.values():
        check(timelines, setting.messages)
    assert found.ledger.sender == pytest.approx(1.0, abs=1e-3)
    assert found.ledger.receiver == pytest.approx(1.0, abs=1e-3)


def test_every_datagram_of_a_batch_has_a_complete_timeline(bed: Bed) -> None:
    more: dict[str, Any] = {"batch": 64, "socket_buffer": 1 << 20, "schedule": "batch"}
    setting = Setting(path="udp", pattern="stream", size=1400, messages=3000, **more)
    with Pair(bed, ONE_CPU) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    check_batches(found, setting.messages)


def test_a_stream_of_bytes_has_timelines_too(bed: Bed) -> None:
    setting = Setting(path="tcp", size=1400, messages=3000, wait="event")
    with Pair(bed) as pair, RunTracer(bed, ["tcp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    for timelines in found.timelines.values():
        check(timelines, setting.messages)
    assert found.ledger.receiver == pytest.approx(1.0, abs=1e-3)


def test_by_whom_is_observed(bed: Bed) -> None:
    """Over a veth pair the sender's own thread hands the packet over; from the backlog on it is a softirq's."""
    setting = Setting(path="udp", size=64, messages=500, wait="event")
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    for timelines in found.timelines.values():
        assert actors(timelines, "net_dev_start_xmit") == {"user thread"}
        assert actors(timelines, "netif_rx") == {"user thread"}
        assert actors(timelines, "netif_receive_skb") == {"softirq"}
        assert actors(timelines, "copied to the user") == {"user thread"}
    (row,) = [row for row in found.ledger.rows if row.stage == "copied to the user"]
    assert row.actor == "user thread"


def test_a_short_read_copies_what_it_takes() -> None:
    check_short_reads()


def test_over_ipv6(bed: Bed) -> None:
    import msgspec

    bed.places = {
        role: msgspec.structs.replace(place, address=topology.ADDRESSES_V6[role]) for role, place in bed.places.items()
    }
    setting = Setting(path="udp", size=64, messages=1000, wait="event")
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    for timelines in found.timelines.values():
        check(timelines, setting.messages)


def test_a_fragmented_datagram_is_followed_by_its_first_fragment(bed: Bed) -> None:
    setting = Setting(path="udp", size=65507, messages=300, wait="event", window=1)
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    for timelines in found.timelines.values():
        check(timelines, setting.messages)
    assert found.ledger.receiver == pytest.approx(1.0, abs=1e-2)


def test_the_kernels_own_counters_agree(bed: Bed) -> None:
    """The witness: /proc/net/snmp of both namespaces counts the same datagrams."""
    ends = namespaces(bed)
    setting = Setting(path="udp", size=64, messages=2000, wait="event")
    before = {role: udp_counters(name) for role, name in ends.items()}
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = trace(tracer, pair, 1, setting)
    after = {role: udp_counters(name) for role, name in ends.items()}
    total = setting.warmup + setting.messages + setting.cooldown
    came = sum(after[role]["InDatagrams"] - before[role]["InDatagrams"] for role in ends)
    went = sum(after[role]["OutDatagrams"] - before[role]["OutDatagrams"] for role in ends)
    # a few datagrams are the trial's own control messages, which carry no sequence number
    assert 2 * total <= came <= 2 * total + 20
    assert came <= went <= came + 20  # the last control messages may find nobody any more
    for stage in ("net_dev_queue", "netif_receive_skb", "sys_exit recv"):
        assert 2 * total - 4 <= count(found, stage) <= came


def test_sampling_leaves_the_totals_whole(bed: Bed) -> None:
    setting = Setting(path="udp", size=64, messages=2000, wait="event")
    with Pair(bed) as pair, RunTracer(bed, ["udp"]) as tracer:
        tracer.attach()
        found = tracer.trace(pair, 1, setting, timelines=100)
    assert len(found.timelines["there"].complete) == 100
    assert count(found, "net_dev_queue") >= 2 * setting.messages


def test_histograms_alone_count_every_message_and_time_some(bed: Bed) -> None:
    setting = Setting(path="udp", size=64, messages=2000, wait="event")
    total = 2 * (setting.warmup + setting.messages + setting.cooldown)
    with Pair(bed) as pair, Ledger(["udp"], namespaces=sorted(namespaces(bed).values()), histograms=True) as ledger:
        ledger.begin(sample_every=0, size=64, trial=1)
        pair.measure(1, setting, stamped=True)  # an answer carries the time at which it was sent
        recording = ledger.end()
    assert len(recording.events) == 0
    numbers = {stage.name: stage.number for stage in stages.STAGES}
    for name in ("net_dev_queue", "netif_receive_skb", "copied to the user"):
        one = recording.totals[numbers[name]]
        # a thread's first receive is what makes it known
        assert total - 4 <= one["count"] <= total
        assert total / 9 <= one["timed"] <= total / 7
        assert one["buckets"].sum() == one["timed"]
    assert recording.totals[numbers["sys_exit recv"]]["count"] == 0


def test_a_killed_tracer_leaves_nothing_attached() -> None:
    before = programs()
    script = (
        "import sys, time\nfrom hwrx.probes.recording import Ledger\n"
        "with Ledger(['udp']):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert programs() - before
        os.kill(process.pid, signal.SIGKILL)
    # the kernel lets programs go after a grace period
    deadline = time.monotonic() + 30
    while programs() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not programs() - before


def test_two_tracers_at_once_are_refused_in_words() -> None:
    with Ledger(["udp"]), pytest.raises(MachineError, match="another hwrx is tracing"), Ledger(["udp"]):
        pass


def test_a_ring_that_is_too_small_loses_events_and_counts_them(bed: Bed) -> None:
    setting = Setting(path="udp", size=64, messages=2000, wait="event")
    with Pair(bed) as pair, Ledger(["udp"], namespaces=sorted(namespaces(bed).values()), ring_bytes=4096) as ledger:
        # the drain is stopped: what does not fit is lost
        ledger.begin(sample_every=1, size=64, trial=1)
        ledger._join()
        pair.measure(1, setting)
        recording = ledger.end()
    assert recording.lost > 0
    assert len(recording.events) < 4096 // 48


def test_stages_says_what_this_kernel_allows() -> None:
    done = CliRunner().invoke(cli, ["stages", "udp", "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.output)["stages"]}
    assert rows["netif_receive_skb"]["available"]
    assert rows["mac filter"]["available"] is False
    assert rows["mac filter"]["reason"]


def test_a_traced_run_has_its_tables_and_its_report(tmp_path: Path) -> None:
    words = ["compare", "--paths", "udp,tcp", "--size", "64", "--topology", "netns", "--messages", "1000"]
    done = CliRunner().invoke(cli, [*words, "--repeats", "1", "--trace", "--runs", str(tmp_path)])
    assert done.exit_code == 0, done.output
    run = hwrx.load(tmp_path / "latest")
    for name in ("stages", "copies", "tracing", "actors"):
        table = run.table(name)
        assert table is not None
        assert set(table["path"].to_pylist()) == {"udp", "tcp"}
    assert run.manifest["tracing"]["available"]
    page = (run.path / "report.html").read_text()
    assert "Where the time goes: 64 B" in page
    assert "Copies per byte" in page
    assert "What tracing cost" in page
    assert "Processor time of a message, counted by actor" in page
