"""Tracing where functions can be probed: every stage of sockets and of verbs on rxe, in the guest's kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guest_ends import ROLES, Places
from tracing import ONE_CPU, actors, check, check_batches, count, hw_counter, snmp, trace

from hwrx.control.messages import Setting, Wait
from hwrx.runs.schedule import Pair
from hwrx.runs.testbed import Bed
from hwrx.timelines.traced import RunTracer
from hwrx.wires import topology


def test_functions_can_be_probed_here(tracer: RunTracer) -> None:
    tracing = tracer.tracing
    assert tracing is not None
    by_nature = ("one run", "it happens", "no clock", "the frame's", "stands in")
    missing = {
        name: why
        for name, why in tracing.unavailable.items()
        if not why.startswith(by_nature) and ": not used: functions can be probed" not in why
    }
    assert not missing


@pytest.mark.parametrize(
    ("path", "size", "wait"),
    [
        ("udp", 64, "event"),
        ("udp", 1400, "event"),
        ("udp", 65507, "event"),
        ("tcp", 64, "event"),
        ("tcp", 65536, "event"),
        ("rdma-send", 64, "event"),
        ("rdma-send", 4096, "event"),
        ("rdma-send", 1400, "poll"),
        ("rdma-write", 64, "poll"),
        ("rdma-write", 4096, "poll"),
        ("rdma-write-imm", 64, "event"),
        ("rdma-write-imm", 4096, "poll"),
        ("rdma-read", 64, "event"),
        ("rdma-read", 4096, "poll"),
        ("rdma-ud", 64, "event"),
        ("rdma-ud", 1000, "poll"),
    ],
)
def test_every_message_has_a_complete_timeline(
    traced_pair: Pair, tracer: RunTracer, path: str, size: int, wait: Wait
) -> None:
    messages = 300 if size <= 4096 else 40
    setting = Setting(path=path, size=size, messages=messages, wait=wait, warmup=20, window=16, limit=60.0)
    found = trace(tracer, traced_pair, 100 + size + len(path) + len(wait), setting)
    assert found.traced.lost == 0
    for timelines in found.timelines.values():
        check(timelines, messages)
    # what was sent again is a row of the books, and no copy that the receiver made
    assert found.ledger.receiver == pytest.approx(1.0, abs=5e-3)
    again = sum(row.per_byte for row in found.ledger.rows if row.kind == "balance" and row.side == "sender")
    # inline: by the library into the work request, and from there by rxe
    inline = found.measured.chosen["client"].get("inline", 0)
    assert found.ledger.sender - again == pytest.approx(2.0 if inline else 1.0, abs=1e-3)


def test_by_whom_is_what_the_kernel_did(traced_pair: Pair, tracer: RunTracer) -> None:
    """The witness is the kernel: rxe has a work queue of its own (6.12), or its responder runs in softirqs (6.1)."""
    queue = [
        name for task in Path("/proc").glob("[0-9]*/comm") if (name := task.read_text().strip()).endswith("rxe_wq")
    ]
    setting = Setting(path="rdma-send", size=64, messages=200, wait="event", warmup=20, limit=60.0)
    found = trace(tracer, traced_pair, 11, setting)
    for timelines in found.timelines.values():
        assert actors(timelines, "netif_rx") <= {"user thread", "softirq", "kernel worker"}
        assert actors(timelines, "udp_rcv") == {"softirq"}
        assert actors(timelines, "rxe_mr_copied") == ({"kernel worker"} if queue else {"softirq"})
    (row,) = [row for row in found.ledger.rows if row.stage == "rxe_mr_copied"]
    assert row.actor == ("kernel worker" if queue else "softirq")


def test_every_datagram_of_a_batch_has_a_complete_timeline(pair: Places, tracer: RunTracer) -> None:
    """sendmmsg and recvmmsg: one call for many messages, of which each is copied by itself."""
    more: dict[str, Any] = {"messages": 400, "warmup": 64, "batch": 32, "limit": 60.0, "socket_buffer": 1 << 20}
    with Pair(Bed(pair, dict.fromkeys(ROLES, "local"), {}), ONE_CPU) as agents:
        for size in (64, 1400):
            setting = Setting(path="udp", pattern="stream", size=size, schedule="batch", **more)
            found = trace(tracer, agents, 10 + size, setting)
            assert found.traced.lost == 0
            check_batches(found, 400)


def test_the_drivers_own_counters_agree(traced_pair: Pair, tracer: RunTracer) -> None:
    """The witness for verbs: rxe counts the packets that it received; each message is one, and so is each ACK."""
    setting = Setting(path="rdma-send", size=64, messages=200, wait="event", warmup=20, limit=60.0)
    before = {device: hw_counter(device, "rcvd_pkts") for device in topology.DEVICES.values()}
    found = trace(tracer, traced_pair, 7, setting)
    came = sum(hw_counter(device, "rcvd_pkts") - before[device] for device in before)
    messages = 2 * (setting.warmup + setting.messages + setting.cooldown)
    stamped = count(found, "rxe_rcv")
    assert messages <= stamped <= messages * 1.05
    assert stamped + messages * 0.9 <= came <= 2 * stamped * 1.05
    assert count(found, "rxe_cq_post") == messages


def test_what_a_sender_copied_too_much_it_sent_again(traced_pair: Pair, tracer: RunTracer) -> None:
    """A window larger than rxe's patience on this machine; each copy is a packet that rxe itself counts as sent."""
    more: dict[str, Any] = {"messages": 60, "warmup": 10, "window": 16, "limit": 60.0, "inline": 0}
    found = trace(tracer, traced_pair, 9, Setting(path="rdma-send", size=65536, pattern="stream", **more))
    tally = found.measured.tally
    copied = count(found, "rxe_mr_copy from MR")
    # beside them the receiver's acknowledgements, which carry no payload
    assert copied <= tally["hw_sent_pkts"] <= 2 * copied
    again = copied - count(found, "rxe_mr_copied")
    assert again >= tally["hw_duplicate_request"]
    rows = [row for row in found.ledger.rows if row.kind == "balance" and row.side == "sender"]
    assert [row.bytes for row in rows] == ([again * 1024] if again else [])
    if tally["hw_duplicate_request"]:
        assert f"{again:,} packets were sent again" in rows[0].words


def test_the_kernels_own_counters_agree(traced_pair: Pair, tracer: RunTracer) -> None:
    """The witness for sockets, of the namespace that both ends are in."""
    setting = Setting(path="udp", size=64, messages=200, wait="event", warmup=20, limit=60.0)
    before = snmp(Path("/proc/net/snmp").read_text(), "Udp", "InDatagrams")
    found = trace(tracer, traced_pair, 8, setting)
    came = snmp(Path("/proc/net/snmp").read_text(), "Udp", "InDatagrams") - before
    total = 2 * (setting.warmup + setting.messages + setting.cooldown)
    assert total <= count(found, "copied to the user") + 2
    assert total <= came <= total + 20
