"""What `hwrx roce listen`, `send` and `ping` do with an endpoint that is connected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from cython_ext.roce.datagram_pair import DatagramCompleted
from cython_ext.roce.memory_region import MemoryRegion
from cython_ext.roce.queue_pair import WorkCompletion
from hwrx.errors import UsageError
from hwrx.roce.datagrams import GRH, DatagramEndpoint
from hwrx.roce.endpoints import Endpoint

DEPTH = 64  # requests under way at once
QUIET = 0.3  # seconds of silence after which the other end has its acknowledgement and repeats nothing
Told = Callable[[int], None]  # how many messages are done
AnyEndpoint = Endpoint | DatagramEndpoint
Completed = WorkCompletion | DatagramCompleted


class Message(Struct, frozen=True):
    """One message that came: its number from 1 on, and bytes."""

    number: int
    size: int
    verb: str  # of the other end: SEND, or WRITE with immediate
    immediate: int | None
    text: bytes  # its first bytes; of a SEND


class Sent(Struct, frozen=True):
    """What came of many requests: seconds are of CLOCK_MONOTONIC, from the first post to the last completion."""

    verb: str
    size: int
    messages: int
    seconds: float
    counters: dict[str, int]


class RoundTrips(Struct, frozen=True):
    """Times of a ping, in nanoseconds of CLOCK_MONOTONIC, in the order in which they were taken."""

    verb: str
    size: int
    times: list[int]
    different: int  # answers that were not what was sent
    lost: int  # of datagrams: answers that did not come in time
    counters: dict[str, int]


class Slots:
    """One region in pieces for messages of `size` bytes; each has a receive request or waits to be sent back.

    A datagram stands behind the network header that it came with, for which its piece has room.
    """

    def __init__(self, qp: AnyEndpoint, size: int, count: int) -> None:
        self.size, self.count = size, count
        self._head = GRH if isinstance(qp, DatagramEndpoint) else 0
        self._piece = self._head + size
        self.memory = bytearray(max(1, self._piece) * count)
        self.region = qp.register(self.memory)
        self._qp = qp
        self._next = 0

    def post(self) -> None:
        """Post the piece whose turn it is."""
        self._qp.post_receive(self.region, self._next * self._piece, self._piece, wr_id=self._next)
        self._next = (self._next + 1) % self.count

    def place_of(self, completion: Completed) -> tuple[int, int]:
        """Return where the message stands in the region, and its bytes."""
        return completion.wr_id * self._piece + self._head, completion.size - self._head

    def bytes_of(self, completion: Completed) -> bytes:
        """Return what came with a SEND."""
        if verb_of(completion) != "SEND":
            return b""
        at, size = self.place_of(completion)
        return bytes(self.memory[at : at + size])


def verb_of(completion: Completed) -> str:
    """Return what the other end posted: SEND, or WRITE with immediate."""
    is_send = isinstance(completion, DatagramCompleted) or completion.opcode == "IBV_WC_RECV"
    return "SEND" if is_send else "WRITE with immediate"


def receive_messages(
    qp: AnyEndpoint, slots: Slots, *, count: int | None, echo: bool, timeout: float | None, left: Callable[[], bool]
) -> Iterator[Message]:
    """Yield messages as they come. Who calls has posted every slot, before the other end could send.

    :param count: of messages after which it ends; None: never
    :param echo: send each one back
    :param timeout: seconds without a message after which it ends
    :param left: says whether the other end has left, which ends it too
    :raises PathError: if a request of either kind ends badly, with what that means, or no message comes at all
    """
    number = 0
    while count is None or number < count:
        completion = _wait_for_message(qp, timeout, left, number)
        if completion is None:
            return
        qp.check_completion(completion)
        number += 1
        at, size = slots.place_of(completion)
        yield Message(number, size, verb_of(completion), completion.immediate, slots.bytes_of(completion)[:64])
        if echo:
            qp.post_send("send", slots.region, at, size)
            qp.check_completion(qp.next_send())
        slots.post()
    drive_until_quiet(qp)


def _wait_for_message(
    qp: AnyEndpoint, timeout: float | None, left: Callable[[], bool], number: int
) -> Completed | None:
    """The next completion; None if the other end has left, or has been silent for too long after a message."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not (found := qp.queue_pair.poll_receives(1)):
        if left():
            return None
        if deadline is not None and time.monotonic() > deadline:
            return qp.next_receive(0.0) if number == 0 else None  # which says in words what is missing
        qp.drive(0.05)
    return found[0]


def send_messages(
    qp: Endpoint, verb: str, region: MemoryRegion, size: int, count: int, *, key: int, address: int, told: Told
) -> Sent:
    """Send the same bytes `count` times, up to DEPTH at once, and wait until all are complete.

    :param verb: see Endpoint.post_send
    :param region: its first `size` bytes are sent, or get what is read
    :param key, address: of the other end's memory
    :raises PathError: if one ends badly
    """
    begun, posted = time.monotonic(), 0
    for done in range(count):
        while posted < count and posted - done < DEPTH:
            qp.post_send(verb, region, 0, size, wr_id=posted, key=key, address=address, immediate=posted & 0xFFFFFFFF,
                         swap=1)  # fmt: skip
            posted += 1
        qp.check_completion(qp.next_send())
        told(done + 1)
    seconds = time.monotonic() - begun
    return Sent(verb, size, count, seconds, qp.queue_pair.counters)


def ping_peer(
    qp: Endpoint, verb: str, slots: Slots, count: int, *, key: int, address: int, interval: float, timeout: float,
    told: Told,
) -> RoundTrips:  # fmt: skip
    """Take the time of `count` round trips, one after the other, of messages as large as a slot.

    :param verb: "send" waits for the message that the other end sends back; of "write" and "read" the end is the
        acknowledgement, or the response, that the other end's queue pair makes by itself
    :param slots: receive requests for the answers, posted
    :param key, address: of the other end's memory, for "write" and "read"
    :param interval: seconds between two of them
    :param timeout: seconds for an answer
    :raises PathError: if one ends badly, or there is no answer
    """
    memory = make_pattern(slots.size)
    region = qp.register(memory) if memory else None
    times: list[int] = []
    different = 0
    for done in range(count):
        begun = time.monotonic_ns()
        qp.post_send(verb, region, wr_id=done, key=key, address=address)
        if verb == "send":
            answer = qp.check_completion(qp.next_receive(timeout))
            times.append(time.monotonic_ns() - begun)
            different += slots.bytes_of(answer) != memory
            slots.post()
        qp.check_completion(qp.next_send(timeout))
        if verb != "send":
            times.append(time.monotonic_ns() - begun)
        told(done + 1)
        drive_for(qp, interval)
    drive_until_quiet(qp)
    return RoundTrips(verb, slots.size, times, different, 0, qp.queue_pair.counters)


def make_pattern(size: int) -> bytearray:
    """Return bytes in which no two pieces of a packet's size are alike."""
    return bytearray(b"".join(number.to_bytes(4, "big") for number in range((size + 3) // 4))[:size])


def check_room(verb: str, size: int, room: int) -> None:
    """Raise UsageError if the memory that the other end offers is too small for a verb that names it."""
    if not verb.startswith("send") and size > room:
        raise UsageError(
            f"the other end offers {room} bytes of memory, and a {verb} is to have {size}",
            remedy="give its --key and --remote-address, or a line that tells them, or a smaller --size",
        )


def drive_for(qp: AnyEndpoint, seconds: float) -> None:
    """Take and send packets for a time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        qp.drive(left)


def drive_until_quiet(qp: AnyEndpoint) -> None:
    """Take and send packets until nothing comes any more: our last acknowledgement may have been lost."""
    deadline = time.monotonic() + QUIET
    while (left := deadline - time.monotonic()) > 0:
        if qp.drive(left):
            deadline = time.monotonic() + QUIET
