"""A small flood, and what must hold of it whatever the machine: sums that close, losses that have a place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwrx import flood
from hwrx.probes import account

BURST = 3000
TINY = 4096  # bytes asked for; the kernel doubles it


@pytest.fixture(scope="module")
def bed() -> Iterator[flood.Bed]:
    with flood.flood_wire(flood.Spec()) as made:
        yield made


def closes(found: flood.Flood) -> None:
    """What holds of every flood."""
    assert found.sent == BURST
    assert found.loss.unexplained == 0
    assert found.loss.lost == found.sent - found.delivered == sum(row.count for row in found.loss.rows)
    assert (found.first_loss is None) == (found.loss.lost == 0)
    for cpu in found.cpus:
        assert sum(cpu.ns.values()) == cpu.total_ns
        assert all(value >= 0 for value in cpu.ns.values())
    # and so is all that was recorded, of every CPU for the same time
    assert len({sum(cpu.recorded.values()) for cpu in found.cpus}) == 1
    polled = sum(account.total_time(polls) for polls in found.polls.values())
    # every packet comes by a poll; a stranger or two may be among them (neighbour discovery)
    assert BURST <= polled <= BURST + 200
    assert sum(cpu.packets for cpu in found.cpus) == polled
    assert sum(each.packets for each in found.contexts) + found.outside == polled
    assert account.total_time(found.runs) + found.outside == polled
    assert max(most for polls in found.polls.values() for most in polls) <= found.poll_budget == 64
    assert sum(found.timeline.sent) == found.sent
    assert sum(found.timeline.taken) == found.delivered
    assert sum(found.timeline.lost) == found.loss.lost
    assert sum(each.offered for each in found.sockets) == found.sent
    assert sum(each.delivered for each in found.sockets) == found.delivered


def test_rps_moves_the_protocol_work_to_the_other_cpu(bed: flood.Bed) -> None:
    off = flood.measure_flood(flood.Spec(burst=BURST, sockets=2, trial=1), bed)
    on = flood.measure_flood(flood.Spec(burst=BURST, sockets=2, rps=True, trial=2), bed)
    for found in (off, on):
        closes(found)
    sender, other = max(cpu.number for cpu in off.cpus), 0
    by_cpu = {name: {cpu.number: cpu.packets for cpu in found.cpus} for name, found in (("off", off), ("on", on))}
    assert by_cpu["off"][sender] >= BURST > 200 > by_cpu["off"][other]
    assert by_cpu["on"][other] >= BURST > 200 > by_cpu["on"][sender]
    # without RPS a send takes its own packet in; with it, interrupts between CPUs and what follows them do
    task = {each.name: each.packets for each in off.contexts}["task"]
    assert task >= BURST * 0.9
    assert {each.name: each.packets for each in on.contexts}["task"] < BURST * 0.1
    assert max(off.polls_of("backlog")) <= 2 < max(on.polls_of("backlog"))
    assert on.cpus[other].calls > 0
    # both were offered the same, and neither is starved
    assert off.sockets[0].offered == pytest.approx(off.sockets[1].offered, abs=64)
    assert 0.5 < off.jain <= 1


def test_with_a_tiny_receive_buffer_loss_begins_at_the_socket(bed: flood.Bed) -> None:
    flood.measure_flood(flood.Spec(burst=1, trial=2), bed)  # what is kept for further floods is open from now on
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    found = flood.measure_flood(flood.Spec(burst=BURST, receive_buffer=TINY, read="after", trial=3), bed)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    closes(found)
    assert [row.place for row in found.loss.rows] == ["receive-buffer"]
    assert found.loss.rows[0].witness == found.loss.lost
    first = found.first_loss
    assert first is not None
    assert first.place == "receive-buffer"
    # what fits is delivered, and the next one is the first that is lost, by both accounts
    assert first.sequence == first.place_sequence == found.delivered < 64
    # the queue is full from then on: no byte more than the buffer, and not a message less
    longest = max(found.timeline.queues["0"])
    buffer = found.machine["receive_buffer"]
    assert buffer - longest / found.delivered < longest <= buffer + longest / found.delivered


def test_a_receiver_without_room_says_so_over_send_nothing_over_ud_and_has_no_say_over_write() -> None:
    slow = flood.Spec(path="rdma-send", burst=120, work=5e-4, receives=16, trial=4)
    with flood.flood_wire(slow) as bed:
        found = flood.measure_flood(slow, bed)
        overrun = flood.measure_flood(flood.Spec(path="rdma-send", burst=120, work=5e-4, completions=8, trial=5), bed)
        unread = {"burst": 300, "receives": 64, "read": "after"}
        datagrams = flood.measure_flood(flood.Spec(path="rdma-ud", trial=6, **unread), bed)
        writes = flood.measure_flood(flood.Spec(path="rdma-write", trial=7, **unread), bed)
    # more arrives than has a receive request: NAKs, sent again, nothing lost
    assert found.delivered == found.sent == 120
    assert found.loss.unexplained == found.loss.lost == 0
    sender, receiver = (found.counters[bed.places[end].verbs or ""] for end in ("client", "server"))
    assert sender["rcvd_rnr_err"] == receiver["send_rnr_err"] > 0
    depth = [value for value in found.timeline.receives if value >= 0]
    assert min(depth) == 0 < max(depth) <= 16
    assert 0 < max(found.timeline.completions) <= 16
    # what is not acknowledged stays in the send queue
    assert 64 <= max(found.timeline.sends) <= 256
    # a completion queue without room ends the connection, in words
    assert "a completion queue overran" in overrun.ended
    assert overrun.delivered < overrun.sent
    assert overrun.loss.unexplained == 0
    # datagrams are dropped without a word from the first for which there is no receive request
    assert (datagrams.delivered, datagrams.loss.lost, datagrams.loss.unexplained) == (64, 236, 0)
    assert [(row.place, row.count) for row in datagrams.loss.rows] == [("no-receive", 236)]
    assert datagrams.first_loss is not None
    assert datagrams.first_loss.sequence == datagrams.first_loss.place_sequence == 64
    assert not any(
        datagrams.counters[bed.places["server"].verbs or ""].get(name) for name in ("send_rnr_err", "rcvd_seq_err")
    )
    assert min(value for value in datagrams.timeline.receives if value >= 0) == 0
    # a bin holds the fewest requests in it, and the first may have had several messages
    assert 0 < max(datagrams.timeline.receives) <= 64
    assert max(datagrams.timeline.completions) == 64
    # memory holds the last round, and nothing of it is in a queue
    assert (writes.delivered, writes.loss.unexplained, writes.ended) == (64, 0, "")
    assert [(row.place, row.count) for row in writes.loss.rows] == [("overwritten", 236)]
    assert writes.timeline.receives == writes.timeline.completions == []
    assert max(writes.timeline.sends) > 0


def test_a_nic_with_several_queues_spreads_its_flows_over_the_cpus(needs: Callable[..., None]) -> None:
    needs("queues")
    # so many that their hashes would all fall on one queue once in 30,000 times
    found = flood.measure_flood(flood.Spec(burst=BURST, sockets=16, topology="queues", trial=8))
    closes(found)
    assert found.machine["receive_queues"] == 2
    for cpu in found.cpus:
        # each queue has an interrupt, and the CPU that it goes to polls the queue
        assert cpu.interrupts
        assert cpu.packets > BURST / 16
        assert 0 < sum(found.timeline.interrupts[str(cpu.number)]) <= cpu.interrupts
    assert found.per_interrupt is not None
    assert account.total_time(found.per_interrupt) <= account.total_time(found.polls_of("device")) >= BURST
    # no send takes its own packet in here: what comes, an interrupt has told of
    by_context = {each.name: each.packets for each in found.contexts}
    assert by_context["task"] < BURST * 0.1
    assert found.jain == pytest.approx(1, abs=0.01)
