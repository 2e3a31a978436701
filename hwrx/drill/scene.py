"""A drill as it happens: our queue pair, the peer, and what is done to packets between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from cython_ext.frames.link import FrameLink
from hwrx.claims.predicate import MissingError, predicate_holds
from hwrx.drill.ends import OwnEnd, Peer, Requests, remote_place
from hwrx.drill.figures import Figures, Observed, collect_figures
from hwrx.drill.model import Drill, Result, Side, Step, Tamper, Verdict
from hwrx.drill.tampering import Chain, Reader
from hwrx.errors import PathError

MACS = {"us": "02:68:77:72:78:70", "peer": "02:68:77:72:78:71"}
ADDRESSES = {"us": "198.18.77.70", "peer": "198.18.77.71"}
HOP = 1000  # nanoseconds that a frame is under way in memory
MOST_STEPS = 100_000  # of a scene in memory
QUIET = 0.25  # seconds without a packet, with nothing outstanding, after which a real peer has come to rest
LONGEST = 25.0  # seconds that a step may take with a real peer; the longest waits are its retransmissions


class Wire(Protocol):
    """What carries frames to the peer and back, and whose time it is."""

    def now(self) -> int:
        """Nanoseconds."""

    def send(self, frame: bytes) -> None:
        """Let the peer have a frame."""

    def receive(self) -> list[bytes]:
        """Frames that the peer has sent."""

    def rest(self, event: int | None, moved: bool, outstanding: int) -> bool:
        """Wait for something to happen, until `event` at the latest. False if all has come to rest."""

    def begin_step(self) -> None:
        """A step begins: what was waited for before counts no more."""


class MemoryWire:
    """Our own queue pair as the peer, in this process, with a clock that is set ahead when nothing moves.

    Frames arrive one at a time: what the peer says to a batch would hide what it says to each.
    """

    def __init__(self, peer: OwnEnd) -> None:
        self._peer = peer
        self._arriving: deque[bytes] = deque()
        self._time = 1
        self._steps = 0

    def now(self) -> int:
        """See Wire."""
        return self._time

    def send(self, frame: bytes) -> None:
        """See Wire."""
        self._arriving.append(frame)

    def receive(self) -> list[bytes]:
        """See Wire."""
        if self._arriving:
            self._peer.link.hand_in(self._arriving.popleft())
        self._peer.pair.progress(self._time)
        return self._peer.link.take_out()

    def rest(self, event: int | None, moved: bool, outstanding: int) -> bool:
        """See Wire."""
        self._steps += 1
        if moved or self._arriving:
            self._time += HOP
            return self._steps < MOST_STEPS
        events = [each for each in (event, self._peer.pair.next_event) if each is not None]
        if not events or self._steps >= MOST_STEPS:
            return False
        self._time = max(self._time + HOP, min(events))
        return True

    def begin_step(self) -> None:
        """See Wire."""
        self._steps = 0


class LinkWire:
    """A link to a peer that works by itself, and real time."""

    def __init__(self, link: FrameLink) -> None:
        self._link = link
        self.begin_step()

    def now(self) -> int:
        """See Wire."""
        return time.monotonic_ns()

    def send(self, frame: bytes) -> None:
        """See Wire."""
        deadline = time.monotonic() + 1.0
        while not self._link.send(frame.ljust(60, b"\0") if len(frame) < 60 else frame):
            if time.monotonic() > deadline:
                raise PathError("the link takes no frame for a second", remedy="is the device up? ip link")

    def receive(self) -> list[bytes]:
        """See Wire."""
        return self._link.receive(0.001)

    def rest(self, event: int | None, moved: bool, outstanding: int) -> bool:
        """See Wire."""
        now = time.monotonic()
        if moved or outstanding:
            self._moved = now
        return now - self._moved < QUIET and now - self._begun < LONGEST

    def begin_step(self) -> None:
        """See Wire."""
        self._begun = self._moved = time.monotonic()


class Scene:
    """One drill between our end and a peer, over a wire. `mutant`: the peer is broken as the drill says, for tests."""

    def __init__(self, drill: Drill, us: OwnEnd, peer: Peer, wire: Wire, *, mutant: bool = False) -> None:
        self._drill, self._us, self._peer, self._wire = drill, us, peer, wire
        self._requests = {"us": Requests("us"), "peer": Requests("peer")}
        ours, theirs = us.own.psn, peer.own.psn

        def chain(entries: Sequence[Tamper], to: str) -> Chain:
            numbers = (ours, theirs) if to == "peer" else (theirs, ours)
            return Chain([entry for entry in entries if entry.to == to], *numbers)

        broken = drill.mutant if mutant else []
        self._chains = {to: chain(drill.tamper, to) for to in ("peer", "us")}
        self._mutants = {to: chain(broken, to) for to in ("peer", "us")}
        self._reader, self._answers = Reader(theirs, ours), Reader(ours, theirs)
        self._observed: list[Observed] = []
        self._damaged = 0
        self._asked: int | None = None
        self._refused = False  # a receiver was not ready, in this step

    def play(self) -> Figures:
        """Do what the drill says, and return the figures."""
        drill = self._drill
        for end, requests, side in ((self._us, self._requests["us"], drill.us),
                                    (self._peer, self._requests["peer"], drill.peer)):  # fmt: skip
            for _ in range(side.receives):
                end.post_receive(requests.receives, side.receive_size)
                requests.receives += 1
        for step in drill.step:
            self._post(step)
            self._wire.begin_step()
            self._refused = False
            while step.wait and self._turn() and not (step.until and self._refused):
                pass
        figures = collect_figures(
            self._observed, self._damaged, self._asked, self._us, self._peer, self._requests["us"],
            self._requests["peer"],
        )  # fmt: skip
        tampered = sum(chain.tampered for chain in self._chains.values())
        untouched = sum(chain.untouched for chain in self._chains.values())
        return figures | {"tampered": tampered if not untouched else 0}

    def _post(self, step: Step) -> None:
        us = step.by == "us"
        end, other = (self._us, self._peer) if us else (self._peer, self._us)
        requests = self._requests[step.by]
        for _ in range(step.count):
            if step.verb == "receive":
                end.post_receive(requests.receives, step.size)
                requests.receives += 1
                continue
            posted = requests.next(step)
            key = other.own.key ^ (0x5A if step.key == "wrong" else 0)
            address = other.own.address + remote_place(posted) + step.shift
            end.post(posted, key, address)

    def _turn(self) -> bool:
        """Let everything move once. False if all has come to rest."""
        now = self._wire.now()
        self._us.pair.progress(now)
        going = [out for frame in self._us.link.take_out() for out in self._go(frame, now)]
        going += self._chains["peer"].due(now)
        going = [out for frame in going for out in self._mutants["peer"].carry(frame, now)]
        for frame in (*going, *self._mutants["peer"].due(now)):
            self._wire.send(frame)
        coming = self._wire.receive()
        coming = [out for frame in coming for out in self._mutants["us"].carry(frame, now)]
        coming += self._mutants["us"].due(now)
        arriving = [out for frame in coming for out in self._come(frame, now)] + self._chains["us"].due(now)
        for frame in arriving:
            self._us.link.hand_in(frame)
        self._us.poll()
        self._peer.poll()
        outstanding = sum(
            len(requests.posted) - len(end.sends)
            for requests, end in ((self._requests["us"], self._us), (self._requests["peer"], self._peer))
        )
        events = [chain.next_event for chain in (*self._chains.values(), *self._mutants.values())]
        events.append(self._us.pair.next_event)
        event = min((each for each in events if each is not None), default=None)
        return self._wire.rest(event, bool(going or coming or arriving), outstanding)

    def _go(self, frame: bytes, now: int) -> list[bytes]:
        seen = self._answers.read(frame)
        if seen is not None and seen.syndrome == "RNR NAK":
            self._refused = True
            self._asked = now if self._asked is None else self._asked
        return self._chains["peer"].carry(frame, now)

    def _come(self, frame: bytes, now: int) -> list[bytes]:
        """Observe a frame of the peer, and let it pass our own tampering."""
        seen = self._reader.read(frame)
        if seen is None:
            return []  # another protocol of the peer's machine
        if seen.found["qpn"] != self._us.own.qpn:
            return []
        if seen.found["verdict"] != "roce" or not seen.found["icrc"]:
            self._damaged += 1
        else:
            self._observed.append(Observed(now, seen))
            self._refused |= seen.syndrome == "RNR NAK"
        return self._chains["us"].carry(frame, now)


def judge_drill(drill: Drill, figures: Figures, seconds: float) -> Result:
    """Return the verdict on a drill's figures."""
    why = ""
    try:
        tested = predicate_holds(drill.needs, figures)
        kept = tested and predicate_holds(drill.holds, figures)
    except MissingError as error:
        tested, kept, why = False, False, f"there is no figure '{error.args[0]}'"
    verdict: Verdict = "not tested" if not tested else "kept" if kept else "broken"
    if not tested and not why:
        why = f"what the drill needs did not happen: {drill.needs}"
    return Result(drill.name, verdict, why or drill.says.format_map(figures), figures, round(seconds, 3))


def play_in_memory(drill: Drill, *, mutant: bool = False) -> Result:
    """Put hwrx's own queue pair to a drill, in this process, in virtual time.

    :param mutant: break it first, as the drill's file says
    """
    side = with_changes(drill.peer, drill.mutant_peer) if mutant else drill.peer
    us = OwnEnd("us", MACS["us"], ADDRESSES["us"], drill.us)
    peer = OwnEnd("peer", MACS["peer"], ADDRESSES["peer"], side)
    begun = time.monotonic()
    try:
        us.connect(peer.own, MACS["peer"], drill.us)
        peer.connect(us.own, MACS["us"], side)
        changed = drill if side is drill.peer else _with_peer(drill, side)
        figures = Scene(changed, us, peer, MemoryWire(peer), mutant=mutant).play()
    finally:
        us.close()
        peer.close()
    return judge_drill(drill, figures, time.monotonic() - begun)


def with_changes(side: Side, changes: dict[str, int | list[str]]) -> Side:
    """Return a side with other options; UsageError if there is no such option."""
    return msgspec.convert({**msgspec.to_builtins(side), **changes}, Side)


def _with_peer(drill: Drill, side: Side) -> Drill:
    return msgspec.structs.replace(drill, peer=side)
