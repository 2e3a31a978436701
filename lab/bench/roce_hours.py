"""Days of virtual time between two of our own queue pairs: random verbs, sizes and losses; ends are killed.

Two ends are joined in memory by a wire that loses, doubles, delays and spoils frames by chance, as badly as a draw of
each session says; now and then it is cut for a while. Either end posts bursts of SENDs, WRITEs, WRITEs with immediate,
READs and atomics, of 0 bytes to 1 MiB, and pauses in between. A session ends when an end is killed, in the middle of
whatever it does, or closes in order; then both are made anew. Time is a number that jumps to the next event, so that a
day takes a minute or two.

Of each end of each session the way it ended is counted by a name. Stuck is an end that has requests posted and neither
completes them nor says why, and a session in which nothing will ever happen again. Each byte is compared.

    lab/bench/roce_hours [--hours 48] [--seed 1] [--json bench-roce-hours.json]
"""

from __future__ import annotations

import argparse
import collections
import heapq
import itertools
import json
import random
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cython_ext.frames.handed_link import HandedLink
from cython_ext.roce.memory_region import ProtectionDomain
from cython_ext.roce.packet import address_vector
from cython_ext.roce.queue_pair import RoceQueuePair

HOUR = 3600 * 10**9
HOP = 20_000  # ns that a frame is under way
ROOM = 1 << 20  # bytes of a message, at most
SLOTS = 8  # messages of one sender that may be under way
RECEIVES = 4
VERBS = ("send", "send-imm", "write", "write-imm", "read", "fetch-add", "compare-swap")
SUCCESS, FLUSHED = "IBV_WC_SUCCESS", "IBV_WC_WR_FLUSH_ERR"
# longer than all tries of a request and all waits of a receiver that is not ready
PATIENCE = 300 * 10**9


class Stuck(Exception):
    """Requests are posted, and nothing becomes of them."""


class Wire:
    """What becomes of each frame, by the chances of a session."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        bad = draw.choice((0.0, 0.001, 0.01, 0.03))
        self.loss, self.double, self.late, self.spoil = (bad * draw.random() for _ in range(4))
        self.cut_until = 0
        self.lost = self.carried = 0

    def carry(self, at: int, frame: bytes) -> list[tuple[int, bytes]]:
        """When each copy of a frame arrives, and what it is then."""
        draw, self.carried = self.draw, self.carried + 1
        if at < self.cut_until or draw.random() < self.loss:
            self.lost += 1
            return []
        if draw.random() < self.spoil:
            changed = bytearray(frame)
            changed[draw.randrange(14, len(frame))] ^= 1 << draw.randrange(8)
            frame = bytes(changed)
        due = at + HOP * (draw.randrange(2, 40) if draw.random() < self.late else 1)
        return [(due + k, frame) for k in range(1 + (draw.random() < self.double))]


class End:
    """A process with a queue pair: what it sends, what it expects to receive, and how it ended."""

    def __init__(self, name: str, side: int, draw: random.Random) -> None:
        self.name, self.side, self.draw = name, side, draw
        self.link = HandedLink(f"02:00:00:00:00:0{side + 1}", slots=1024, largest=4200)
        self.domain = ProtectionDomain()
        self.memory = bytearray(SLOTS * ROOM)
        self.sent = self.domain.register(self.memory)
        self.landing = bytearray((RECEIVES + SLOTS) * ROOM)
        self.landed = self.domain.register(self.landing)
        self.mtu = draw.choice((256, 1024, 4096))
        self.qp = RoceQueuePair(
            self.link, self.domain, qpn=draw.randrange(2, 1 << 24), mtu=self.mtu, send_depth=64, receive_depth=64,
            window=draw.choice((1, 8, 64)),
        )  # fmt: skip
        self.psn = draw.randrange(1 << 24)
        self.expected: dict[int, tuple[str, int, bytes]] = {}  # by request: verb, place, what must stand there
        self.promised: collections.deque[tuple[str, bytes]] = collections.deque()  # to be received, in order
        self.number = itertools.count(1)
        self.receives = self.receives_made = 0
        self.wakes = 0  # when it posts again
        self.ready = 0  # when it posts receive requests again
        self.since = 0  # when the oldest unanswered request was posted, or one was answered
        self.alive = True
        self.ended = ""
        self.messages = self.bytes = 0

    def connect(self, there: End, mtu: int) -> None:
        way = address_vector(self.link.mac, there.link.mac, f"192.0.2.{self.side + 1}", f"192.0.2.{there.side + 1}")
        draw = self.draw
        self.qp.connect(
            way, there.qp.qpn, expects=there.psn, begins=self.psn, mtu=mtu, timeout=draw.choice((12, 14, 16)),
            retry_count=draw.choice((3, 7)), rnr_retry=7, min_rnr_timer=draw.choice((1, 12, 20)),
        )  # fmt: skip
        self.refill()

    def refill(self) -> None:
        while self.qp.state == "IBV_QPS_RTS" and self.receives < RECEIVES:
            self.qp.post_receive(self.landed, self.receives_made % RECEIVES * ROOM, ROOM, wr_id=self.receives_made)
            self.receives_made += 1
            self.receives += 1

    def burst(self, there: End, at: int) -> None:
        """Post a few requests, for each of which there is a place."""
        draw = self.draw
        for _ in range(draw.randrange(1, 8)):
            free = set(range(SLOTS)) - {slot for _, slot, _ in self.expected.values()}
            if not free:
                return
            verb, slot = draw.choice(VERBS), min(free)
            size = draw.choice((0, 1, 64, 256, 1000, 1025, 4096, draw.randrange(20_000), draw.randrange(20_000)))
            if draw.random() < 0.01:
                size = draw.randrange(ROOM) + 1
            self.post(there, verb, slot, 8 if verb in VERBS[5:] else size)
            self.since = at if len(self.expected) == 1 else self.since

    def post(self, there: End, verb: str, slot: int, size: int) -> None:
        number, body = next(self.number), self.draw.randbytes(size)
        here, remote = slot * ROOM, (RECEIVES + slot) * ROOM
        fields = {} if verb.startswith("send") else {"key": there.landed.key, "address": there.landed.address + remote}
        if verb == "read":
            there.landing[remote : remote + size] = body
            self.memory[here : here + size] = bytes(size)
        elif verb in VERBS[5:]:
            there.landing[remote : remote + 8] = body
            fields |= {"compare": int.from_bytes(body, "little"), "swap": 5}
        else:
            self.memory[here : here + size] = body
            if not verb.startswith("write") or verb == "write-imm":
                there.promised.append((verb, body))
        self.qp.post_send(verb, self.sent, here, size, wr_id=number, immediate=number, **fields)
        self.expected[number] = (verb, slot, body)

    def harvest(self, there: End, at: int) -> int:
        """Completions: how many requests were answered. Every byte of them is compared."""
        found = self.qp.poll_sends()
        for each in found:
            verb, slot, body = self.expected.pop(each.wr_id)
            self.since = at
            if each.status != SUCCESS:
                # the first that fails says why; what is behind it is flushed
                self.ended = self.ended or each.status
                continue
            if verb == "write" or verb == "write-imm":
                stands = bytes(there.landing[(RECEIVES + slot) * ROOM :][: len(body)])
            else:
                stands = bytes(self.memory[slot * ROOM :][: len(body)]) if verb in VERBS[4:] else body
            if stands != body:
                raise AssertionError(f"{self.name}: a {verb} of {len(body)} bytes is wrong")
            self.messages += 1
            self.bytes += len(body)
        for each in self.qp.poll_receives():
            self.receives -= 1
            if self.draw.random() < 0.01:
                self.ready = at + int(self.draw.expovariate(1 / (50 * 10**6)))
            if each.status != SUCCESS:
                self.ended = self.ended or each.status if each.status != FLUSHED else self.ended
                continue
            verb, body = self.promised.popleft()
            at_ = each.wr_id % RECEIVES * ROOM
            if (verb.startswith("send") and bytes(self.landing[at_ : at_ + each.size]) != body) or each.size != len(
                body
            ):
                raise AssertionError(f"{self.name}: a received {verb} of {len(body)} bytes is wrong")
        if at >= self.ready:
            self.refill()
        return len(found)


class Session:
    """Two ends from their connection to the end of both."""

    def __init__(self, draw: random.Random, at: int) -> None:
        self.draw, self.time = draw, at
        self.wire = Wire(draw)
        self.ends = (End("a", 0, draw), End("b", 1, draw))
        mtu = min(end.mtu for end in self.ends)
        for end, other in zip(self.ends, reversed(self.ends), strict=True):
            end.connect(other, mtu)
            end.wakes = at + draw.randrange(10**9)
        self.under_way: list[tuple[int, int, int, bytes]] = []
        self.count = itertools.count()
        length = int(draw.expovariate(1 / (1200 * 10**9))) + 10**9
        self.over = at + length
        # killed without a word, one of them or both, or closed when all is answered
        self.how = draw.choice(("kill a", "kill b", "kill both", "close"))
        self.pause = draw.choice((10**9, 10**10, 60 * 10**9))

    def run(self) -> None:
        while any(end.alive for end in self.ends):
            moved = self.work()
            if not moved and any(end.alive for end in self.ends) and not self.sleep():
                raise Stuck(f"nothing will happen at {self.time / 1e9:.3f} s: {[self.tell(end) for end in self.ends]}")

    def work(self) -> bool:
        moved = False
        if self.time >= self.over:
            self.finish()
        for end, other in zip(self.ends, reversed(self.ends), strict=True):
            if not end.alive:
                end.link.take_out()
                continue
            if self.time >= end.wakes and self.time < self.over and end.qp.state == "IBV_QPS_RTS":
                end.burst(other, self.time)
                end.wakes = self.time + int(self.draw.expovariate(1 / self.pause)) + 1
                if self.draw.random() < 0.005:
                    self.wire.cut_until = self.time + int(self.draw.expovariate(1 / (2 * 10**8)))
            moved |= bool(end.qp.progress(self.time))
            moved |= bool(end.harvest(other, self.time))
            for frame in end.link.take_out():
                moved = True
                for due, arriving in self.wire.carry(self.time, frame):
                    heapq.heappush(self.under_way, (due, next(self.count), 1 - end.side, arriving))
            if end.expected and self.time - end.since > PATIENCE:
                raise Stuck(f"no answer for {PATIENCE // 10**9} s: {self.tell(end)}")
            if end.qp.state == "IBV_QPS_ERR" and not end.expected:
                # told by its own completions, or by the flush after the other end's request was refused
                self.end(end, end.ended or "IBV_WC_WR_FLUSH_ERR")
        return moved

    def finish(self) -> None:
        """The session's time is over: whoever is to be killed is, and whoever is left goes on until it knows."""
        for end in self.ends:
            if end.alive and self.how in (f"kill {end.name}", "kill both"):
                self.end(end, "killed")
        left = [end for end in self.ends if end.alive]
        if len(left) == 2:
            if not any(end.expected for end in left):
                for end in left:
                    self.end(end, "closed")
        elif left and not left[0].expected and left[0].qp.state == "IBV_QPS_RTS":
            # an end that waits for nothing learns only by asking that the other one is gone
            left[0].burst(self.ends[1 - left[0].side], self.time)

    def end(self, end: End, how: str) -> None:
        end.alive, end.ended = False, how
        end.qp.close()

    def sleep(self) -> bool:
        """On to the next event; False if there is none."""
        events = [event for end in self.ends if end.alive for event in (end.qp.next_event,) if event]
        if self.time < self.over:
            events += [end.wakes for end in self.ends if end.alive] + [self.over]
        events += [end.ready for end in self.ends if end.alive and end.ready > self.time]
        events += [self.under_way[0][0]] if self.under_way else []
        if not events:
            return False
        self.time = max(self.time + 1, min(events))
        while self.under_way and self.under_way[0][0] <= self.time:
            _, _, to, frame = heapq.heappop(self.under_way)
            if self.ends[to].alive:
                self.ends[to].link.hand_in(frame)
        return True

    def tell(self, end: End) -> str:
        return f"{end.name} {end.qp.state}, {len(end.expected)} requests posted, {end.qp.counters}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=48.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("bench-roce-hours.json"))
    options = parser.parse_args()
    draw, at, began = random.Random(options.seed), 1, time.monotonic()
    ended: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    stuck: list[str] = []
    while at < options.hours * HOUR:
        session = Session(draw, at)
        try:
            session.run()
        except Stuck as error:
            stuck.append(str(error))
        at = max(session.time, at + 1)
        total["sessions"] += 1
        total["frames"] += session.wire.carried
        total["frames lost"] += session.wire.lost
        for end in session.ends:
            ended[end.ended or "without a name"] += 1
            total["messages"] += end.messages
            total["bytes"] += end.bytes
            for name in ("sent_again", "timeouts", "duplicates", "out_of_order", "rnr_naks", "wrong_icrc"):
                total[name] += end.qp.counters[name]
    show(options.hours, time.monotonic() - began, total, ended, stuck)
    options.json.write_text(
        json.dumps({"hours": options.hours, "seed": options.seed, **total, "ended": ended, "stuck": stuck}, indent=2)
        + "\n"
    )
    return 1 if stuck or ended["without a name"] else 0


def show(hours: float, took: float, total: dict[str, int], ended: dict[str, int], stuck: list[str]) -> None:
    table = Table(title=f"{hours:g} hours of virtual time, in {took:.0f} s")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for name, value in [*total.items(), *((f"ended: {name}", count) for name, count in sorted(ended.items()))]:
        table.add_row(name, f"{value:,}")
    table.add_row("stuck", str(len(stuck)))
    console = Console()
    console.print(table)
    for each in stuck[:5]:
        console.print(each, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
