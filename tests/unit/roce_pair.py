"""Two queue pairs joined in memory, a clock of their own, and a wire that loses, doubles, delays and spoils frames."""

from __future__ import annotations

import random

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector, dissect_roce
from cython_ext.roce.queue_pair import RoceQueuePair

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
ADDRESSES = ("192.0.2.1", "192.0.2.2")
ADDRESSES_V6 = ("2001:db8::1", "2001:db8::2")
STEP = 1000  # nanoseconds that a frame is under way
TIMEOUT = 8  # 1.05 ms


def statuses(completions) -> list[str]:
    return [each.status for each in completions]


class Wire:
    """What becomes of each frame, by chance; `script` decides instead where it returns anything but None."""

    def __init__(self, seed: int = 0, *, loss=0.0, double=0.0, delay=0.0, spoil=0.0) -> None:
        self.draw = random.Random(seed)
        self.loss, self.double, self.delay, self.spoil = loss, double, delay, spoil
        self.script = lambda side, frame: None
        self.seen: list[tuple[int, dict]] = []
        self.record = False

    def carry(self, side: int, frame: bytes) -> list[tuple[int, bytes]]:
        """Frames that arrive for one that was sent by `side`: after how many steps, and what."""
        if self.record:
            self.seen.append((side, dissect_roce(frame)))
        decided = self.script(side, frame)
        if decided is not None:
            return decided
        if self.draw.random() < self.loss:
            return []
        if self.draw.random() < self.spoil:
            changed = bytearray(frame)
            changed[self.draw.randrange(42, len(frame))] ^= 1 << self.draw.randrange(8)
            frame = bytes(changed)
        late = self.draw.randrange(2, 30) if self.draw.random() < self.delay else 1
        return [(late, frame)] * (2 if self.draw.random() < self.double else 1)

    def opcodes(self, side: int) -> list[str]:
        return [found["opcode"].removeprefix("RC_") for at, found in self.seen if at == side]


class End:
    """A queue pair, its link, and a region of memory of the same size on either side."""

    def __init__(self, side: int, size: int, link: HandedLink | None = None, **options) -> None:
        self.side = side
        self.link = link or HandedLink(MACS[side], slots=512)
        self.domain = ProtectionDomain()
        self.memory = bytearray(size)
        self.region = self.domain.register(self.memory)
        self.qp = RoceQueuePair(self.link, self.domain, qpn=0x10 + side, **options)


class Joined:
    """Both ends, connected through a wire."""

    def __init__(
        self, wire: Wire | None = None, *, size=1 << 17, first=(5, 9), addresses=ADDRESSES, connect=(), **options
    ):
        self.wire = wire or Wire()
        self.time = 1
        self.ends = (End(0, size, **options), End(1, size, **options))
        self.under_way: list[tuple[int, int, int, bytes]] = []
        self.count = 0
        for side, end in enumerate(self.ends):
            other = 1 - side
            way = address_vector(MACS[side], MACS[other], addresses[side], addresses[other])
            end.qp.connect(
                way, 0x10 + other, expects=first[other], begins=first[side], **{"timeout": TIMEOUT, **dict(connect)}
            )

    def step(self) -> bool:
        """Let both work once; whether anything moved, or will without being asked."""
        moved = False
        for side, end in enumerate(self.ends):
            moved |= bool(end.qp.progress(self.time))
            for frame in end.link.take_out():
                moved = True
                for late, arriving in self.wire.carry(side, frame):
                    self.count += 1
                    self.under_way.append((self.time + late * STEP, self.count, 1 - side, arriving))
        self.under_way.sort(key=lambda each: each[:2])
        self.time += STEP
        while self.under_way and self.under_way[0][0] <= self.time:
            _, _, to, frame = self.under_way.pop(0)
            self.ends[to].link.hand_in(frame)
            moved = True
        if not moved:
            events = [end.qp.next_event for end in self.ends]
            events += [self.under_way[0][0]] if self.under_way else []
            waiting = [event for event in events if event is not None]
            if not waiting:
                return False
            self.time = max(self.time, min(waiting))
        return True

    def settle(self, most: int = 1_000_000) -> None:
        """Until nothing moves any more."""
        for _ in range(most):
            if not self.step():
                return
        raise AssertionError("it never came to rest")
