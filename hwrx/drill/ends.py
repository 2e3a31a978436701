"""The two ends of a drill: memory laid out alike, what was posted, and what became of it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import RoceQueuePair
from hwrx.drill.model import Side, Step
from hwrx.roce.parameters import Parameters, gid_of

STRIDE, SLOTS = 4096, 16
# areas of either end's memory, a slot for each request: what it sends and offers to READs; where SENDs arrive; where
# the other end writes; where the results of its own READs and atomics go
SOURCE, RECEIVED, WRITTEN, RESULT = (area * STRIDE * SLOTS for area in range(4))
ROOM = 4 * STRIDE * SLOTS
COUNTER = WRITTEN + STRIDE * (SLOTS - 1)  # eight bytes that atomics change
BEGINS_AT = 5  # what stands there first
FILL = 0xEE
IMMEDIATE = 0x01020304
QPNS = {"us": 0x2A0000, "peer": 0x15}


class Completed(Struct, frozen=True):
    """What became of a request: the status is an ibv_wc_status by name."""

    status: str
    size: int
    immediate: int | None = None


class Posted(Struct, frozen=True):
    """A request that one end has posted: its verb, its size, and which of its end it is."""

    verb: str
    size: int
    slot: int
    right: bool  # the memory that it names is the one that is meant


def pattern_of(who: str, slot: int) -> bytes:
    """Return what stands in a slot of an end's SOURCE area."""
    seed = zlib.crc32(f"{who} {slot}".encode())
    return b"".join((seed + n * 2654435761 & 0xFFFFFFFF).to_bytes(4, "big") for n in range(STRIDE // 4))


def first_memory(who: str) -> bytearray:
    """Return an end's memory before anything happens."""
    memory = bytearray([FILL]) * ROOM
    memory[SOURCE:RECEIVED] = b"".join(pattern_of(who, slot) for slot in range(SLOTS))
    memory[COUNTER : COUNTER + 8] = BEGINS_AT.to_bytes(8, "little")
    return memory


class Peer(Protocol):
    """The queue pair that is put to the test: hwrx's own, or that of a verbs device."""

    own: Parameters
    sends: list[Completed]
    receives: list[Completed]

    def connect(self, us: Parameters, mac: str, side: Side) -> None:
        """Connect it with us, whose frames come from a MAC address."""

    def post_receive(self, slot: int, size: int) -> None:
        """Post a slot of RECEIVED."""

    def post(self, posted: Posted, key: int, address: int) -> None:
        """Post a request whose memory at the other end is named by key and address."""

    def poll(self) -> None:
        """Collect completions in `sends` and `receives`."""

    def read(self, at: int, size: int) -> bytes:
        """Return bytes of its memory."""

    def close(self) -> None:
        """Give everything back."""


class OwnEnd:
    """hwrx's own queue pair over a link in memory: always our end, and the peer if that is to be tested.

    `number` is added to its queue pair's number: what belongs to the drill before is not taken for this one's.
    """

    def __init__(self, who: str, mac: str, address: str, side: Side, number: int = 0) -> None:
        self.link = HandedLink(mac, slots=512)
        self._domain = ProtectionDomain()
        self.memory = first_memory(who)
        self._region = self._domain.register(self.memory, access=side.access)
        self.pair = RoceQueuePair(self.link, self._domain, qpn=QPNS[who] + number, mtu=side.mtu, reads=side.reads)
        self.own = Parameters(
            gid=gid_of(address), qpn=self.pair.qpn, psn=side.psn, mtu=side.mtu, key=self._region.key,
            address=self._region.address, size=ROOM, mac=mac,
        )  # fmt: skip
        self.sends: list[Completed] = []
        self.receives: list[Completed] = []

    def connect(self, us: Parameters, mac: str, side: Side) -> None:
        """See Peer."""
        way = address_vector(self.link.mac, mac, self.own.ip, us.ip)
        self.pair.connect(
            way, us.qpn, expects=us.psn, begins=self.own.psn, timeout=side.timeout, retry_count=side.retry_count,
            rnr_retry=side.rnr_retry, min_rnr_timer=side.min_rnr_timer,
        )  # fmt: skip

    def post_receive(self, slot: int, size: int) -> None:
        """See Peer."""
        self.pair.post_receive(self._region, RECEIVED + slot * STRIDE, size)

    def post(self, posted: Posted, key: int, address: int) -> None:
        """See Peer."""
        self.pair.post_send(
            posted.verb, self._region, local_place(posted), posted.size, key=key, address=address,
            immediate=IMMEDIATE if posted.verb.endswith("imm") else 0, compare=BEGINS_AT, swap=1,
        )  # fmt: skip

    def poll(self) -> None:
        """See Peer."""
        self.sends += [Completed(each.status, each.size) for each in self.pair.poll_sends()]
        self.receives += [Completed(each.status, each.size, each.immediate) for each in self.pair.poll_receives()]

    def read(self, at: int, size: int) -> bytes:
        """See Peer."""
        return bytes(self.memory[at : at + size])

    def close(self) -> None:
        """See Peer."""
        self.pair.close()
        self._region.close()


def local_place(posted: Posted) -> int:
    """Return where in its own end's memory a request takes its bytes from, or puts its result."""
    fetches = posted.verb in ("read", "compare-swap", "fetch-add")
    return (RESULT if fetches else SOURCE) + posted.slot * STRIDE


def remote_place(posted: Posted) -> int:
    """Return where in the other end's memory a request writes, or what it reads."""
    if posted.verb in ("compare-swap", "fetch-add"):
        return COUNTER
    return (SOURCE if posted.verb == "read" else WRITTEN) + posted.slot * STRIDE


class Requests:
    """What one end has posted, and whether the bytes of it stand where they must."""

    def __init__(self, who: str) -> None:
        self._who = who
        self.posted: list[Posted] = []
        self.receives = 0

    def next(self, step: Step) -> Posted:
        """Return the next request of a step."""
        size = 8 if step.verb in ("compare-swap", "fetch-add") else step.size
        right = step.key == "right" and step.shift == 0
        self.posted.append(Posted(step.verb, size, len(self.posted) % SLOTS, right))
        return self.posted[-1]

    def count_delivered(self, own: Peer, other: Peer) -> int:
        """Return how many requests have put all of their bytes where they belong.

        Of a WRITE or SEND that is in the other end's memory, of a READ in one's own. Atomics are not counted.
        """
        other_name = "peer" if self._who == "us" else "us"
        delivered = arrived = 0
        for posted in self.posted:
            body = pattern_of(self._who, posted.slot)[: posted.size]
            if posted.verb in ("send", "send-imm"):
                delivered += other.read(RECEIVED + arrived * STRIDE, posted.size) == body
                arrived += 1
            elif posted.verb in ("write", "write-imm"):
                delivered += other.read(WRITTEN + posted.slot * STRIDE, posted.size) == body
                arrived += posted.verb == "write-imm"
            elif posted.verb == "read":
                wanted = pattern_of(other_name, posted.slot)[: posted.size]
                delivered += own.read(RESULT + posted.slot * STRIDE, posted.size) == wanted
        return delivered


def count_changed(end: Peer) -> int:
    """Return how many bytes are not what they were where the other end may write; the counter is left out."""
    memory = end.read(RECEIVED, RESULT - RECEIVED)
    counter = COUNTER - RECEIVED
    return sum(len(part) - part.count(FILL) for part in (memory[:counter], memory[counter + 8 :]))


def worst_status(completed: Sequence[Completed]) -> str:
    """Return the first status that is not success; "" if there is none."""
    return next((each.status for each in completed if each.status != "IBV_WC_SUCCESS"), "")
