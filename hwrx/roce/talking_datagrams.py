"""What `hwrx roce send` and `ping` do with datagrams: nothing tells whether one arrives."""

from __future__ import annotations

import time

from cython_ext.roce.memory_region import MemoryRegion
from hwrx.errors import PathError
from hwrx.roce.datagrams import DatagramEndpoint
from hwrx.roce.talking import DEPTH, RoundTrips, Sent, Slots, Told, drive_for, make_pattern


def send_datagrams(qp: DatagramEndpoint, verb: str, region: MemoryRegion, size: int, count: int, *, told: Told) -> Sent:
    """Send the same bytes `count` times, and wait until the link has them all.

    :param verb: send or send-imm, whose immediate is the message's number from 0 on
    :param region: its first `size` bytes are sent
    :raises PathError: if one ends badly
    """
    begun, posted = time.monotonic(), 0
    for done in range(count):
        while posted < count and posted - done < DEPTH:
            qp.post_send(verb, region, 0, size, wr_id=posted, immediate=posted & 0xFFFFFFFF)
            posted += 1
        qp.check_completion(qp.next_send())
        told(done + 1)
    return Sent(verb, size, count, time.monotonic() - begun, qp.queue_pair.counters)


def ping_datagrams(
    qp: DatagramEndpoint, slots: Slots, count: int, *, interval: float, timeout: float, told: Told
) -> RoundTrips:
    """Take the time of `count` round trips, one after the other, of messages as large as a slot.

    Each begins with its number, as far as it has room for it, so that an answer that comes too late is not taken for
    that of another.

    :param slots: receive requests for the answers, posted
    :param interval: seconds between two of them
    :param timeout: seconds for an answer, after which it is lost
    :raises PathError: if a request ends badly, or no answer comes at all
    """
    memory = make_pattern(slots.size)
    region = qp.register(memory) if memory else None
    times: list[int] = []
    unanswered: set[bytes] = set()
    different = lost = 0
    for done in range(count):
        memory[:4] = done.to_bytes(4, "big")[: slots.size]
        begun = time.monotonic_ns()
        qp.post_send("send", region, wr_id=done)
        qp.check_completion(qp.next_send(timeout))
        answer = _next_answer(qp, slots, unanswered, timeout)
        if answer is None:
            unanswered.add(bytes(memory))
            lost += 1
        else:
            times.append(time.monotonic_ns() - begun)
            different += answer != memory
        told(done + 1)
        drive_for(qp, interval)
    if not times:
        raise PathError(
            f"none of {count} datagrams was answered within {timeout:g} s; {qp.describe_traffic()}",
            remedy="does the peer send back what it gets (hwrx roce listen --service ud --echo, ibv_ud_pingpong), with "
            "this Q_Key? hwrx roce dump --device … shows packets",
        )
    return RoundTrips("send", slots.size, times, different, lost, qp.queue_pair.counters)


def _next_answer(qp: DatagramEndpoint, slots: Slots, late: set[bytes], timeout: float) -> bytes | None:
    """What comes next and is not a late answer to an earlier message; None if nothing comes in time."""
    deadline = time.monotonic() + timeout
    while True:
        for completion in qp.queue_pair.poll_receives(1):
            found = slots.bytes_of(qp.check_completion(completion))
            slots.post()
            if found not in late:
                return found
            late.remove(found)
        if (left := deadline - time.monotonic()) <= 0:
            return None
        qp.drive(left)
