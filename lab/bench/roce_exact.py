"""A million messages between our own queue pair and rxe over a bad wire: every byte is compared.

A guest has a veth pair, on which netem loses, doubles and reorders 1 % each of what either end sends. One end is hwrx's
queue pair on a packet ring, the other rxe's, and one process drives both. In rounds, both post SENDs, WRITEs (both with
and without immediate), READs and atomics of 1 byte to 1 MiB, all at once and with receive requests for each; small
ones are many, and an eighth has a length next to a multiple of the MTU. A round ends when all have completed: each in
its order, with its length and immediate. Then both memories are compared, and the gaps between the messages with them:
a byte that left its place would be seen there. Before the round, in the places to be written, stands each byte's
complement, so that nothing is right by chance. The atomics of a round go to one number, which is right only if each
was executed once.

    lab/bench/roce_exact [--messages 1000000] [--kernel 6.12] [--wire 'loss 1% …'] [--json bench-roce-exact.json]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from roce_ends import ADDRESS, MAC, MTU, Done, OurEnd, Request, RxeEnd

VERBS = ("send", "send-imm", "write", "write-imm", "read", "fetch-add", "compare-swap")
ATOMICS = VERBS[5:]
TAKING = ("send", "send-imm", "write-imm")  # those that use up a receive request
WIRE = "loss 1% duplicate 1% reorder 1% delay 200us"
TOGETHER = 192  # messages of a round, each way
LARGEST = 1 << 20
ROOM = 6 << 20
GUARD = 4096  # bytes behind the last place, which must stay what they are
POOL = 8 << 20
PATIENCE = 120.0  # seconds without a completion after which what is under way is lost
BACKLOG = 16384  # packets: the kernel's queue of 1,000 would lose more than netem, in bursts
SUCCESS = "IBV_WC_SUCCESS"
SIDES = ("ours", "rxe")


class Message(NamedTuple):
    """One message of a round: who asks, for what, and where it stands then, in whose memory."""

    request: Request
    landing: int
    size: int
    lands: str  # the side
    expected: bytes


class Round:
    """What is posted at both ends, both memories before, and both as they must be after."""

    def __init__(self, draw: random.Random, pool: memoryview, complement: memoryview, count: int) -> None:
        self._draw, self._pool, self._complement = draw, pool, complement
        self.messages: dict[str, list[Message]] = {side: [] for side in SIDES}
        # the atomics' number stands first
        self._numbers = {side: draw.randrange(1 << 64) for side in SIDES}
        self.before = {side: bytearray(self._numbers[side].to_bytes(8, "little")) for side in SIDES}
        for _ in range(count):
            for side, other in (SIDES, SIDES[::-1]):
                self._add(side, other)
        for memory in self.before.values():
            memory.extend(bytes(GUARD))
        self.after = {side: bytearray(memory) for side, memory in self.before.items()}
        for side in SIDES:
            self.after[side][:8] = self._numbers[side].to_bytes(8, "little")
        for each in (each for side in SIDES for each in self.messages[side]):
            self.after[each.lands][each.landing : each.landing + each.size] = each.expected

    def _take(self, side: str, size: int) -> int:
        """A place with a gap before it, so that it begins at any address, and a byte too many is seen."""
        memory, gap = self.before[side], self._draw.randrange(1, 16)
        memory.extend(bytes(gap + size))
        return len(memory) - size

    def _add(self, side: str, other: str) -> None:
        """A message of `side`; none if there is no room for its size any more."""
        verb, size = self._draw.choice(VERBS), draw_size(self._draw)
        if verb in ATOMICS:
            self._add_atomic(verb, side, other)
            return
        if max(map(len, self.before.values())) + size + 16 > ROOM - GUARD:
            return
        source, lands = (other, side) if verb == "read" else (side, other)
        at, landing = self._take(source, size), self._take(lands, size)
        start = self._draw.randrange(POOL - size)
        body = bytes(self._pool[start : start + size])
        self.before[source][at : at + size] = body
        self.before[lands][landing : landing + size] = self._complement[start : start + size]
        here, there = (landing, at) if verb == "read" else (at, landing)
        immediate = self._draw.getrandbits(32) if verb.endswith("imm") else 0
        self.messages[side].append(Message(Request(verb, here, size, there, immediate), landing, size, lands, body))

    def _add_atomic(self, verb: str, side: str, other: str) -> None:
        draw, was = self._draw, self._numbers[other]
        result, swap = self._take(side, 8), draw.getrandbits(64)
        compare = was if draw.random() < 0.5 else draw.getrandbits(64)
        if verb == "fetch-add":
            self._numbers[other] = (was + swap) % (1 << 64)
        elif compare == was:
            self._numbers[other] = swap
        expected = was.to_bytes(8, "little")
        self.before[side][result : result + 8] = bytes(255 - byte for byte in expected)
        request = Request(verb, result, 8, 0, 0, compare, swap)
        self.messages[side].append(Message(request, result, 8, side, expected))

    def receives(self, side: str) -> list[Message]:
        """Return the messages for which `side` needs receive requests, in their order."""
        return [each for each in self.messages[SIDES[side == "ours"]] if each.request.verb in TAKING]


def draw_size(draw: random.Random) -> int:
    """Most are small; 1 of 8,192 is longer than a quarter of LARGEST."""
    kind = draw.randrange(8)
    if kind == 0:  # a little less or more than some packets
        return MTU * draw.randrange(1, 9) + draw.randrange(-2, 3)
    if kind < 6:  # as many of each order of magnitude
        return int(2 ** (12 * draw.random()))
    # Pareto's distribution: the chance to be longer falls with the square root
    return int(min(LARGEST, (1.0 - draw.random()) ** -2))


class Wrong(Exception):
    """A completion is not the one that is expected, or does not come."""


class Meeting:
    """Both ends, connected, and what has become of their messages, by side and verb."""

    def __init__(self, places: dict[str, Any], draw: random.Random) -> None:
        self.ends: dict[str, Any] = {}
        self.wrong: list[str] = []  # messages whose bytes are not what was sent, in words
        self._stack = contextlib.ExitStack()
        for side, role, kind in (("ours", "client", OurEnd), ("rxe", "server", RxeEnd)):
            self.ends[side] = kind(places[role], ROOM)
            self._stack.callback(self.ends[side].close)
        first, second = draw.randrange(1 << 24), draw.randrange(1 << 24)
        self.ends["rxe"].connect(self.ends["ours"], first, second)
        self.ends["ours"].connect(self.ends["rxe"], second, first)

    def carry(self, play: Round) -> collections.Counter[tuple[str, str, str]]:
        """Carry one round; what is right, wrong and lost, by side and verb.

        :raises Wrong: if it cannot go on after this round; the counts are its second argument
        """
        ends = self.ends
        for side in SIDES:
            ends[side].memory[: len(play.before[side])] = np.frombuffer(play.before[side], np.uint8)
            ends[side].post_receives([(each.landing, each.size) for each in play.receives(side)])
        left = {(side, "send"): collections.deque(enumerate(play.messages[side])) for side in SIDES}
        left |= {(side, "receive"): collections.deque(enumerate(play.receives(side))) for side in SIDES}
        for side, other in (SIDES, SIDES[::-1]):
            ends[side].post_sends([each.request for each in play.messages[side]], ends[other])
        problem = self._finish(left)
        # what no completion came of, at either end
        lost = {id(each) for queue in left.values() for _, each in queue}
        counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        same = all(
            np.array_equal(ends[side].memory[: len(after)], np.frombuffer(after, np.uint8))
            for side, after in play.after.items()
        )
        for side in SIDES:
            for each in play.messages[side]:
                stands = same or bytes(ends[each.lands].memory[each.landing :][: each.size]) == each.expected
                how = "lost" if id(each) in lost else "right" if stands else "wrong"
                if how == "wrong":
                    self.wrong.append(describe(side, each, ends[each.lands].memory))
                counts[side, each.request.verb, how] += 1
                counts[side, each.request.verb, "bytes"] += each.size
        if not same and not problem and not any(how == "wrong" for _, _, how in counts):
            problem = "something was written between the places of the messages, or an atomic not executed once"
        if problem:
            raise Wrong(problem, counts)
        return counts

    def _finish(self, left: dict[tuple[str, str], collections.deque[tuple[int, Message]]]) -> str:
        """Drive until nothing is left; otherwise why it ends before."""
        pair, heard = self.ends["ours"].pair, time.monotonic()
        while any(left.values()):
            came = pair.progress()
            for (side, queue), expected in left.items():
                for done in self.ends[side].poll(queue) if expected else ():
                    if problem := judge(done, queue, *(expected[0] if expected else (-1, None))):
                        return f"{side}, {queue}: {problem}"
                    expected.popleft()
                    heard = time.monotonic()
            if not came:
                pair.wait(0.0005)
                if time.monotonic() - heard > PATIENCE:
                    return f"no completion for {PATIENCE:g} s"
        return ""

    def counts(self) -> dict[str, dict[str, int]]:
        return {side: self.ends[side].counts() for side in SIDES}

    def close(self) -> None:
        self._stack.close()


def describe(side: str, message: Message, memory: Any) -> str:
    """What is wrong with the bytes of a message."""
    stands = np.array(memory[message.landing :][: message.size])
    differs = np.flatnonzero(stands != np.frombuffer(message.expected, np.uint8))
    # never written, or written with something else
    untouched = int(np.count_nonzero(stands[differs] == 255 - np.frombuffer(message.expected, np.uint8)[differs]))
    return (
        f"{side}, {message.request.verb} of {message.size} bytes: {differs.size} are wrong, from {differs[0]} on, "
        f"{untouched} of them untouched"
    )


def judge(done: Done, queue: str, number: int, message: Message | None) -> str:
    """What is wrong with a completion; "" if nothing is."""
    if message is None or done.number != number:
        return f"{done} instead of request {number}"
    if done.status != SUCCESS:
        return f"{message.request.verb} of {message.size} bytes ended with {done.status}"
    wants = message.request.immediate if message.request.verb.endswith("imm") else None
    if queue == "receive" and (done.size, done.immediate) != (message.size, wants):
        return f"{done} instead of {message.size} bytes with immediate {wants}"
    return ""


# --- in the guest --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bad_wire(words: str) -> Iterator[dict[str, Any]]:
    """The places of both ends of a wire that netem spoils both ways."""
    from hwrx.host import tools
    from hwrx.wires import impair, topology

    tools.run_tool("modprobe", "sch_netem")
    Path("/proc/sys/net/core/netdev_max_backlog").write_text(str(BACKLOG), encoding="utf-8")
    with topology.at_hand("pair") as made:
        netdev = str(made.places["server"].netdev)
        tools.run_tool("ip", "neigh", "replace", ADDRESS, "lladdr", MAC, "dev", netdev, "nud", "permanent")
        for link in topology.LINKS.values():
            impair.spoil_wire(link, words)
        yield dict(made.places)


def inside(messages: int, seed: int, wire: str) -> None:
    """Carry so many messages; progress, and the result, each as one line of JSON."""
    draw, began, told = random.Random(seed), time.monotonic(), 0.0
    pool = draw.randbytes(POOL)
    complement = memoryview((255 - np.frombuffer(pool, np.uint8)).tobytes())
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    totals: dict[str, collections.Counter[str]] = {side: collections.Counter() for side in SIDES}
    problems: list[str] = []
    done = 0
    with bad_wire(wire) as places:
        meeting = Meeting(places, draw)
        while done < messages:
            ended = False
            try:
                found = meeting.carry(Round(draw, memoryview(pool), complement, TOGETHER))
            except Wrong as error:
                ended, found = True, error.args[1]
                problems.append(f"after {done} messages: {error.args[0]}; {meeting.counts()}")
            counts += found
            done += sum(count for (_, _, how), count in found.items() if how != "bytes")
            if ended or done >= messages:
                problems += meeting.wrong
                for side, counted in meeting.counts().items():
                    totals[side].update(counted)
                meeting.close()
                meeting = Meeting(places, draw) if done < messages else meeting
            if ended or time.monotonic() - told > 10:
                told = time.monotonic()
                rate = done / (told - began)
                print(
                    f"{done:,} messages, {rate:,.0f} a second, {len(problems) + len(meeting.wrong)} problems",
                    flush=True,
                )
    rows = [
        {"asked by": side, "verb": verb} | {how: counts[side, verb, how] for how in ("right", "wrong", "lost", "bytes")}
        for side in SIDES
        for verb in VERBS
    ]
    took = time.monotonic() - began
    result = {"seed": seed, "wire": wire, "seconds": took, "rows": rows, "problems": problems, "counts": totals}
    print("RESULT " + json.dumps(result), flush=True)


# --- on the host ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000, help="of all verbs and both ways together")
    parser.add_argument("--kernel", help="of the guest")
    parser.add_argument("--wire", default=WIRE, help="netem's words, for what either end sends")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=24 * 3600.0, help="seconds")
    parser.add_argument("--json", type=Path, default=Path("bench-roce-exact.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.messages, options.seed, options.wire)
        return 0

    from hwrx.lab.vm import Guest

    words = [sys.executable, str(Path(__file__).resolve()), "--inside", "--messages", str(options.messages)]
    words += ["--seed", str(options.seed), "--wire", options.wire]
    result = None
    with Guest("pair", kernel=options.kernel, limit=600) as guest:
        for line in listen(guest, words, options.limit):
            if line.startswith("RESULT "):
                result = json.loads(line.removeprefix("RESULT "))
            else:
                print(line, file=sys.stderr, flush=True)
        kernel = str(guest.describe()["kernel"])
    if result is None:
        return 1
    options.json.write_text(json.dumps({"kernel": kernel, **result}, indent=2) + "\n", encoding="utf-8")
    return show(result, kernel)


def listen(guest: Any, words: list[str], limit: float) -> Iterator[str]:
    """Run a command in the guest; yield its lines as they come."""
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    deadline, rest = time.monotonic() + limit, b""
    with contextlib.closing(guest.command(words, environment, folder=Path.cwd(), errors="merged")) as pipe:
        pipe.end_input()
        while True:
            pipe.settimeout(max(0.01, deadline - time.monotonic()))
            if not (data := pipe.recv(1 << 16)):
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def show(result: dict[str, Any], kernel: str) -> int:
    """A table, what the wire was like, and whether every byte was right: 0."""
    print(f"\nOur queue pair and rxe, kernel {kernel}, {result['wire']}, {result['seconds']:,.0f} s\n")
    columns = ("right", "wrong", "lost", "bytes")
    print(f"{'asked by':10}{'verb':14}" + "".join(f"{name:>16}" for name in columns))
    for row in result["rows"]:
        print(f"{row['asked by']:10}{row['verb']:14}" + "".join(f"{row[name]:16,}" for name in columns))
    for side, counted in result["counts"].items():
        print(f"\n{side}: " + ", ".join(f"{name} {count:,}" for name, count in counted.items() if count))
    total = {name: sum(row[name] for row in result["rows"]) for name in columns}
    print(f"\n{total['right']:,} messages right, {total['wrong']:,} wrong, {total['lost']:,} lost")
    for problem in result["problems"]:
        print(problem)
    return 1 if total["wrong"] or total["lost"] or result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
